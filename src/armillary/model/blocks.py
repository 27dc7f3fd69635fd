"""The view of a model that writes block after block: see contracts.Blocks.

Source: Arriola et al. 2025 (BD3-LM), arXiv 2503.09573, algorithm 2 (finished blocks stay in the cache).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Cache, Layout
from armillary.corruption.absorbing import Absorbing
from armillary.model.denoise import CorruptionView
from armillary.model.network import LanguageNetwork
from armillary.objectives.block_diffusion import BlockDiffusion


class CachedBlocks:
    """Finished blocks are read once, into a cache, and the block in hand is restored behind them."""

    def __init__(
        self, network: LanguageNetwork, objective: BlockDiffusion, forbidden: Collection[int] = frozenset()
    ) -> None:
        self.network, self.block, self.forbidden = network, objective.block, frozenset(forbidden)
        self.corruption = objective.corruption(network.n_vocab)
        self._cache: Cache | None = None

    def open(self, n_rows: int, n_tokens: int) -> _CurrentBlock:
        self._cache = self.network.allocate(n_rows, n_tokens)
        return _CurrentBlock(self.network, self._cache, self.corruption, self.forbidden)

    @torch.inference_mode()
    def close_block(self, tokens: Int[Tensor, "B b"]) -> None:
        assert self._cache is not None, "close_block comes after open"
        self.network.hidden(tokens, Layout("full"), cache=self._cache)


class _CurrentBlock(CorruptionView):
    """The block behind what the cache holds. It is read with the cache, and not kept."""

    def __init__(
        self, network: LanguageNetwork, cache: Cache, corruption: Absorbing, forbidden: Collection[int]
    ) -> None:
        super().__init__(corruption, forbidden)
        self.network, self._cache = network, cache

    def _log_p0(
        self, rows: Int[Tensor, " b"], tokens: Int[Tensor, "b L"], t: Float[Tensor, " b"], where: Bool[Tensor, "b L"]
    ) -> Float[Tensor, "n V"]:
        # All rows in order need no gather of the cache; a part of them is copied out of it, layer by layer.
        is_all = rows.numel() == self._cache.lengths.numel()
        cache = (self._cache if is_all else self._cache.at(rows)).tentative()
        hidden = self.network.hidden(tokens, Layout("full"), cache=cache)
        return self.network.head.log_p(hidden[where])
