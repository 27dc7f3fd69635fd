"""The linear rise that every schedule begins with."""

from __future__ import annotations

from pydantic import Field

from armillary.refusal import Refusal
from armillary.registry import Part


class Warmup(Part):
    """warmup: steps until the peak. Step 0 learns already (at 1 / warmup), step warmup - 1 is the first at the peak."""

    warmup: int = Field(0, ge=0)

    def check(self, n_steps: int) -> None:
        """Raises Refusal where the schedule does not fit into a run of n_steps."""
        if self.warmup > n_steps:
            raise Refusal(f"schedule: warmup of {self.warmup} steps in a run of {n_steps}; lower schedule.warmup")

    def rise(self, step: int) -> float:
        """In (0, 1]; 1 from the end of the warm-up on."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0


def share(step: int, first: int, last: int) -> float:
    """How far `step` is from `first` (0.0) to `last` (1.0); 0.0 up to `first`, even where the two are one step."""
    return 0.0 if step <= first else min(1.0, (step - first) / (last - first))
