"""Blocks from left to right: the law of the model in its own blocks, and of a masked model cut into blocks."""

from __future__ import annotations

import itertools

import pytest
import torch

from armillary.contracts import Given, Layout
from armillary.model.blocks import CachedBlocks
from armillary.model.denoise import DenoiseView
from armillary.model.network import LanguageNetwork
from armillary.refusal import Refusal
from armillary.registry import make

V, L, N, FEW = 3, 3, 20_000, 5_000
SMALL = {
    "gpt": {"d_model": 16, "n_layers": 2, "n_heads": 4, "d_ff": 16, "max_length": 8},
    "llama": {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 16},
}
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=L)))


def model(name="llama", n_vocab=V, seed=1):
    """Its tokens depend on each other, and none is too rare for a test of χ²."""
    torch.manual_seed(seed)
    network = LanguageNetwork(make("backbones", name, SMALL[name]), n_vocab, tied=False, n_extra=1)
    for parameter in network.backbone.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.7)
    torch.nn.init.normal_(network.embedding.weight, std=2.0)
    torch.nn.init.normal_(network.output_head.weight, std=0.2)
    return network.double().eval().requires_grad_(False)


def block_view(network, block, forbidden=frozenset()):
    return CachedBlocks(network, make("objectives", "block_diffusion", {"block": block}), forbidden)


def masked_view(network, forbidden=frozenset()):
    return DenoiseView(network, make("objectives", "masked_diffusion", {}), forbidden)


def blockwise(inside="first_hitting", block=None, **fields):
    return make("samplers", "blockwise", {"sampler": {"name": inside, **fields}, "block": block})


