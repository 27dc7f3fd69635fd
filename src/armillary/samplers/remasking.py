"""Remasking: ancestral sampling in which what was written may be hidden again, so that an early mistake can be undone.

Source: Wang et al. 2025 (ReMDM), arXiv 2503.00307, section 3 (the process), section 4 (the rules).
Differs: written positions and hidden ones are treated in two stages each, as in `ancestral`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from armillary.contracts import Denoise, Given, State
from armillary.samplers._parallel import Parallel, Rows, times


class Remasking(Parallel):
    """A written position is hidden again with probability min(eta, most) by rule "cap", eta · most by "rescale", where
    `most` is the largest that leaves as many positions hidden at each time as without remasking.

    steps: from t = 1 to 0, all of them taken; None takes one for each open position of a row.
    """

    views: ClassVar[tuple[str, ...]] = ("absorbing",)

    rule: Literal["cap", "rescale"] = "cap"
    eta: float = Field(default=0.02, ge=0, le=1)
    steps: int | None = Field(default=None, ge=1)

    def run(self, view: Denoise, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        rows = Rows(view, given, generators, self)
        n_steps = rows.n_steps(self.steps)
        yield rows.state
        for step in range(int(n_steps.max())):
            hidden = rows.undecided
            may_change = (hidden if self.eta == 0 else rows.open) & (n_steps > step)[:, None]
            active = may_change.any(1)
            if not bool(active.any()):
                return
            t, s = times(n_steps, step)
            remask, unmask = self._rates(view.alpha(t), view.alpha(s))
            u = rows.uniform(active, rows.n_positions, 2)
            written = hidden & may_change & (u[..., 0] < unmask[:, None])
            unwritten = ~hidden & may_change & (u[..., 0] < remask[:, None])
            if bool(written.any()):
                rows.write(written, rows.draw(rows.log_p0(written, t), u[..., 1][written]))
            rows.tokens = torch.where(unwritten, rows.prior, rows.tokens)
            yield rows.state

    def _rates(
        self, alpha_t: Float[Tensor, " B"], alpha_s: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(how probable it is that a token is hidden again, that a hidden position is written) between t and s."""
        most = ((1 - alpha_s) / alpha_t.clamp(min=1e-300)).clamp(max=1)
        remask = most.clamp(max=self.eta) if self.rule == "cap" else self.eta * most
        return remask, (alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)
