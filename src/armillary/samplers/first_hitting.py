"""First-hitting sampling: from one moment at which a position is revealed to the next, without steps of time.

Source: Zheng et al. 2024, arXiv 2409.02908, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch

from armillary.contracts import Denoise, Given, State
from armillary.samplers._parallel import Parallel, Rows


class FirstHitting(Parallel):
    """One position an evaluation, in random order: the law of ancestral sampling with infinitely many steps."""

    views: ClassVar[tuple[str, ...]] = ("absorbing",)

    def run(self, view: Denoise, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        rows = Rows(view, given, generators, self)
        yield rows.state
        # The share of positions still hidden. Of n hidden ones, none is revealed before it has fallen to tau with
        # probability (tau / now) ** n.
        tau = 1 - view.alpha(torch.ones(rows.tokens.shape[0], dtype=torch.float64, device=rows.tokens.device))
        while bool((undecided := rows.undecided).any()):
            n = undecided.sum(1)
            u = rows.uniform(n > 0, 3)
            tau = tau * torch.where(n > 0, u[:, 0] ** (1 / n.clamp(min=1)), 1.0)
            place = (u[:, 1] * n).long().minimum(n - 1)
            where = undecided & (undecided.cumsum(1) - 1 == place[:, None])
            log_p0 = rows.log_p0(where, view.time(1 - tau))
            rows.write(where, rows.draw(log_p0, u[n > 0, 2]))
            yield rows.state
