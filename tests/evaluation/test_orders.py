"""Exact likelihoods: over all texts they sum to one, in every order; averaged over orders they are the bound."""

from __future__ import annotations

from itertools import permutations, product
from math import comb, log

import pytest
import torch

from armillary.contracts import BOS, EOS, Batch, Layout, Objective
from armillary.evaluation.orders import InOrder, _first_largest, order_of
from armillary.refusal import Refusal
from armillary.registry import make

V, L = 3, 4
BACKBONES = ("gpt", "llama")


def objective_of(name: str, **fields: object) -> Objective:
    return make("objectives", name, fields)


def batch_of(texts: torch.Tensor, context: torch.Tensor | None = None) -> Batch:
    """Rows behind a bos. context: which tokens are given."""
    tokens = torch.cat([torch.full_like(texts[:, :1], BOS), texts], dim=1)
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, 0] = False
    if context is not None:
        scored[:, 1:] = ~context
    return Batch(tokens, scored)


def every_text() -> Batch:
    return batch_of(torch.tensor(list(product(range(V), repeat=L))))


def order_for(batch: Batch, places: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The draws that reveal `places` one after the other in every row."""
    return {"order": torch.tensor(places).argsort().expand(batch.tokens.shape[0], -1)}


def in_order(network, objective, batch, places):
    """By hand, without InOrder: the last to come is hidden longest."""
    total = torch.zeros(batch.tokens.shape[0], dtype=torch.float64)
    for step in range(L):
        hidden = torch.zeros(batch.tokens.shape[0], L, dtype=torch.bool)
        hidden[:, list(places[step:])] = True
        asked = torch.zeros_like(hidden)
        asked[:, places[step]] = True
        total += objective.score_where(network, batch, hidden, asked).sum(1)
    return total


def enumerated_bound(network, objective, batch: Batch) -> torch.Tensor:
    """Σ_k (1 / k) E_{|S| = k} Σ_{l in S} -log p(x_l | what is not in S), of rows that are hidden as a whole."""
    total = torch.zeros(batch.tokens.shape[0], dtype=torch.float64)
    for chosen in product([False, True], repeat=L):
        hidden = torch.tensor(chosen).expand(batch.tokens.shape[0], -1)
        if k := sum(chosen):
            total += objective.score_where(network, batch, hidden, hidden).sum(1) / (k * comb(L, k))
    return total


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["masked_diffusion", "score_entropy"])
def test_every_order_sums_to_one(network_of, name, backbone):
    objective, batch = objective_of(name), every_text()
    network = network_of(objective, V, backbone)
    for places in permutations(range(L)):
        by_hand = in_order(network, objective, batch, places)
        assert torch.exp(-by_hand).sum() == pytest.approx(1, abs=1e-9)
        ours = InOrder(objective, "random", 400).score(network, batch, order_for(batch, places))
        torch.testing.assert_close(ours.sum(1), by_hand, rtol=0, atol=1e-10)
    left_to_right = InOrder(objective, "left_to_right")
    ours = left_to_right.score(network, batch, left_to_right.draw(V**L, L, torch.Generator()))
    torch.testing.assert_close(ours.sum(1), in_order(network, objective, batch, range(L)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_order_sums_to_one_in_every_order(network_of, backbone):
    objective, batch = objective_of("any_order"), every_text()
    network = network_of(objective, V, backbone)
    laws = set()
    for places in permutations(range(L)):
        nats = InOrder(objective, "random").score(network, batch, order_for(batch, places)).sum(1)
        assert torch.exp(-nats).sum() == pytest.approx(1, abs=1e-9)
        laws.add(round(float(nats[5]), 6))
    assert len(laws) > L  # the order matters


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_sum_to_one_in_every_order(network_of, backbone, block):
    """The order holds within a block, whatever it says between them."""
    objective, batch = objective_of("block_diffusion", block=block), every_text()
    network = network_of(objective, V, backbone)
    laws = set()
    for places in permutations(range(L)):
        nats = InOrder(objective, "random", 400).score(network, batch, order_for(batch, places)).sum(1)
        assert torch.exp(-nats).sum() == pytest.approx(1, abs=1e-9)
        laws.add(round(float(nats[5]), 8))
    assert len(laws) == {1: 1, 2: 4, 3: 6}[block]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked_diffusion", {}),
        ("score_entropy", {}),
        ("block_diffusion", {"block": 2}),
        ("block_diffusion", {"block": 1}),
    ],
)
def test_the_adaptive_order_sums_to_one(network_of, backbone, name, fields):
    objective, batch = objective_of(name, **fields), every_text()
    for seed in range(3):
        network = network_of(objective, V, backbone, seed)
        nats = InOrder(objective, "adaptive", 7).score(network, batch, {}).sum(1)
        assert torch.exp(-nats).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_adaptive_order_by_hand(network_of, backbone):
    """The surest position of each step, found with whole distributions; a block as long as the row is the same."""
    objective, batch = objective_of("masked_diffusion"), every_text()
    network = network_of(objective, V, backbone)
    for name, parameter in network.named_parameters():  # so that tokens tell more than positions
        parameter.mul_(0.1 if "bias" in name or "position" in name else 2)
    tokens, rows = batch.tokens[:, 1:], torch.arange(V**L)
    hidden, expected, orders = torch.ones(V**L, L, dtype=torch.bool), torch.zeros(V**L, L, dtype=torch.float64), []
    for _ in range(L):
        log_p = network(torch.where(hidden, V, tokens), Layout("full"))
        place = log_p.amax(2).masked_fill(~hidden, -torch.inf).argmax(1)
        expected[rows, place] = -log_p[rows, place, tokens[rows, place]]
        hidden[rows, place] = False
        orders.append(place)
    assert len({tuple(order) for order in torch.stack(orders, 1).tolist()}) > 2  # it depends on what is revealed
    found = InOrder(objective, "adaptive").score(network, batch, {})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    blocks = InOrder(objective_of("block_diffusion", block=L), "adaptive").score(network, batch, {})
    torch.testing.assert_close(blocks, found, rtol=0, atol=1e-10)


def test_equally_sure_positions_come_from_left_to_right():
    values = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.5], [-torch.inf, 0.0, 2.0, 2.0, 0.5]])
    assert _first_largest(values, 5).int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert _first_largest(values, 2).int().tolist() == [[1, 0, 0, 1, 1], [0, 1, 1, 0, 1]]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_mean_over_orders_is_the_bound(network_of, backbone):
    """And the law of the mixture of all orders lies below it."""
    objective, batch = objective_of("masked_diffusion"), every_text()
    network = network_of(objective, V, backbone)
    orders = [in_order(network, objective, batch, places) for places in permutations(range(L))]
    bound = enumerated_bound(network, objective, batch)
    torch.testing.assert_close(torch.stack(orders).mean(0), bound, rtol=0, atol=1e-10)
    mixture = log(len(orders)) - torch.stack([-nats for nats in orders]).logsumexp(0)
    assert (mixture < bound).all()
    assert torch.exp(-mixture).sum() == pytest.approx(1, abs=1e-9)
    drawn = objective.draw(V**L * 100, L, torch.Generator().manual_seed(1))
    many = Batch(batch.tokens.repeat(100, 1), batch.scored.repeat(100, 1))
    estimates = objective.score(network, many, drawn).sum(1).unflatten(0, (100, -1))
    error = float((estimates.std() / len(estimates.flatten()) ** 0.5) * 4)
    assert float(estimates.mean() - bound.mean()) == pytest.approx(0, abs=error)
    assert float(mixture.mean()) < float(estimates.mean())


ALL_WAYS = [
    ("masked_diffusion", {}, "left_to_right"),
    ("masked_diffusion", {}, "random"),
    ("masked_diffusion", {}, "adaptive"),
    ("block_diffusion", {"block": 2}, "left_to_right"),
    ("block_diffusion", {"block": 2}, "random"),
    ("block_diffusion", {"block": 3}, "adaptive"),
    ("any_order", {}, "left_to_right"),
    ("any_order", {}, "random"),
    ("autoregressive", {}, "left_to_right"),
]


@pytest.mark.parametrize(("name", "fields", "order"), ALL_WAYS)
def test_context_is_given_and_rows_do_not_touch_each_other(network_of, name, fields, order):
    objective = objective_of(name, **fields)
    network = network_of(objective, V)
    texts = torch.randint(V, (9, L), generator=torch.Generator().manual_seed(2))
    context = torch.arange(L) < (torch.arange(9) % (L + 1))[:, None]  # from nothing given to everything
    batch = batch_of(texts, context)
    ticks: list[int] = []
    ours = InOrder(objective, order, 5, ticks.append)
    draws = ours.draw(9, L, torch.Generator().manual_seed(3))
    together = ours.score(network, batch, draws)
    assert not together[context].any()
    assert together[~context].min() > 0
    assert sum(ticks) == ours.n_rows(batch)
    assert max(ticks) <= 5 or len(ticks) == 1 or order == "adaptive"
    for row in range(9):
        part = slice(row, row + 1)
        alone = ours.score(network, batch.rows(part), {key: draw[part] for key, draw in draws.items()})
        torch.testing.assert_close(together[part].double(), alone.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "fields", "order"), ALL_WAYS)
def test_what_is_scored_behind_a_context_sums_to_one(network_of, name, fields, order):
    objective = objective_of(name, **fields)
    network = network_of(objective, V)
    ends = torch.tensor(list(product(range(V), repeat=2)))
    texts = torch.cat([torch.tensor([2, 0]).expand(len(ends), -1), ends], dim=1)
    batch = batch_of(texts, torch.tensor([True, True, False, False]).expand(len(ends), -1))
    ours = InOrder(objective, order)
    draws = {key: draw.expand(len(ends), -1) for key, draw in ours.draw(1, L, torch.Generator().manual_seed(4)).items()}
    assert torch.exp(-ours.score(network, batch, draws).sum(1)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("name", "fields", "order"), ALL_WAYS)
def test_the_bos_behind_a_scored_eos_is_paid_for(network_of, name, fields, order):
    """Given, it would tell where the document before it ends. From left to right nobody sees it before that end."""
    objective = objective_of(name, **fields)
    network = network_of(objective, 5)
    tokens = torch.tensor([[BOS, 3, EOS, BOS, 4], [BOS, 3, 4, 3, EOS]])
    scored = tokens != BOS
    batch = Batch(tokens, scored)
    ours = InOrder(objective, order)
    nats = ours.score(network, batch, ours.draw(2, L, torch.Generator().manual_seed(5)))
    assert (nats[scored[:, 1:]] > 0).all()
    assert (float(nats[0, 2]) > 0) == (name != "autoregressive")


def test_orders_that_are_not_exact_are_refused():
    for name, fields, order, why in (
        ("autoregressive", {}, "random", "left to right only; take left_to_right"),
        ("autoregressive", {}, "adaptive", "left to right only"),
        ("any_order", {}, "adaptive", "take left_to_right or random"),
        ("uniform_diffusion", {}, "left_to_right", "leave --exact out"),
        ("score_entropy", {"process": "uniform"}, "left_to_right", "leave --exact out"),
        ("masked_diffusion", {}, "right_to_left", "known: adaptive, left_to_right, random"),
    ):
        with pytest.raises(Refusal, match=why) as refusal:
            InOrder(objective_of(name, **fields), order)
        assert str(refusal.value).startswith(f"--exact {order}: ") and "\n" not in str(refusal.value)


def test_a_protocol_names_the_order():
    masked, blocks, one = (
        objective_of("masked_diffusion"),
        objective_of("block_diffusion", block=16),
        objective_of("block_diffusion", block=1),
    )
    assert order_of(objective_of("autoregressive")) == "left_to_right"
    assert order_of(objective_of("any_order")) == "random"
    assert order_of(objective_of("uniform_diffusion")) == "none"
    assert order_of(masked) == "mean over orders"
    assert order_of(InOrder(masked, "adaptive")) == "adaptive"
    assert order_of(blocks) == "blocks of 16, mean over orders"
    assert order_of(InOrder(blocks, "left_to_right")) == "blocks of 16, left_to_right"
    assert order_of(one) == order_of(InOrder(one, "adaptive")) == "left_to_right"


def test_of_several_objectives_the_first_is_measured(network_of):
    term = {"weight": 1.0, "objective": {"name": "masked_diffusion"}}
    other = {"weight": 1.0, "objective": {"name": "autoregressive"}}
    both = objective_of("mixture", terms={"masked": term, "next": other})
    batch = every_text()
    network = network_of(both, V)
    ours = InOrder(both, "left_to_right")
    alone = InOrder(objective_of("masked_diffusion"), "left_to_right")
    draws = order_for(batch, (0, 1, 2, 3))
    torch.testing.assert_close(ours.score(network, batch, draws), alone.score(network, batch, draws))
    assert order_of(both) == "mean over orders"
