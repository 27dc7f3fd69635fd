"""The sine activation: a damped sine whose amplitude, frequency and damping each feature learns.

Source: PSANN-LM (Nickm1128/psann), `SineParam`; the derivatives are those of y = A exp(-d |z|) sin(f z + phase).
Differs: nothing but z is kept for the backward pass, where the rest is computed again; a phase is optional; the
spread of the first frequencies is a setting.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from armillary.nn.linear import Linear
from armillary.registry import Part

Name = Literal["amplitude", "frequency", "damping", "phase"]
SMALLEST_FREQUENCY = 1e-6
AT_ONCE = 1 << 16
"""Elements of a piece where nothing is compiled: what is computed on the way stays in the processor's cache."""


class SineParams(Part):
    """What the sine of every feature starts as, and what of it is learnt.

    trainable: all, none, or those named. freq_init_std: each feature's first frequency is drawn from a normal
    distribution of that width around freq_init, cut off at a hundredth of it. phase_init: None leaves the phase out.
    learning_rate_factor: times the learning rate of everything else.
    """

    amp_init: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    freq_init: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    damp_init: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    phase_init: float | None = Field(default=None, allow_inf_nan=False)
    freq_init_std: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    trainable: tuple[Name, ...] | bool = True
    learning_rate_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def what_is_trained_is_there(self) -> SineParams:
        if not isinstance(self.trainable, bool) and "phase" in self.trainable and self.phase_init is None:
            raise ValueError("trainable names the phase, and there is none; set phase_init, 0.0 for instance")
        if not self.trainable and self.learning_rate_factor != 1:
            raise ValueError("learning_rate_factor has no meaning where trainable is false; leave one of them out")
        return self

    def learns(self, name: Name) -> bool:
        return self.trainable if isinstance(self.trainable, bool) else name in self.trainable


class Sine(nn.Module):
    """One vector of the width for each of amplitude, frequency and damping, which softplus keeps positive."""

    def __init__(self, width: int, params: SineParams) -> None:
        super().__init__()
        spread = torch.randn(width) * params.freq_init_std if params.freq_init_std else torch.zeros(width)
        frequency = (params.freq_init + spread).clamp(min=params.freq_init / 100)

        def learnt(name: Name, value: Tensor) -> nn.Parameter:
            parameter = nn.Parameter(value, requires_grad=params.learns(name))
            parameter.learning_rate_factor = params.learning_rate_factor  # type: ignore[attr-defined]
            return parameter

        self.amplitude = learnt("amplitude", _before_softplus(torch.full((width,), params.amp_init)))
        self.frequency = learnt("frequency", _before_softplus(frequency))
        self.damping = learnt("damping", _before_softplus(torch.full((width,), params.damp_init)))
        phase = params.phase_init
        self.phase = None if phase is None else learnt("phase", torch.full((width,), phase % math.tau))

    def forward(self, z: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        amplitude, damping = F.softplus(self.amplitude), F.softplus(self.damping)
        return _Sine.apply(z, amplitude, F.softplus(self.frequency) + SMALLEST_FREQUENCY, damping, self.phase)  # type: ignore[return-value]


class SineNetwork(nn.Module):
    def __init__(self, width: int, hidden: int, params: SineParams) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.sine = Sine(hidden, params)
        self.down = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.down(self.sine(self.up(x)))


def _before_softplus(x: Tensor) -> Tensor:
    """ln(e^x - 1), without the overflow."""
    return x + torch.log(-torch.expm1(-x))


class _Sine(torch.autograd.Function):
    """In fp32 whatever autocast says, result and gradient in the type of z: in bf16 the argument f z would be rounded
    before the sine is taken, and the sums over all positions that are the vectors' gradients would stop growing."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, amplitude: Tensor, frequency: Tensor, damping: Tensor, phase: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(z, amplitude, frequency, damping, phase)
        a, f, d = (x.to(_wide(z)) for x in (amplitude, frequency, damping))
        pieces = []
        for (piece,) in _pieces(z):
            x = piece.to(_wide(z))
            angle = x * f if phase is None else x * f + phase
            pieces.append((a * torch.exp(-d * x.abs()) * angle.sin()).to(z.dtype))
        return torch.cat(pieces).view_as(z) if len(pieces) > 1 else pieces[0].view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, amplitude, frequency, damping, phase = ctx.saved_tensors
        a, f, d = (x.to(_wide(z)) for x in (amplitude, frequency, damping))
        d_z, sums = [], torch.zeros(4, z.shape[-1], dtype=_wide(z), device=z.device)
        for x, g in _pieces(z, grads[0]):
            x, size = x.to(_wide(z)), x.abs().to(_wide(z))
            angle = x * f if phase is None else x * f + phase
            g = g * torch.exp(-d * size)
            by_sine, by_cosine = g * angle.sin(), g * angle.cos()
            d_z.append((a * (f * by_cosine - d * x.sign() * by_sine)).to(z.dtype))
            terms = (by_sine, x * by_cosine, size * by_sine, by_cosine)
            sums = sums + torch.stack([term.sum(0) for term in terms])
        d_a, d_f, d_d = sums[0], a * sums[1], -a * sums[2]
        d_phase = None if phase is None else (a * sums[3]).to(phase.dtype)
        whole = torch.cat(d_z).view_as(z)
        return whole, d_a.to(amplitude.dtype), d_f.to(frequency.dtype), d_d.to(damping.dtype), d_phase


def _wide(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors as rows of features; some rows at a time on a CPU, where nothing fuses the passes over them."""
    rows = [x.reshape(-1, x.shape[-1]) for x in tensors]
    if torch.compiler.is_compiling() or rows[0].device.type != "cpu":
        return [tuple(rows)]
    return list(zip(*(x.split(max(1, AT_ONCE // x.shape[-1])) for x in rows), strict=True))
