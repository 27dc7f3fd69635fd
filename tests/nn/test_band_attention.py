"""Windowed attention: a place sees what is at most r places away, in one pass and through the ring."""

from __future__ import annotations

import pytest
import torch

from armillary.contracts import Layout
from armillary.nn.attention import Attention
from armillary.nn.band_attention import RingState, within
from armillary.nn.cache import DecodingCache
from armillary.nn.sight import look

B, L, D, H, R = 3, 13, 8, 2, 3


@pytest.fixture
def attention():
    torch.manual_seed(0)
    layer = Attention(D, H, bias=False, dropout=0.0).double().requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.fixture
def x():
    return torch.randn(B, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attended(layer, x, layout, radius=R, cache=None):
    sight = within(look(layout, x.shape[1], x.device, cache), radius, cache)
    out = layer(x, sight, state=None if cache is None else cache.layers[0])
    if cache is not None:
        for slots in sight.slots:  # two tokens in one slot would race on a GPU
            kept = slots[slots < radius]
            assert kept.unique().numel() == kept.numel()
        cache.advance(x.shape[1] if layout.segments is None else (layout.segments >= 0).sum(1))
    return out


def one_by_one(layer, x, seen):
    """Each query alone with the keys that `seen` (L, L) gives it."""
    q, k, v = (layer._heads(part(x)) for part in (layer.q, layer.k, layer.v))
    out = []
    for t, keys in enumerate(seen):
        p = torch.softmax((q[:, :, t, None] * k[:, :, keys]).sum(-1) * (D // H) ** -0.5, -1)
        out.append((p[..., None] * v[:, :, keys]).sum(2))
    return layer.o(torch.stack(out, 2).transpose(1, 2).flatten(2))


def gaps(length):
    return torch.arange(length)[:, None] - torch.arange(length)


@pytest.mark.parametrize("radius", [1, R, L - 2, L - 1, 40])
@pytest.mark.parametrize("direction", ["causal", "full"])
def test_the_window_is_r_places_on_each_side_or_behind(attention, x, direction, radius):
    gap = gaps(L)
    seen = (gap.abs() <= radius) & ((gap >= 0) | (direction == "full"))
    found = attended(attention, x, Layout(direction), radius)
    torch.testing.assert_close(found, one_by_one(attention, x, seen), atol=1e-12, rtol=0)


def test_documents_of_a_row_stay_apart(attention, x):
    segments = torch.tensor([0] * 6 + [1] * 5 + [-1] * 2).expand(B, -1)
    found = attended(attention, x, Layout("full", segments=segments))
    seen = (gaps(L).abs() <= R) & (segments[0, :, None] == segments[0])
    torch.testing.assert_close(found[:, :11], one_by_one(attention, x, seen)[:, :11], atol=1e-12, rtol=0)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("length", [R + 1, L])
def test_a_row_in_another_order_is_near_by_its_positions(attention, x, length):
    order = torch.stack([torch.randperm(L, generator=torch.Generator().manual_seed(i)) for i in range(B)])[:, :length]
    layout, x = Layout("causal", positions=order, target_positions=order.roll(-1, 1)), x[:, :length]
    found = attended(attention, x, layout)
    for row, places in enumerate(order):
        seen = (gaps(length) >= 0) & ((places[:, None] - places).abs() <= R)
        torch.testing.assert_close(found[row], one_by_one(attention, x, seen)[row], atol=1e-12, rtol=0)


def test_a_noisy_place_is_as_near_as_the_clean_one_it_stands_for(attention, x):
    block, both = 4, torch.cat([x + 1, x], 1)
    found = attended(attention, both, Layout("blocks", block=block))
    place = torch.arange(L).repeat(2)
    is_clean, number = torch.arange(2 * L) >= L, place // block
    visible = torch.where(
        is_clean,
        torch.where(is_clean[:, None], number <= number[:, None], number < number[:, None]),
        ~is_clean[:, None] & (number == number[:, None]),
    )
    seen = visible & ((place[:, None] - place).abs() <= R)
    torch.testing.assert_close(found, one_by_one(attention, both, seen), atol=1e-12, rtol=0)


@pytest.mark.parametrize("radius", [1, 2, R, 5, 20])
def test_the_ring_gives_what_the_whole_row_gives(attention, x, radius):
    """A prompt of mixed lengths, longer and shorter than the ring; tokens one by one; a pass that is not kept."""
    ring = RingState.allocate((B, H, radius, D // H), device=x.device, dtype=x.dtype)
    cache = DecodingCache.of([ring], B, L)
    lengths = torch.tensor([5, 2, 8])
    segments = torch.where(torch.arange(8) < lengths[:, None], 0, -1)
    prompt = attended(attention, x[:, :8], Layout("causal", segments=segments), radius, cache)
    whole = attended(attention, x, Layout("causal"), radius)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(prompt[row, :n], whole[row, :n], atol=1e-12, rtol=0)
    for step in range(5):
        places = (lengths + step)[:, None, None].expand(-1, -1, D)
        attended(attention, x.gather(1, places) + 9, Layout("full"), radius, cache.tentative())
        seen_whole = cache.whole() if step % 2 else cache
        found = attended(attention, x.gather(1, places), Layout("causal"), radius, seen_whole)
        torch.testing.assert_close(found, whole.gather(1, places), atol=1e-12, rtol=0)


def test_new_tokens_see_the_ring_and_one_another(attention, x):
    ring = RingState.allocate((B, H, R, D // H), device=x.device, dtype=x.dtype)
    cache = DecodingCache.of([ring], B, L)
    parts = x.split([4, 5, L - 9], dim=1)
    found = torch.cat([attended(attention, part, Layout("full"), R, cache) for part in parts], 1)
    block = torch.bucketize(torch.arange(L), torch.tensor([4, 9]), right=True)
    seen = (gaps(L).abs() <= R) & (block[:, None] >= block)
    torch.testing.assert_close(found, one_by_one(attention, x, seen), atol=1e-12, rtol=0)
