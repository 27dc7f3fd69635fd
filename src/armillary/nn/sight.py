"""Who sees whom in one batch: a layout and a cache turned into one boolean mask, built once and shared by all layers.

Source: block-causal two-stream mask, Arriola et al. 2025, arXiv 2503.09573, section 3.1 and appendix B.6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Cache, Layout


@dataclass(frozen=True)
class Sight:
    """positions: place of each token, for positional encodings, one row for all or one a row.
    is_causal and mask: as scaled_dot_product_attention takes them; True is seen. Both only where the mask is a bias
    that is added to the scores (nn/alibi.py), -inf where nothing is seen.
    layout: what all this was made of, for mixers that are no attention; by blocks, its segments are those of both
    halves.
    With a cache: slots, where each token's state is written (the trash slot for padding); n_seen, how many slots are
    looked at; rows, which rows of the cache these are, None for all; keeps, whether what is read stays in the cache.
    """

    positions: Int[Tensor, "#B L"]
    is_causal: bool
    mask: Bool[Tensor, "#B 1 L S"] | Float[Tensor, "#B H L S"] | None
    layout: Layout
    slots: Int[Tensor, "B L"] | None = None
    n_seen: int = 0
    rows: Int[Tensor, " B"] | None = None
    keeps: bool = True


def look(layout: Layout, n_positions: int, device: torch.device, cache: Cache | None = None) -> Sight:
    """The sight of a batch of L = n_positions. With a cache, tokens are appended behind what each row holds."""
    if cache is not None:
        return _look_into_cache(layout, n_positions, device, cache)
    n = n_positions // 2 if layout.direction == "blocks" else n_positions
    if layout.segments is not None and layout.segments.shape[1] != n_positions:
        layout = replace(layout, segments=torch.cat([layout.segments, layout.segments], dim=1))
    positions = layout.positions
    if positions is None:
        positions = torch.arange(n, device=device)[None]
    if layout.direction == "blocks" and positions.shape[1] == n:
        positions = torch.cat([positions, positions], dim=1)
    if layout.segments is None and layout.direction != "blocks":
        return Sight(positions, is_causal=layout.direction == "causal", mask=None, layout=layout)
    mask = _seen(layout, n_positions, device)[None]
    if layout.segments is not None:
        segments = layout.segments
        # Padding sees padding (-1 equals -1): a row of the softmax without a key would be NaN.
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return Sight(positions, is_causal=False, mask=mask[:, None], layout=layout)


def _seen(layout: Layout, n_positions: int, device: torch.device) -> Bool[Tensor, "L L"]:
    place = torch.arange(n_positions, device=device)
    if layout.direction == "full":
        return torch.ones(n_positions, n_positions, dtype=torch.bool, device=device)
    if layout.direction == "causal":
        return place[:, None] >= place[None, :]
    assert layout.block is not None, "blocks need a block length"
    is_clean = place >= n_positions // 2
    block = (place % (n_positions // 2)) // layout.block
    query, key = block[:, None], block[None, :]
    query_clean, key_clean = is_clean[:, None], is_clean[None, :]
    within_noisy = ~query_clean & ~key_clean & (query == key)
    noisy_to_clean = ~query_clean & key_clean & (key < query)
    within_clean = query_clean & key_clean & (key <= query)
    return within_noisy | noisy_to_clean | within_clean


def _look_into_cache(layout: Layout, n_positions: int, device: torch.device, cache: Cache) -> Sight:
    assert layout.direction != "blocks", "decoding by blocks is `full` over a cache of finished blocks"
    before = cache.row_lengths.to(device, non_blocking=True)[:, None]
    places = before + torch.arange(n_positions, device=device)
    if cache.is_seen_whole:
        return _look_at_all_slots(layout, places, cache)
    slots = places
    n_new: Int[Tensor, " R"] | int = n_positions
    if layout.segments is not None:
        is_real = layout.segments >= 0
        slots = torch.where(is_real, places, cache.capacity)
        n_new = is_real.sum(1).cpu()
    after = cache.row_lengths + n_new
    n_seen = int(after.max())
    positions = layout.positions if layout.positions is not None else places.clamp(max=cache.capacity - 1)
    where = {"slots": slots, "n_seen": n_seen, "rows": cache.rows, "layout": layout, "keeps": cache.keeps}
    rows_agree = layout.segments is None and int(after.min()) == n_seen
    if rows_agree and (n_positions == 1 or layout.direction == "full"):
        return Sight(positions, is_causal=False, mask=None, **where)
    if rows_agree and n_seen == n_positions:
        return Sight(positions, is_causal=True, mask=None, **where)
    key = torch.arange(n_seen, device=device)
    limit = places if layout.direction == "causal" else (after.to(device)[:, None] - 1).expand_as(places)
    return Sight(positions, is_causal=False, mask=(key <= limit[:, :, None])[:, None], **where)


def _look_at_all_slots(layout: Layout, places: Int[Tensor, "B L"], cache: Cache) -> Sight:
    assert layout.segments is None and layout.direction == "causal", "a step of decoding: one new token a row"
    seen = torch.arange(cache.capacity, device=places.device) <= places[:, :, None]
    positions = layout.positions if layout.positions is not None else places
    return Sight(positions, is_causal=False, mask=seen[:, None], layout=layout, slots=places, n_seen=cache.capacity)
