"""Blocks one after the other, with the activations kept or computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armillary.contracts import Cache
from armillary.nn.cache import DecodingCache


class Stack(nn.ModuleList):
    """A block is called as block(x, *context, state). `recomputes` (activation checkpointing, arXiv 1604.06174) is set
    by the training loop: it trades about a third more compute for activations of one block instead of all."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(blocks)
        self.recomputes = False

    def forward(self, x: Float[Tensor, "B L D"], cache: Cache | None, *context: Any) -> Float[Tensor, "B L D"]:
        for index, block in enumerate(self):
            if self.recomputes and cache is None and self.training:
                x = checkpoint(block, x, *context, None, use_reentrant=False)
            else:
                x = block(x, *context, cache.layers[index] if cache is not None else None)
        return x

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        """What the blocks keep from token to token, of empty rows."""
        blocks: Any = self
        layers = [block.allocate(n_rows, capacity, device=device, dtype=dtype) for block in blocks]
        return DecodingCache.of(layers, n_rows, capacity)


def recompute(network: nn.Module, wanted: bool) -> None:
    """Whether the stacks of a network compute their activations again in the backward pass."""
    for module in network.modules():
        if isinstance(module, Stack):
            module.recomputes = wanted
