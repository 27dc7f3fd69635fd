"""Linear warm-up, then half a cosine down to `final`, which the last step has.

Source: Loshchilov and Hutter 2017, arXiv 1608.03983, one cycle without restart.
"""

from __future__ import annotations

import math

from pydantic import Field

from armillary.training.schedules._warmup import Warmup, share


class Cosine(Warmup):
    """final: share of the peak at the last step."""

    final: float = Field(0.1, ge=0, le=1)

    def factor(self, step: int, n_steps: int) -> float:
        """Share of the peak learning rate at a step of 0 .. n_steps - 1."""
        down = share(step, max(self.warmup - 1, 0), n_steps - 1)
        return self.rise(step) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * down)) / 2)
