"""Attention within a radius of places of the row: a sight narrowed to a band, and the ring that decoding keeps.

Source: sliding windows, Beltagy et al. 2020, arXiv 2004.05150.
Differs: the scores outside the band are computed and masked: rows here are a few radii long. A row that is read in
another order is near by its positions, not by its places.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armillary.contracts import Cache, Layout
from armillary.nn.cache import AttentionState
from armillary.nn.sight import Sight


class RingState(AttentionState):
    """The last r tokens' keys and values, that of place p in slot p mod r; the last slot takes what is not kept."""

    def exchange(
        self,
        keys: Float[Tensor, "B H L E"],
        values: Float[Tensor, "B H L E"],
        rows: Int[Tensor, " B"] | None,
        slots: Int[Tensor, "B L"],
        n_seen: int,
    ) -> tuple[Float[Tensor, "B H S E"], Float[Tensor, "B H S E"]]:
        """Writes the new tokens into their slots; what the n_seen slots held before, and the new ones behind it."""
        seen = slice(None) if rows is None else rows
        held = (self.keys[seen, :, :n_seen], self.values[seen, :, :n_seen])
        found = torch.cat([held[0], keys], dim=2), torch.cat([held[1], values], dim=2)
        super().exchange(keys, values, rows, slots, 0)
        return found


def within(sight: Sight, radius: int, cache: Cache | None = None) -> Sight:
    """The sight of who is seen at most `radius` places away."""
    length, device = sight.positions.shape[1], sight.positions.device
    if cache is not None:
        return _within_ring(sight, radius, cache, length, device)
    layout = sight.layout
    has_own_order = layout.target_positions is not None
    if layout.direction != "blocks" and length <= radius + 1 and not has_own_order:
        return sight
    places = sight.positions if has_own_order else _places(layout, length, device)
    gap = places[:, :, None] - places[:, None, :]
    mask = (gap.abs() <= radius)[:, None]
    if sight.mask is not None:
        mask = mask & sight.mask
    elif sight.is_causal:
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return replace(sight, mask=mask, is_causal=False)


def _places(layout: Layout, length: int, device: torch.device) -> Int[Tensor, "#B L"]:
    """Of each position in its row. A noisy block stands behind the real clean positions before it."""
    if layout.direction != "blocks":
        return torch.arange(length, device=device)[None]
    n = length // 2
    place = torch.arange(n, device=device)
    segments = layout.segments
    if segments is None:
        return torch.cat([place, place])[None]
    assert layout.block is not None
    start = place // layout.block * layout.block
    noisy, clean = ((half >= 0).long().cumsum(1) - (half >= 0).long() for half in segments.chunk(2, dim=1))
    return torch.cat([clean[:, start] + noisy - noisy[:, start], clean], dim=1)


def _within_ring(sight: Sight, radius: int, cache: Cache, length: int, device: torch.device) -> Sight:
    before = cache.row_lengths.to(device, non_blocking=True)[:, None]
    new = before + torch.arange(length, device=device)
    slot = torch.arange(radius, device=device)
    held = before - 1 - (before - 1 - slot) % radius  # the last place that was written there; negative: none
    keys = torch.cat([held, new], dim=1)
    gap = new[:, :, None] - keys[:, None, :]
    seen = (gap.abs() <= radius) & (keys >= 0)[:, None]
    if sight.layout.direction == "causal":
        seen = seen & (gap >= 0)
    segments, after = sight.layout.segments, before + length
    stays = torch.full_like(new, sight.keeps, dtype=torch.bool)
    if segments is not None:
        after = before + (segments >= 0).sum(1, keepdim=True)
        stays = stays & (segments >= 0)
        # Padding sees padding, itself at least: a row of the softmax without a key would be NaN.
        seen[:, :, radius:] &= segments[:, :, None] == segments[:, None, :]
    slots = torch.where(stays & (new >= after - radius), new % radius, radius)
    return replace(sight, mask=seen[:, None], is_causal=False, slots=slots, n_seen=radius)
