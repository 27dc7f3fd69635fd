"""Noise schedules as values: alpha(t), its slope, and t of an alpha.

Source: log-linear and cosine, Sahoo et al. 2024, arXiv 2406.07524, appendix E; geometric, Lou et al. 2023,
arXiv 2310.16834, section 4.
Differs: alpha(0) = 1 exactly, for all of them. `geometric` starts from σ(0) = 0, and `log_linear` and `geometric` may
end above alpha(1) = 0, where a loss then owes the distance to the prior.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LogLinear(_Value):
    """alpha = 1 - (1 - floor) t."""

    name: Literal["log_linear"] = "log_linear"
    floor: float = Field(default=0.0, ge=0, lt=1)

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 1 - (1 - self.floor) * t

    def slope(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d alpha / d t, never positive."""
        return torch.full_like(t, self.floor - 1)

    def time(self, alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (1 - alpha) / (1 - self.floor)


class Cosine(_Value):
    """alpha = 1 - cos(π (1 - t) / 2) = 1 - sin(π t / 2), the form that is exactly 1 at t = 0."""

    name: Literal["cosine"] = "cosine"

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 1 - torch.sin(math.pi / 2 * t)

    def slope(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def time(self, alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 2 / math.pi * torch.asin((1 - alpha).clamp(-1, 1))


class Polynomial(_Value):
    """alpha = 1 - t ** power."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, ge=1)

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 1 - t**self.power

    def slope(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -self.power * t ** (self.power - 1)

    def time(self, alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (1 - alpha) ** (1 / self.power)


class Geometric(_Value):
    """alpha = exp(-σ), σ = low^(1 - t) high^t - low."""

    name: Literal["geometric"] = "geometric"
    low: float = Field(default=1e-3, gt=0)
    high: float = Field(default=20.0, gt=0)

    @model_validator(mode="after")
    def noise_grows(self) -> Geometric:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.exp(self.low - self._level(t))

    def slope(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -self._level(t) * math.log(self.high / self.low) * self.alpha(t)

    def time(self, alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        level = self.low - torch.log(alpha.clamp(min=math.exp(self.low - self.high)))
        return torch.log(level / self.low) / math.log(self.high / self.low)

    def _level(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.low * (self.high / self.low) ** t


Schedule = Annotated[LogLinear | Cosine | Polynomial | Geometric, Field(discriminator="name")]


def end(schedule: Schedule) -> float:
    """alpha(1): the share of tokens that the schedule leaves as they were."""
    return float(schedule.alpha(torch.ones((), dtype=torch.float64)))
