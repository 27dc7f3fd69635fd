"""A constant learning rate after a linear warm-up."""

from __future__ import annotations

from armillary.training.schedules._warmup import Warmup


class Constant(Warmup):
    def factor(self, step: int, n_steps: int) -> float:
        """Share of the peak learning rate at a step of 0 .. n_steps - 1."""
        return self.rise(step)
