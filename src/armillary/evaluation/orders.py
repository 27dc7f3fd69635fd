"""Exact likelihoods of objectives that reveal tokens in any order: the chain rule, in one order.

Source: Uria et al. 2014, arXiv 1310.1757, section 3; Hoogeboom et al. 2021 (ARDM), arXiv 2110.02037, section 3; the
adaptive order: Kim et al. 2025, arXiv 2502.06768, section 4.
Differs: an adaptive order is exact too, as the position that comes next is a function of what is revealed, and never of
the token it hides: Σ p over all texts is 1. Were it chosen by how sure the model is of the true token, it would not be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Batch, Layout, Network, OrderedObjective
from armillary.objectives._masking import layout_of, random_order, undecided
from armillary.records import Kind
from armillary.refusal import Refusal, nearest

Order = Literal["left_to_right", "random", "adaptive"]
ORDERS: tuple[Order, ...] = ("left_to_right", "random", "adaptive")

OFFERED: dict[str, tuple[Order, ...]] = {
    "next_token": ("left_to_right",),
    "absorbing": ORDERS,
    "blocks": ORDERS,
    "any_order": ("left_to_right", "random"),
    "uniform": (),
    "latent": (),
}
"""Orders in which a model of that view has an exact likelihood."""

WHY_NOT = {
    "next_token": "an autoregressive model reads from left to right only",
    "any_order": "one pass gives a whole order only where the order is known before the tokens are",
    "uniform": "nothing says which tokens of a uniform corruption are noise, so that none is revealed before another",
    "latent": "all tokens of a row come from one latent, and its law is an integral over latents",
}

USUAL = {
    "next_token": "left_to_right",
    "absorbing": "mean over orders",
    "blocks": "mean over orders",
    "any_order": "random",
    "uniform": "none",
    "latent": "none",
}
"""The order of an objective's own score. A bound of a diffusion that hides tokens is a mean over all orders."""


