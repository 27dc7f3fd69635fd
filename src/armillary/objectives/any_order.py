"""Any-order autoregression: a causal network reads the tokens of a row in a random order, and each position is told
which one it predicts; one pass gives the exact likelihood of an order.

Source: Pannatier et al. 2024 (σ-GPT), arXiv 2404.09562, section 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.objectives import _masking
from armillary.objectives._masking import undecided
from armillary.records import Kind
from armillary.registry import Part


class AnyOrder(Part):
    """What is given comes first, in its own order, then the other positions in a random one."""

    @property
    def kind(self) -> Kind:
        return "exact"

    @property
    def views(self) -> tuple[str, ...]:
        return ("any_order",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"target_positions"})

    @property
    def n_extra_embeddings(self) -> int:
        return 0

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"order": _masking.random_order(n_rows, n_tokens, generator)}

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        where = undecided(batch)
        hidden, targets, scored = self._read(network, batch, where, draws["order"])
        total, nats = network.head.weighted_nll(hidden[scored], targets[scored])
        return Loss(total, nats.sum(), batch.scored[:, 1:].sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        """Of the order that was drawn."""
        return self.score_in_order(network, batch, draws["order"])

    def score_in_order(self, network: Network, batch: Batch, rank: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Exact nats of each token of [1:], revealed by rising rank; zero where it is given."""
        where = undecided(batch)
        hidden, targets, scored = self._read(network, batch, where, rank)
        found = network.head.nll(hidden[scored], targets[scored])
        nats = torch.zeros(scored.shape, dtype=found.dtype, device=found.device)
        nats[scored] = found
        return nats.scatter(1, _sequence(where, rank, batch.segments), nats)

    def _read(
        self, network: Network, batch: Batch, where: Bool[Tensor, "B T"], rank: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """(hidden states, targets, which of these are scored), all in the order of reading.

        The first token of the row is read first, and predicts the first of the order.
        """
        sequence = _sequence(where, rank, batch.segments)
        targets = batch.tokens[:, 1:].gather(1, sequence)
        inputs = torch.cat([batch.tokens[:, :1], targets[:, :-1]], dim=1)
        layout = reading(sequence, batch.segments, batch.positions)
        return network.hidden(inputs, layout), targets, where.gather(1, sequence)


def reading(
    sequence: Int[Tensor, "B T"],
    segments: Int[Tensor, "B T1"] | None = None,
    positions: Int[Tensor, "B T1"] | None = None,
) -> Layout:
    """The layout of a row read in this order of the places 0 .. T-1 of [1:], behind its first token."""
    if positions is None:
        positions = torch.arange(sequence.shape[1] + 1, device=sequence.device).expand(sequence.shape[0], -1)
    to = positions.gather(1, sequence + 1)
    at = torch.cat([positions[:, :1], to[:, :-1]], dim=1)
    inputs = None
    if segments is not None:
        inputs = torch.cat([segments[:, :1], segments.gather(1, sequence + 1)[:, :-1]], dim=1)
    return Layout("causal", segments=inputs, positions=at, target_positions=to)


def _sequence(
    where: Bool[Tensor, "B T"], rank: Int[Tensor, "B T"], segments: Int[Tensor, "B T1"] | None
) -> Int[Tensor, "B T"]:
    """Places in the order of reading: the given ones first, then the others by rising rank; isolated documents, and
    within a row they are isolated wherever there are segments, one after the other, padding last."""
    n = where.shape[1]
    places = torch.arange(n, device=where.device).expand_as(rank)
    key = torch.where(where, rank + n, places)
    if segments is not None:
        document = torch.where(segments < 0, n, segments)[:, 1:]
        key = key + 2 * n * document
    return key.argsort(dim=1, stable=True)