def generators(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def nothing_given(n, length=L):
    return Given(torch.zeros(n, length, dtype=torch.long), torch.zeros(n, length, dtype=torch.bool))


def last(sampler, view, given, generators):
    *_, state = sampler.run(view, given, generators)
    return state


def orders_by_blocks(block, n=L):
    """Every order that finishes each block before the next one begins."""
    blocks = [range(start, min(n, start + block)) for start in range(0, n, block)]
    return [sum(order, ()) for order in itertools.product(*(itertools.permutations(b) for b in blocks))]


def law(network, orders, block=None):
    """Mean over orders of the product of conditionals. block: of a model with blocks of its own, in one pass on
    [noisy ; clean], without a cache."""
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    for order in orders:
        so_far = torch.zeros_like(total)
        for step, place in enumerate(order):
            noisy = TEXTS.clone()
            noisy[:, list(order[step:])] = V
            row = noisy if block is None else torch.cat([noisy, TEXTS], 1)
            layout = Layout("full") if block is None else Layout("blocks", block=block)
            log_p = network.head.log_p(network.hidden(row, layout)[:, place])
            so_far += log_p.gather(1, TEXTS[:, place, None])[:, 0]
        total += so_far.exp()
    return total / len(orders)


def p_value(tokens, p):
    """Of the χ² test that these texts follow p."""
    code = (tokens * V ** torch.arange(L - 1, -1, -1)).sum(1)
    found, expected = torch.bincount(code, minlength=len(TEXTS)).double(), p * len(tokens)
    assert found[p == 0].sum() == 0
    found, expected = found[p > 0], expected[p > 0]
    assert expected.min() > 5
    statistic = ((found - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(found) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize(("name", "block", "n"), [("gpt", 1, N), ("llama", 1, N), ("gpt", 2, FEW), ("llama", 3, FEW)])
def test_a_model_with_blocks_is_sampled_by_its_own_law(name, block, n):
    """Blocks of one token are autoregression; the last of two is shorter."""
    network = model(name)
    found = last(blockwise(), block_view(network, block), nothing_given(n), generators(n))
    expected = law(network, orders_by_blocks(block), block)
    torch.testing.assert_close(expected.sum(), torch.ones((), dtype=torch.float64))
    assert p_value(found.tokens, expected) > 1e-3


@pytest.mark.parametrize("block", [1, 2])
def test_a_masked_model_cut_into_blocks_reveals_them_in_turn(block):
    network = model("gpt")
    found = last(blockwise(block=block), masked_view(network), nothing_given(FEW), generators(FEW))
    assert p_value(found.tokens, law(network, orders_by_blocks(block))) > 1e-3


def test_a_masked_model_sees_what_is_given_later():
    network, given = model(), nothing_given(FEW)
    given.tokens[:, 2], given.is_given[:, 2] = 1, True
    expected = law(network, [(2, 0, 1)]) * (TEXTS[:, 2] == 1)
    found = last(blockwise(block=1), masked_view(network), given, generators(FEW))
    assert p_value(found.tokens, expected / expected.sum()) > 1e-3


def test_a_model_with_blocks_sees_it_when_its_block_comes():
    network, given = model(), nothing_given(FEW)
    given.tokens[:, 1], given.is_given[:, 1] = 1, True
    log_law = law(network, [(0, 1, 2)], 1).log().reshape(V, V, V)
    first = log_law.logsumexp((1, 2))  # has not seen the second, and the third has seen both
    third = log_law[:, 1] - log_law[:, 1].logsumexp(1, keepdim=True)
    expected = torch.zeros(V, V, V, dtype=torch.float64)
    expected[:, 1] = (first[:, None] + third).exp()
    found = last(blockwise(), block_view(network, 1), given, generators(FEW))
    assert p_value(found.tokens, expected.flatten()) > 1e-3


VIEWS = {"blocks": (block_view, (4,), None), "masked": (masked_view, (), 4)}


@pytest.mark.parametrize("inside", ["ancestral", "first_hitting", "confident", "remasking"])
@pytest.mark.parametrize("kind", sorted(VIEWS))
def test_texts_are_whole_and_what_is_given_stays(kind, inside):
    """A prompt, a hole and a suffix; a block that is given as a whole; the last block shorter than the others."""
    n_vocab, n, rows = 9, 7, 6
    make_view, how, block = VIEWS[kind]
    view = make_view(model("gpt", n_vocab), *how, forbidden={0, 1, 3})
    given = nothing_given(rows, n)
    given.tokens[:] = 3
    given.is_given[0, :5] = given.is_given[1, 5:] = given.is_given[2, 2:4] = given.is_given[3] = True
    states = list(blockwise(inside, block).run(view, given, generators(rows)))
    end = states[-1].tokens
    for state in states:
        assert torch.equal(state.tokens[given.is_given], given.tokens[given.is_given])
    assert (end < n_vocab).all() and not torch.isin(end[~given.is_given], torch.tensor([0, 1, 3])).any()
    counts = [state.n_evaluations for state in states]
    assert counts == sorted(counts)
    for row in range(rows):
        part = Given(given.tokens[row : row + 1], given.is_given[row : row + 1])
        alone = last(blockwise(inside, block), view, part, generators(1, first=row))
        assert torch.equal(alone.tokens[0], end[row])


def test_evaluations_are_those_of_every_block_and_of_closing_it():
    network = model("gpt", 9)
    assert last(blockwise(), block_view(network, 1), nothing_given(4, 5), generators(4)).n_evaluations == 5 + 4
    assert last(blockwise(), block_view(network, 3), nothing_given(4, 5), generators(4)).n_evaluations == 5 + 1
    assert last(blockwise(block=3), masked_view(network), nothing_given(4, 5), generators(4)).n_evaluations == 5


def test_blocks_that_do_not_fit_are_refused():
    network, given = model(), nothing_given(1)
    with pytest.raises(Refusal, match="no blocks of its own"):
        last(blockwise(), masked_view(network), given, generators(1))
    with pytest.raises(Refusal, match="block is 3, and the model's blocks hold 2"):
        last(blockwise(block=3), block_view(network, 2), given, generators(1))
    last(blockwise(block=2), block_view(network, 2), given, generators(1))


@pytest.mark.parametrize("inside", ["left_to_right", "blockwise", "speculative"])
def test_a_block_needs_a_sampler_that_restores_it(inside):
    with pytest.raises(Refusal, match=inside):
        blockwise(inside)


def test_wrong_fields_of_the_sampler_inside_are_refused_at_once():
    with pytest.raises(Refusal, match=r"first_hitting.*unknown key 'stepz'"):
        blockwise("first_hitting", stepz=3)