@dataclass(frozen=True)
class InOrder:
    """An objective, scored exactly in one order; `measure` takes it for an objective.

    left_to_right; random, each row in an order of its own, the same for every model; adaptive, the position whose
    likeliest token is likeliest comes next, the leftmost of equals. Blocks go from left to right, all at once, and the
    order holds within each. batch_rows: rows the network sees at once. tick: told how many of them were done.

    Cost: a row of the network for every hidden token of a row (for the longest block's); one for a causal network.
    """

    objective: Any
    order: Order
    batch_rows: int = 16
    tick: Callable[[int], None] = lambda n_rows: None

    kind: ClassVar[Kind] = "exact"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise Refusal(f"--exact {self.order}: no such order; {nearest(self.order, ORDERS)}")
        view = self.judge.views[0]
        if self.order not in OFFERED[view]:
            instead = f"take {' or '.join(OFFERED[view])}" if OFFERED[view] else "leave --exact out, for a bound"
            raise Refusal(f"--exact {self.order}: {WHY_NOT[view]}; {instead}")

    @property
    def judge(self) -> Any:
        return judge_of(self.objective)

    @property
    def is_one_pass(self) -> bool:
        return not isinstance(self.judge, OrderedObjective)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        if self.order == "random":
            return {"order": random_order(n_rows, n_tokens, generator)}
        return {"order": torch.arange(n_tokens).expand(n_rows, -1)}

    def n_rows(self, batch: Batch) -> int:
        """Rows the network is asked for."""
        if self.is_one_pass:
            return batch.tokens.shape[0]
        where = undecided(batch)
        return int((_rank(where, torch.zeros_like(where, dtype=torch.long), self._block(where)) + 1).amax(1).sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        """Nats of each token of [1:], given those before it in the order; zero where it is context."""
        if self.is_one_pass:
            self.tick(batch.tokens.shape[0])
            if hasattr(self.judge, "score_in_order"):
                return self.judge.score_in_order(network, batch, draws["order"])
            return self.judge.score(network, batch, {})
        if self.order == "adaptive":
            return self._adaptive(network, batch)
        return self._one_by_one(network, batch, draws["order"])

    def _block(self, where: Bool[Tensor, "B T"]) -> int:
        return getattr(self.judge, "block", where.shape[1])

    def _one_by_one(self, network: Network, batch: Batch, order: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """All steps of all rows are known beforehand, so they go in batches."""
        where = undecided(batch)
        rank = _rank(where, order, self._block(where))
        steps = rank.amax(1) + 1
        rows = torch.arange(len(steps), device=steps.device).repeat_interleave(steps)
        step = torch.cat([torch.arange(n, device=steps.device) for n in steps.tolist()])
        nats = torch.zeros(where.shape, dtype=torch.float64)
        for first in range(0, len(rows), self.batch_rows):
            row, now = rows[first : first + self.batch_rows], step[first : first + self.batch_rows, None]
            found = self.judge.score_where(network, batch.rows(row), rank[row] >= now, rank[row] == now)
            nats.index_add_(0, row.cpu(), found.cpu().double())
            self.tick(len(row))
        return nats

    def _adaptive(self, network: Network, batch: Batch) -> Float[Tensor, "B T"]:
        hidden = undecided(batch)
        nats = torch.zeros(hidden.shape, dtype=torch.float64)
        while hidden.any():
            rows = hidden.any(1).nonzero()[:, 0]
            part, unseen = batch.rows(rows), hidden[rows]
            likeliest, own = self._look(network, part, unseen)
            sure = torch.full(unseen.shape, -torch.inf, dtype=likeliest.dtype, device=unseen.device)
            sure[unseen] = likeliest
            chosen = unseen & _first_largest(sure, self._block(unseen))
            found = torch.zeros_like(sure)
            found[chosen] = -own[chosen[unseen]]
            nats.index_add_(0, rows.cpu(), found.cpu().double())
            hidden[rows] = unseen & ~chosen
            self.tick(len(rows))
        return nats

    def _look(
        self, network: Network, batch: Batch, hidden: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Of each hidden position: log_p of its likeliest token, which alone decides the order, and of its own."""
        tokens, layout = batch.tokens[:, 1:], layout_of(batch)
        inputs = torch.where(hidden, self.judge.corruption(network.n_vocab).mask, tokens)
        if hasattr(self.judge, "block"):
            inputs = torch.cat([inputs, tokens], dim=1)
            layout = Layout("blocks", layout.segments, layout.positions, block=self.judge.block)
        rows = network.hidden(inputs, layout)[:, : tokens.shape[1]][hidden]
        found = network.head.reduce(rows, _likeliest_and_own, tokens[hidden])
        return found[:, 0], found[:, 1]


def judge_of(objective: Any) -> Any:
    """The objective a model is judged by: of several at once, the first."""
    return getattr(objective, "first", objective)


def order_of(objective: Any) -> str:
    """What a protocol says of the order in which tokens are revealed when this is scored."""
    judge = judge_of(getattr(objective, "objective", objective))
    order = objective.order if isinstance(objective, InOrder) else USUAL[judge.views[0]]
    block = getattr(judge, "block", None)
    if block is None:
        return order
    return "left_to_right" if block == 1 else f"blocks of {block}, {order}"


def _rank(where: Bool[Tensor, "B T"], order: Int[Tensor, "B T"], block: int) -> Int[Tensor, "B T"]:
    """When each position is revealed: its rank among the hidden ones of its block, -1 where it is given."""
    n_rows, n_tokens = where.shape
    key = torch.where(where, order, n_tokens)
    key = torch.nn.functional.pad(key, (0, -n_tokens % block), value=n_tokens).reshape(n_rows, -1, block)
    rank = key.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    return torch.where(where, rank.reshape(n_rows, -1)[:, :n_tokens], -1)


def _first_largest(values: Float[Tensor, "B T"], block: int) -> Bool[Tensor, "B T"]:
    """The largest of each block, the leftmost of equals."""
    n_rows, n_tokens = values.shape
    blocks = torch.nn.functional.pad(values, (0, -n_tokens % block), value=-torch.inf).reshape(n_rows, -1, block)
    largest = torch.nn.functional.one_hot(blocks.argmax(dim=2), block).bool()
    return largest.reshape(n_rows, -1)[:, :n_tokens]


def _likeliest_and_own(log_p: Float[Tensor, "n V"], tokens: Int[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    return torch.stack([log_p.amax(1), log_p.gather(1, tokens[:, None]).squeeze(1)], dim=1)
