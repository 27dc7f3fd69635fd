"""Masked diffusion against the reference: every form of its loss, on every backbone, by enumeration of all draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import (
    absorbing,
    absorbing_ratios,
    all_orders,
    all_texts,
    nelbo,
    number_of,
    order_nats,
    quadrature,
)
from tiny import L, V, batch_of, counts, each_with_each, log_p_table, mean_loss, network_for, scores

from armillary.corruption.schedules import Cosine, Geometric, LogLinear, Polynomial
from armillary.refusal import Refusal
from armillary.registry import make, names

TEXTS, STATES = all_texts(V, L), all_texts(V + 1, L)
SCHEDULES = {"log_linear": LogLinear(), "cosine": Cosine(), "polynomial": Polynomial(power=3)}
DRAWS = each_with_each(level=counts(L), order=all_orders(L))


def masked(**fields):
    return make("objectives", "masked_diffusion", fields)


@pytest.fixture(params=names("backbones"))
def network(request):
    return network_for(request.param, masked())


@pytest.fixture
def log_p(network):
    with torch.no_grad():
        return log_p_table(network, STATES)


def reference(log_p, schedule=SCHEDULES["log_linear"], n=12):
    process = absorbing(V, schedule)
    return nelbo(process, TEXTS, absorbing_ratios(process, log_p.exp()), quadrature(n))


@pytest.mark.parametrize("pairs", [False, True])
def test_the_count_form_is_the_reference(network, log_p, pairs):
    expected = reference(log_p)
    found = scores(masked(pairs=pairs), network, TEXTS, DRAWS).mean(1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    total, nats = mean_loss(masked(pairs=pairs), network, TEXTS, DRAWS)
    assert float(total.detach()) == pytest.approx(float(expected.sum().detach()), abs=1e-8) == float(nats)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_time_form_is_the_reference_under_every_schedule(network, log_p, name, pairs):
    """Quadrature over t, and over u the cells that alpha and 1 - alpha cut [0, 1] into."""
    objective, process = masked(estimator="time", pairs=pairs, schedule=SCHEDULES[name]), absorbing(V, SCHEDULES[name])
    n_texts, total = 9, 0.0
    texts = TEXTS[::3]
    for t, weight in quadrature(3):
        alpha = process.alpha(t)
        cuts = sorted({0.0, alpha, 1 - alpha, 1.0})
        middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(cuts)], dtype=torch.float64)
        widths = torch.tensor(cuts, dtype=torch.float64).diff()
        for cells in all_texts(len(middles), L):
            draws = {
                "u": middles[cells].expand(n_texts, -1),
                "level": torch.full((n_texts,), t, dtype=torch.float64),
            }
            loss = objective.loss(network, batch_of(texts), draws)
            total += weight * float(widths[cells].prod()) * float(loss.nats)
    # Where the integrand is no polynomial, both sides make the error of the same few nodes.
    expected = nelbo(process, texts, absorbing_ratios(process, log_p.exp()), quadrature(3)).sum()
    assert total == pytest.approx(float(expected), abs=1e-8)


def test_the_value_does_not_depend_on_the_schedule(log_p):
    expected = reference(log_p)
    for schedule in SCHEDULES.values():
        torch.testing.assert_close(reference(log_p, schedule, 40), expected, atol=1e-9, rtol=0)
    process = absorbing(V, Geometric(low=1e-2, high=25.0))  # what it leaves clean at the end, e^-25, has infinite KL
    pieces = [w * _integrand(process, log_p, t) for t, w in quadrature(120)]
    torch.testing.assert_close(torch.stack(pieces).sum(0), expected, atol=1e-6, rtol=0)


def _integrand(process, log_p, t):
    from oracle import integrand

    return integrand(process, TEXTS, absorbing_ratios(process, log_p.exp())(t), t)


def test_masked_diffusion_is_any_order_autoregression(log_p):
    by_order = torch.stack([order_nats(log_p, TEXTS, order) for order in all_orders(L)])
    torch.testing.assert_close(by_order.mean(0), reference(log_p), atol=1e-9, rtol=0)
    torch.testing.assert_close((-by_order).exp().sum(1), torch.ones(math.factorial(L), dtype=torch.float64))
    mixture = by_order.neg().logsumexp(0) - math.log(math.factorial(L))
    assert float(mixture.exp().sum()) == pytest.approx(1, abs=1e-12)
    gap = reference(log_p) + mixture  # NELBO - (-log p)
    assert float(gap.min()) >= -1e-12 and float(gap.max()) > 1e-3


@pytest.mark.parametrize("order", all_orders(L).tolist())
def test_score_where_follows_the_chain_rule_in_every_order(network, log_p, order):
    objective, nats, hidden = masked(), 0.0, torch.ones(TEXTS.shape, dtype=torch.bool)
    for place in order:
        asked = torch.zeros_like(hidden)
        asked[:, place] = True
        nats = nats + objective.score_where(network, batch_of(TEXTS), hidden.clone(), asked).sum(1)
        hidden[:, place] = False
    torch.testing.assert_close(nats, order_nats(log_p, TEXTS, torch.tensor(order)), atol=1e-12, rtol=0)


def test_context_is_given_clean_and_costs_nothing(network, log_p):
    """Only the last two tokens are scored: the bound of two tokens, behind each first one."""
    scored = torch.tensor([False, True, True])
    process, pairs = absorbing(V, LogLinear()), all_texts(V, 2)
    draws = each_with_each(level=counts(2), order=all_orders(L))
    found = scores(masked(), network, TEXTS, draws, scored).mean(1).view(V, len(pairs))
    for first in range(V):
        behind = number_of(torch.nn.functional.pad(all_texts(V + 1, 2), (1, 0), value=first), V + 1)
        ratios = absorbing_ratios(process, log_p[behind][:, 1:].exp())
        torch.testing.assert_close(found[first], nelbo(process, pairs, ratios, quadrature(8)), atol=1e-9, rtol=0)
    nats = masked().score(network, batch_of(TEXTS[:1], scored), {k: v[:1] for k, v in draws.items()})
    assert nats[0, 0] == 0 and nats[0, 1:].sum() > 0


def test_the_gradient_is_that_of_the_reference(network):
    process = absorbing(V, LogLinear())
    expected = nelbo(process, TEXTS, absorbing_ratios(process, log_p_table(network, STATES).exp()), quadrature(6))
    plain = torch.autograd.grad(expected.sum(), list(network.parameters()))
    fast = torch.autograd.grad(mean_loss(masked(), network, TEXTS, DRAWS)[0], list(network.parameters()))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    assert max(float(g.abs().max()) for g in plain) > 0.1


def test_a_fixed_rate_weighs_each_hidden_token_the_same(network, log_p):
    """It bounds nothing; a hidden token costs 1 / rate."""
    objective = masked(estimator="rate", rate=0.4)
    u = torch.tensor([[0.1, 0.9, 0.3]], dtype=torch.float64)
    text = TEXTS[5:6]
    seen = torch.where(u < 0.4, V, text)
    row = log_p[number_of(seen, V + 1)[0]].gather(1, text.T)[:, 0]
    loss = objective.loss(network, batch_of(text), {"u": u, "level": torch.tensor([0.5], dtype=torch.float64)})
    assert float(loss.nats) == pytest.approx(-float(row[0] + row[2]) / 0.4)


@pytest.mark.parametrize("name", ["masked_diffusion", "score_entropy"])
def test_a_schedule_that_leaves_tokens_clean_is_refused(name):
    with pytest.raises(Refusal, match="floor"):
        make("objectives", name, {"schedule": {"name": "log_linear", "floor": 0.1}})
    make("objectives", name, {"schedule": {"name": "geometric"}})
