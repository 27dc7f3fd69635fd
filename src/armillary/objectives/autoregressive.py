"""Next-token prediction: the likelihood is exact.

Source: the chain rule; label smoothing: Szegedy et al. 2015, arXiv 1512.00567 (never in nats).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.records import Kind
from armillary.registry import Part


class Autoregressive(Part):
    """Inputs are tokens [:-1], targets tokens [1:], both under a causal layout.

    hidden_inputs: share of the inputs that training replaces by MASK (arXiv 2510.04071), for an auxiliary term; scores
    hide none.
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    hidden_inputs: float = Field(0.0, ge=0, lt=1)

    @property
    def kind(self) -> Kind:
        return "exact"

    @property
    def views(self) -> tuple[str, ...]:
        return ("next_token",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def n_extra_embeddings(self) -> int:
        return 1 if self.hidden_inputs else 0

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"u": torch.rand(n_rows, n_tokens, generator=generator)} if self.hidden_inputs else {}

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        inputs = batch.tokens[:, :-1]
        if self.hidden_inputs:
            inputs = torch.where(draws["u"] < self.hidden_inputs, network.n_vocab, inputs)
        hidden = network.hidden(inputs, _layout(batch))
        scored = batch.scored[:, 1:]
        rows, targets = hidden.flatten(0, 1), batch.tokens[:, 1:].flatten()
        weights = scored.flatten().to(rows.dtype)
        total, nats = network.head.weighted_nll(rows, targets, weights, self.label_smoothing)
        return Loss(total, (nats * weights).sum(), scored.sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        hidden = network.hidden(batch.tokens[:, :-1], _layout(batch))
        scored = batch.scored[:, 1:]
        nats = network.head.nll(hidden[scored], batch.tokens[:, 1:][scored])
        out = torch.zeros(scored.shape, device=nats.device, dtype=nats.dtype)
        out[scored] = nats
        return out


def _layout(batch: Batch) -> Layout:
    def inputs(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, :-1]

    return Layout("causal", segments=inputs(batch.segments), positions=inputs(batch.positions))
