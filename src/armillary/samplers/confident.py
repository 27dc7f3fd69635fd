"""Confident decoding: at each step the positions that the model is surest of are written, and stay.

Source: Chang et al. 2022 (MaskGIT), arXiv 2202.04200, section 3.2; Kim et al. 2025, arXiv 2502.06768, for the margin;
Nie et al. 2025 (LLaDA), arXiv 2502.09992, section 2.4.
Differs: positions may be chosen before anything is drawn there, which, one a step, has an exact likelihood; what is
compared is always the model's own law, guided but without temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from armillary.contracts import Denoise, Given, State
from armillary.samplers._parallel import Parallel, Rows


class Confident(Parallel):
    """by: "confidence" (the likeliest token's probability), "margin" (less that of the second), or "entropy".

    chosen: "before", the positions whose law is surest, which are then drawn; "after", all are drawn and those are kept
    whose token has the highest probability. steps: the open positions are spread over them evenly; None writes one a
    step.
    """

    views: ClassVar[tuple[str, ...]] = ("absorbing",)

    by: Literal["confidence", "margin", "entropy"] = "confidence"
    chosen: Literal["before", "after"] = "before"
    steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def what_was_drawn_has_a_probability_only(self) -> Confident:
        if self.chosen == "after" and self.by != "confidence":
            raise ValueError(f"chosen: 'after' compares drawn tokens, and {self.by} is of a law; use chosen: before")
        return self

    def run(self, view: Denoise, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        rows = Rows(view, given, generators, self)
        n_open = rows.undecided.sum(1)
        n_steps = rows.n_steps(self.steps).minimum(n_open.clamp(min=1))
        yield rows.state
        for step in range(int(n_steps.max())):
            where = rows.undecided & (n_steps > step)[:, None]
            active = where.any(1)
            if not bool(active.any()):
                return
            n_now = n_open * (step + 1) // n_steps - n_open * step // n_steps
            log_p0 = rows.log_p0(where, _time(view, where.sum(1), n_open))
            u = rows.uniform(active, rows.n_positions)
            if self.chosen == "before":
                kept = _highest(SCORES[self.by](log_p0), where, n_now)
                tokens = rows.draw(log_p0[kept[where]], u[kept])
            else:
                drawn = rows.draw(log_p0, u[where])
                kept = _highest(log_p0.gather(1, drawn[:, None])[:, 0], where, n_now)
                tokens = drawn[kept[where]]
            rows.write(kept, tokens)
            yield rows.state


def _confidence(log_p: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    return log_p.amax(1)


def _margin(log_p: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    first, second = log_p.topk(2, dim=1).values.exp().unbind(1)
    return first - second


def _negative_entropy(log_p: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    # cumsum, not sum: its order does not depend on how many rows there are
    return -torch.special.entr(log_p.double().exp()).cumsum(1)[:, -1]


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": _confidence,
    "margin": _margin,
    "entropy": _negative_entropy,
}


def _highest(score: Float[Tensor, " n"], where: Bool[Tensor, "B L"], n_now: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
    """The n_now positions of each row with the highest scores, of equal ones the first."""
    table = torch.full(where.shape, -torch.inf, dtype=score.dtype, device=score.device).masked_scatter(where, score)
    rank = table.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return where & (rank < n_now[:, None])


def _time(view: Denoise, n_hidden: Int[Tensor, " B"], n_open: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """When as many positions would be hidden, for a network that knows the noise level."""
    alpha = 1 - n_hidden.double() / n_open.clamp(min=1)
    return view.time(alpha.maximum(view.alpha(torch.ones_like(alpha))))
