"""The convolution is torch's where all is seen, and sees nothing that a layout hides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.contracts import Layout
from armillary.nn.cache import DecodingCache, MixerState
from armillary.nn.convolution import DepthwiseConvolution
from armillary.nn.sight import look

B, L, D = 3, 11, 4
SHAPES = [(3, 1), (3, 2), (5, 3), (7, 1)]
CPU = torch.device("cpu")


@pytest.fixture(params=SHAPES, ids=str)
def convolution(request) -> DepthwiseConvolution:
    torch.manual_seed(0)
    return DepthwiseConvolution(D, *request.param).double()


@pytest.fixture
def x():
    return torch.randn(B, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def see(convolution, x, layout, cache=None):
    state = None if cache is None else cache.layers[0]
    out = convolution(x, look(layout, x.shape[1], CPU, cache), state)
    if cache is not None:
        cache.advance(x.shape[1] if layout.segments is None else (layout.segments >= 0).sum(1))
    return out


def empty(convolution, n_rows=B):
    state = MixerState.allocate((n_rows, convolution.reach, D), device=CPU, dtype=torch.float64)
    return DecodingCache.of([state], n_rows, 2 * L)


def torchs(convolution, x, left):
    padded = F.pad(x.transpose(1, 2), (left, convolution.reach - left))
    return F.conv1d(padded, convolution.weight, groups=D, dilation=convolution.dilation).transpose(1, 2)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_whole_rows_are_torchs_convolution_padded_left_or_on_both_sides(convolution, x):
    same(see(convolution, x, Layout("causal")), torchs(convolution, x, convolution.reach))
    same(see(convolution, x, Layout("full")), torchs(convolution, x, convolution.reach // 2))


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_segments_are_rows_of_their_own_and_padding_is_zero(convolution, x, direction):
    segments = torch.tensor([[4] * 3 + [7] * 5 + [2] * 3, [0] * 6 + [-1] * 5, [1] * 11])
    together = see(convolution, x, Layout(direction, segments=segments))
    for row in range(B):
        for segment in set(segments[row].tolist()) - {-1}:
            part = segments[row] == segment
            same(together[row, part], see(convolution, x[row, part][None], Layout(direction))[0])


@pytest.mark.parametrize("block", [1, 3, 4, 11])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_each_block_behind_its_clean_past(convolution, x, block, padded):
    noisy = x.flip(0) + 1
    segments = torch.where(torch.arange(L) < torch.tensor([[9], [11], [4]]), 0, -1) if padded else None
    layout = Layout("blocks", block=block, segments=segments)
    found = see(convolution, torch.cat([noisy, x], 1), layout).chunk(2, 1)
    real = torch.ones(B, L, dtype=torch.bool) if segments is None else segments >= 0
    for half, own in zip(found, (noisy, x), strict=True):
        for start in range(0, L, block):
            part = slice(start, start + block)
            row = torch.cat([x[:, :start], own[:, part]], 1) * real[:, : start + block, None]
            alone = see(convolution, row, Layout("full"))[:, start:]
            same(half[:, part][real[:, part]], alone[real[:, part]])


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_piece_by_piece_behind_a_cache(convolution, x, direction):
    """Prompts of mixed lengths first; of `full` each piece sees itself and what was before."""
    lengths = torch.tensor([2, 5, 0])
    cache = empty(convolution)
    prompt = Layout(direction, segments=torch.where(torch.arange(5) < lengths[:, None], 0, -1))
    first = see(convolution, x[:, :5], prompt, cache)
    for row, n in enumerate(lengths.tolist()):
        alone = see(convolution, x[row : row + 1, :n], Layout(direction))[0]
        same(first[row, :n], alone)
    texts = [x[row, :n] for row, n in enumerate(lengths.tolist())]
    for size in (1, 3, 1, 2):
        new = x[:, 6 : 6 + size] + size
        kept = cache.layers[0].values.clone()
        tentative = see(convolution, new.flip(1), Layout("full"), cache.tentative())
        same(cache.layers[0].values, kept)
        out = see(convolution, new, Layout(direction), cache)
        for row in range(B):
            texts[row] = torch.cat([texts[row], new[row]])
            turned = torch.cat([texts[row][:-size], new[row].flip(0)])
            same(tentative[row], see(convolution, turned[None], Layout("full"))[0, -size:])
            same(out[row], see(convolution, texts[row][None], Layout(direction))[0, -size:])


def test_rows_of_a_cache_are_reset_and_looked_at_alone(convolution, x):
    cache = empty(convolution)
    see(convolution, x, Layout("causal"), cache)
    cache.reset(torch.tensor([1]))
    two = cache.at(torch.tensor([1, 2]))
    out = see(convolution, x[:2, :3], Layout("causal"), two)
    same(out[:1], see(convolution, x[:1, :3], Layout("causal")))
    same(out[1:], see(convolution, torch.cat([x[2:], x[1:2, :3]], 1), Layout("causal"))[:, L:])


def test_under_autocast_it_gives_what_a_linear_layer_gives(x):
    convolution = DepthwiseConvolution(D, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert see(convolution, x.float(), Layout("causal")).dtype == torch.bfloat16
