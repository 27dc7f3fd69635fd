"""Ancestral sampling: the reverse process in equal steps of time, all positions at once.

Source: absorbing, Sahoo et al. 2024, arXiv 2406.07524; uniform, Schiff et al. 2024, arXiv 2412.10193, section 3.
Differs: a position of an absorbing process is first revealed or not, then drawn from the vocabulary alone. Drawn
together with MASK by noise in float32, rare tokens would get nothing at many steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from armillary.contracts import Denoise, Given, State
from armillary.samplers._parallel import Parallel, Rows, tempered, times


class Ancestral(Parallel):
    """steps: from t = 1 to 0; None takes one for each open position of a row. Finitely many follow another law than
    infinitely many, since the positions of one step do not see each other."""

    views: ClassVar[tuple[str, ...]] = ("absorbing", "uniform")

    steps: int | None = Field(default=None, ge=1)

    def run(self, view: Denoise, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        rows = Rows(view, given, generators, self)
        n_steps = rows.n_steps(self.steps)
        yield rows.state
        for step in range(int(n_steps.max())):
            where = rows.undecided & (n_steps > step)[:, None]
            active = where.any(1)
            if not bool(active.any()):
                return
            t, s = times(n_steps, step)
            u = rows.uniform(active, rows.n_positions, 2)
            if rows.are_absorbing:
                where = _revealed(rows, where, t, s, u)
            if bool(where.any()):
                log_p0 = tempered(rows.log_p0(where, t), self.temperature)
                rows.tokens = view.reverse(rows.tokens, where, log_p0, t, s, u)
            yield rows.state


def _revealed(
    rows: Rows, where: Bool[Tensor, "B L"], t: Float[Tensor, " B"], s: Float[Tensor, " B"], u: Float[Tensor, "B L 2"]
) -> Bool[Tensor, "B L"]:
    """The positions that this step writes: those that it would write under any law, that of one token for instance."""
    flat = torch.zeros(1, 1, device=where.device).expand(int(where.sum()), -1)
    return where & (rows.view.reverse(rows.tokens, where, flat, t, s, u) != rows.tokens)
