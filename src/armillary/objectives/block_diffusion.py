"""Block diffusion: blocks from left to right, the tokens of each restored in parallel from the blocks before it.

Source: Arriola et al. 2025 (BD3-LM), arXiv 2503.09573, eq. 8 and appendix B.6 (noisy and clean text in one pass).
Differs: each block hides k of its n tokens, k uniform, in place of a time; levels are independent from block to block.
Blocks of one token are the chain rule, and the likelihood is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.corruption.absorbing import Absorbing
from armillary.objectives import _masking
from armillary.objectives._masking import Masking, layout_of, twice, undecided
from armillary.records import Kind
from armillary.registry import Part


class BlockDiffusion(Part):
    """block: tokens restored together. pairs: each set of hidden tokens with its complement, two passes a step."""

    block: int = Field(default=16, ge=1)
    pairs: bool = True

    @property
    def kind(self) -> Kind:
        return "exact" if self.block == 1 else "monte_carlo_bound"

    @property
    def views(self) -> tuple[str, ...]:
        return ("blocks",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def n_extra_embeddings(self) -> int:
        return 1

    def corruption(self, n_vocab: int) -> Absorbing:
        return Absorbing(n_vocab)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        n_blocks = -(-n_tokens // self.block)
        return {
            "level": _masking.stratified(n_rows, generator, n_blocks),
            "order": _masking.random_order(n_rows, n_tokens, generator),
        }

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        total, nats = self._weighted_nats(network, batch, self._masking(undecided(batch), draws))
        return Loss(total, nats.sum(), batch.scored[:, 1:].sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        _, nats = self._weighted_nats(network, batch, self._masking(undecided(batch), draws))
        return nats.unflatten(0, (-1, batch.tokens.shape[0])).sum(0)

    def score_where(
        self, network: Network, batch: Batch, hidden: Bool[Tensor, "B T"], asked: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """hidden holds within a block; every block sees all the blocks before it, whatever is hidden there."""
        return self._weighted_nats(network, batch, Masking(hidden, asked.float()))[1]

    def _masking(self, open_: Bool[Tensor, "B T"], draws: dict[str, Tensor]) -> Masking:
        """Every block is a row of its own."""
        n_tokens, pairs = open_.shape[1], self.pairs and self.block > 1
        short = -n_tokens % self.block
        open_ = torch.nn.functional.pad(open_, (0, short))
        order = torch.nn.functional.pad(draws["order"], (0, short), value=n_tokens)
        apart = (-1, self.block)
        masking = _masking.by_count(open_.reshape(apart), order.reshape(apart), draws["level"].reshape(-1), pairs)
        width = open_.shape[1]
        return Masking(*(x.reshape(-1, width)[:, :n_tokens] for x in (masking.hidden, masking.weight)))

    def _weighted_nats(
        self, network: Network, batch: Batch, masking: Masking
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "R T"]]:
        tokens, layout = batch.tokens[:, 1:], layout_of(batch)
        if masking.hidden.shape[0] != tokens.shape[0]:
            tokens, layout = torch.cat([tokens, tokens]), twice(layout)
        noisy = torch.where(masking.hidden, network.n_vocab, tokens)
        layout = Layout("blocks", segments=layout.segments, positions=layout.positions, block=self.block)
        rows = network.hidden(torch.cat([noisy, tokens], dim=1), layout)[:, : tokens.shape[1]]
        return _masking.weighted_nats(network, rows, tokens, masking.weight)
