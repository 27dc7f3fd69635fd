"""Speculative any-order sampling: all open positions drafted in parallel, then verified in one causal pass, losslessly.

Source: Pannatier et al. 2024 (σ-GPT), arXiv 2404.09562, section 4 (token-based rejection sampling); the rule of
acceptance: Leviathan et al. 2022, arXiv 2211.17192, section 2.3.
Differs: the first draft of a round is its own verification and is always kept, and a draft of one token is not
verified; so a text never costs more evaluations than it has tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from armillary.contracts import AnyOrder, Given, State
from armillary.corruption.categorical import draw
from armillary.registry import Part
from armillary.samplers._parallel import possible, tempered, uniform


class Speculative(Part):
    """What is given is read first, then the other positions in an order drawn for each row.

    drafts: False writes one token a pass, and follows the same law. Temperature 0 takes the likeliest token.
    A position that is still open holds the id V. n_evaluations counts drafts and verifications.
    """

    views: ClassVar[tuple[str, ...]] = ("any_order",)

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    drafts: bool = True

    def run(self, view: AnyOrder, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        n_rows, n_tokens = given.tokens.shape
        places = torch.arange(n_tokens, device=given.tokens.device)
        rank = 1 + uniform(generators, (n_tokens,), given.tokens.device)
        order = torch.where(given.is_given, places / n_tokens, rank).argsort(dim=1, stable=True)
        tokens = torch.where(given.is_given, given.tokens, view.n_vocab)
        n_known, n_asked = given.is_given.sum(1), 0
        yield State(tokens.clone(), 0.0)
        advance = self._draft_and_verify if self.drafts else self._write_one
        while bool((n_known < n_tokens).any()):
            rows = (n_known < n_tokens).nonzero()[:, 0]
            u = uniform([generators[row] for row in rows.tolist()], (n_tokens, 3), tokens.device)
            tokens[rows], n_known[rows], n_more = advance(view, tokens[rows], order[rows], n_known[rows], u)
            n_asked += n_more
            yield State(tokens.clone(), n_asked / n_rows)

    def _write_one(
        self,
        view: AnyOrder,
        tokens: Int[Tensor, "B L"],
        order: Int[Tensor, "B L"],
        n_known: Int[Tensor, " B"],
        u: Float[Tensor, "B L 3"],
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"], int]:
        """(tokens, how many are known now, rows that the network was asked for)."""
        is_next = torch.arange(order.shape[1], device=order.device) == n_known[:, None]
        written = draw(self._p(view.verify(tokens, order, is_next)), u[:, 0, 0])
        return tokens.scatter(1, order[is_next][:, None], written[:, None]), n_known + 1, tokens.shape[0]

    def _draft_and_verify(
        self,
        view: AnyOrder,
        tokens: Int[Tensor, "B L"],
        order: Int[Tensor, "B L"],
        n_known: Int[Tensor, " B"],
        u: Float[Tensor, "B L 3"],
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"], int]:
        """As above. p is what a draft was drawn from, q what it should have been drawn from."""
        slots = torch.arange(order.shape[1], device=order.device)
        is_open, is_checked = slots >= n_known[:, None], slots > n_known[:, None]
        p = self._p(view.draft(tokens, order, n_known))
        read = tokens.gather(1, order)
        read[is_open] = draw(p, u[..., 0][is_open])
        q = self._p(view.verify(tokens.scatter(1, order, read), order, is_checked))
        p, drafted = p[is_checked[is_open]], read[is_checked][:, None]
        is_kept = torch.ones_like(is_checked)
        is_kept[is_checked] = u[..., 1][is_checked] < (q.gather(1, drafted) / p.gather(1, drafted)).squeeze(1)
        n_kept = is_kept.long().cumprod(1).sum(1)
        is_redrawn = slots == n_kept[:, None]  # the first that was refused, in rows where one was
        refused = is_redrawn[is_checked]
        read[is_redrawn] = draw(_excess(q[refused], p[refused]), u[..., 2][is_redrawn])
        n_known = (n_kept + 1).clamp(max=order.shape[1])
        read[slots >= n_known[:, None]] = view.n_vocab
        n_asked = tokens.shape[0] + int(is_checked.any(1).sum())
        return tokens.scatter(1, order, read), n_known, n_asked

    def _p(self, log_p: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        return tempered(possible(log_p).double(), self.temperature).exp()


def _excess(q: Float[Tensor, "n V"], p: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """(q - p)+, in no scale. Rounding may leave nothing of it where q and p are equal, and then q is as good."""
    excess = (q - p).clamp(min=0)
    return torch.where(excess.sum(1, keepdim=True) > 0, excess, q)
