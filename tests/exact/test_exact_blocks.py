"""Block diffusion against the reference, block by block; blocks of one token against the chain rule."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import absorbing, absorbing_ratios, all_orders, all_texts, nelbo, number_of, quadrature
from tiny import V, batch_of, counts, each_with_each, mean_loss, network_for, scores

from armillary.contracts import BOS, Layout
from armillary.corruption.schedules import LogLinear
from armillary.registry import make, names

MASKS = absorbing(V, LogLinear())


def blocks(block, pairs=True):
    return make("objectives", "block_diffusion", {"block": block, "pairs": pairs})


@pytest.fixture(params=names("backbones"))
def network(request):
    return network_for(request.param, blocks(2))


def behind(network, past, states, block):
    """(Z, b, V): log_p of a block's states behind a clean past, read block by block into a cache."""
    cache = network.allocate(len(states), past.shape[1] + states.shape[1])
    for start in range(0, past.shape[1], block):
        network.hidden(past[:, start : start + block].expand(len(states), -1), Layout("full"), cache=cache)
    hidden = network.hidden(states, Layout("full"), cache=cache)
    return network.head.log_p(hidden.flatten(0, 1)).unflatten(0, states.shape)


def block_by_block(network, texts, block, first=0):
    """Σ_b of the reference bound of each block behind the blocks before it."""
    total = torch.zeros(len(texts), dtype=torch.float64)
    for start in range(first, texts.shape[1], block):
        here = texts[:, start : start + block]
        states = all_texts(V + 1, here.shape[1])
        for row, past in enumerate(texts[:, :start]):
            log_p = behind(network, past[None], states, block)
            total[row] += nelbo(MASKS, here[row : row + 1], absorbing_ratios(MASKS, log_p.exp()), quadrature(5))[0]
    return total


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("length", "block"), [(4, 2), (3, 2), (3, 4)])
@torch.no_grad()
def test_it_is_the_reference_block_by_block(network, length, block, pairs):
    """A last block that is shorter, and a block longer than the row, among them."""
    texts = all_texts(V, length)[::7]
    n_blocks = -(-length // block)
    widths = [min(block, length - start) for start in range(0, length, block)]
    levels = each_with_each(**{str(i): counts(width) for i, width in enumerate(widths)})
    level = torch.stack([levels[str(i)] for i in range(n_blocks)], 1)
    draws = each_with_each(level=level, order=all_orders(length))
    expected = block_by_block(network, texts, block)
    found = scores(blocks(block, pairs), network, texts, draws).mean(1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    total, nats = mean_loss(blocks(block, pairs), network, texts, draws)
    assert float(total) == pytest.approx(float(expected.sum()), abs=1e-8) == float(nats)


@torch.no_grad()
def test_context_within_a_block_is_given(network):
    """The second token of four is not asked for: its block has one open token, behind the same past."""
    scored, texts = torch.tensor([True, False, True, True]), all_texts(V, 4)[::5]
    texts = texts[texts[:, 1] != BOS]  # behind a scored token, that one is paid for
    level = torch.stack(list(each_with_each(first=counts(1), second=counts(2)).values()), 1)
    found = scores(blocks(2), network, texts, each_with_each(level=level, order=all_orders(4)), scored).mean(1)
    total = block_by_block(network, texts, 2, first=2)
    for row, text in enumerate(texts):
        state = torch.tensor([[V, int(text[1])]])
        log_p = behind(network, text[None, :0], state, 2)
        total[row] -= log_p[0, 0, text[0]]
    torch.testing.assert_close(found, total, atol=1e-9, rtol=0)


@torch.no_grad()
def test_levels_are_independent_from_block_to_block(network):
    """A draw is worth the sum of what its blocks are worth."""
    level = each_with_each(first=counts(2), second=counts(2))
    level = torch.stack([level["first"], level["second"]], 1)
    draws = {"level": level, "order": torch.tensor([[2, 0, 1, 3]]).expand(4, -1)}
    nats = blocks(2, pairs=False).score(network, batch_of(all_texts(V, 4)[40:41].expand(4, -1)), draws)
    first, second = nats[:, :2].sum(1), nats[:, 2:].sum(1)
    torch.testing.assert_close(first[0], first[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(second[0], second[2], atol=1e-12, rtol=0)
    assert abs(first[0] - first[2]) > 1e-9 and abs(second[0] - second[1]) > 1e-9


@torch.no_grad()
def test_blocks_of_one_are_the_chain_rule_and_the_likelihood_is_exact(network):
    objective, texts = blocks(1), all_texts(V, 3)
    assert objective.kind == "exact" and blocks(2).kind == "monte_carlo_bound"
    found = []
    for seed in (0, 1):
        draws = objective.draw(len(texts), 3, torch.Generator().manual_seed(seed))
        found.append(objective.score(network, batch_of(texts), draws))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)
    for row, text in enumerate(texts):
        for place in range(3):
            log_p = behind(network, text[None, :place], torch.tensor([[V]]), 1)
            assert float(found[0][row, place]) == pytest.approx(-float(log_p[0, 0, text[place]]), abs=1e-12)
    assert float(found[0].sum(1).neg().exp().sum()) == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_one_block_as_long_as_the_row_is_masked_diffusion(network):
    texts, masked = all_texts(V, 3), make("objectives", "masked_diffusion", {})
    draws = masked.draw(len(texts), 3, torch.Generator().manual_seed(0))
    whole = masked.score(network, batch_of(texts), draws)
    found = blocks(3).score(network, batch_of(texts), draws | {"level": draws["level"][:, None]})
    torch.testing.assert_close(found, whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_every_order_within_blocks_is_a_distribution(network):
    """score_where, position by position: Σ_x p(x) = 1, whatever the order of each block."""
    objective, texts = blocks(2), all_texts(V, 4)
    for order in ([0, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 0]):
        nats, rank = 0.0, torch.tensor(order).expand(len(texts), -1)
        for step in range(2):
            nats = nats + objective.score_where(network, batch_of(texts), rank >= step, rank == step).sum(1)
        assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=1e-12)


def test_the_gradient_is_that_of_the_plain_formula(network):
    """Two tokens of each block are ranked by the order, k of them hidden, and each weighs 2 / k."""
    parameters, texts = list(network.parameters()), all_texts(V, 4)[::9]
    draws = blocks(2, pairs=False).draw(len(texts), 4, torch.Generator().manual_seed(0))
    objective = blocks(2, pairs=False)
    total = objective.loss(network, batch_of(texts), draws).total
    k = (draws["level"] * 2).long().add(1).repeat_interleave(2, 1)
    order = draws["order"].view(-1, 2, 2)
    hidden = (order > order.flip(2)).long().view(-1, 4) < k
    layout = Layout("blocks", block=2)
    rows = network.hidden(torch.cat([torch.where(hidden, V, texts), texts], 1), layout)[:, :4]
    log_p = torch.log_softmax(rows @ network.embedding.weight[:V].T, -1).gather(2, texts[..., None])[..., 0]
    plain = -(2 / k * hidden * log_p).sum()
    assert float(total.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)  # levels are float32
    fast, slow = torch.autograd.grad(total, parameters), torch.autograd.grad(plain, parameters)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


def test_number_of_texts_is_where_they_stand():
    for n_states, length in ((3, 2), (4, 3)):
        texts = all_texts(n_states, length)
        assert torch.equal(number_of(texts, n_states), torch.arange(n_states**length))
        assert math.factorial(length) == len(all_orders(length))
