"""Linear warm-up, a long stable part at the peak, then a decay to `final`, which the last step has.

Source: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392 (the shape 1 - sqrt).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from armillary.refusal import Refusal
from armillary.training.schedules._warmup import Warmup, share


class WarmupStableDecay(Warmup):
    """decay: share of the run that decays. final: share of the peak at the last step."""

    decay: float = Field(0.2, ge=0, le=1)
    shape: Literal["linear", "sqrt"] = "linear"
    final: float = Field(0.0, ge=0, le=1)

    def check(self, n_steps: int) -> None:
        super().check(n_steps)
        n_decay = self._n_decay(n_steps)
        if self.warmup + n_decay > n_steps:
            raise Refusal(
                f"schedule: warmup of {self.warmup} and decay of {n_decay} steps in a run of {n_steps}; lower one"
            )

    def factor(self, step: int, n_steps: int) -> float:
        """Share of the peak learning rate at a step of 0 .. n_steps - 1."""
        down = share(step, n_steps - 1 - self._n_decay(n_steps), n_steps - 1)
        fallen = math.sqrt(down) if self.shape == "sqrt" else down
        return self.rise(step) * (1 - (1 - self.final) * fallen)

    def _n_decay(self, n_steps: int) -> int:
        return round(self.decay * n_steps)
