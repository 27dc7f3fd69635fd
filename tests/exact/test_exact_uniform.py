"""Uniform-state diffusion against the reference; which posterior its bound wants, and what the other one costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import all_texts, denoiser, law, nelbo, number_of, quadrature, uniform, uniform_ratios
from tiny import Told, V, batch_of, log_p_table, network_for, scores

from armillary.corruption.schedules import Cosine, Geometric, LogLinear, Polynomial
from armillary.objectives.uniform_diffusion import LEAST_NOISE, leave_one_out
from armillary.registry import make, names

TEXTS = all_texts(V, 2)
SCHEDULES = {
    "log_linear": LogLinear(),
    "cosine": Cosine(),
    "polynomial": Polynomial(),
    "early": LogLinear(floor=0.2),
    "geometric": Geometric(low=1e-2, high=3.0),
}


def diffusion(schedule=SCHEDULES["log_linear"]):
    return make("objectives", "uniform_diffusion", {"schedule": schedule.model_dump()})


def noisy_draws(process, t):
    """One draw for each noisy text, and the probability of each under each clean one."""
    alpha = process.alpha(t)
    u = alpha + (1 - alpha) * (TEXTS + 0.5) / V
    return {"level": torch.full((len(TEXTS),), t, dtype=torch.float64), "u": u}, law(process, TEXTS, TEXTS, t)


def expected_score(objective, process, network, nodes):
    """∫ E_z of the objective's score, its debt to the prior taken off."""
    total, owed = torch.zeros(len(TEXTS), dtype=torch.float64), process.prior_nats(TEXTS)[:, None]
    for t, weight in nodes:
        draws, p = noisy_draws(process, t)
        total = total + weight * (p * (scores(objective, network, TEXTS, draws) - owed)).sum(1)
    return total


def without_own(process, log_p, t):
    """(Z, L, V): Bayes backwards with the kernel itself. log_p: given the whole noisy text."""
    likelihood = process.kernel(t)[:, TEXTS].permute(1, 2, 0)
    p = log_p.exp() / likelihood
    return p / p.sum(-1, keepdim=True)


@pytest.fixture(params=names("backbones"))
def network(request):
    return network_for(request.param, diffusion())


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_it_is_the_reference_at_every_time_and_owes_the_end(network, name):
    objective, process = diffusion(SCHEDULES[name]), uniform(V, SCHEDULES[name])
    start = 0.4 if name == "geometric" else 0.05  # where there is more noise than LEAST_NOISE
    nodes = quadrature(10, start=start)
    assert all(1 - process.alpha(t) > LEAST_NOISE for t, _ in nodes)

    with torch.no_grad():
        ratios = uniform_ratios(process, lambda t: without_own(process, log_p_table(network, TEXTS, t), t))
        expected = nelbo(process, TEXTS, ratios, nodes)
        found = expected_score(objective, process, network, nodes) + process.prior_nats(TEXTS)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        draws = {k: v[:1] for k, v in noisy_draws(process, 0.5)[0].items()}
        loss = objective.loss(network, batch_of(TEXTS[:1]), draws)
        score = objective.score(network, batch_of(TEXTS[:1]), draws)
    owed = float(process.prior_nats(TEXTS)[0])
    assert (owed > 1e-3) == (name in ("early", "geometric"))
    assert float(loss.parts["prior"]) == pytest.approx(owed, abs=1e-12)
    assert float(loss.nats) == pytest.approx(float(score.sum())) == float(loss.total)


def test_the_gradient_is_that_of_the_reference(network):
    process, t = uniform(V, LogLinear()), 0.37
    ratios = uniform_ratios(process, lambda t: without_own(process, log_p_table(network, TEXTS, t), t))
    parameters = list(network.parameters())
    plain = torch.autograd.grad(nelbo(process, TEXTS, ratios, [(t, 1.0)]).sum(), parameters)
    fast = torch.autograd.grad(expected_score(diffusion(), process, network, [(t, 1.0)]).sum(), parameters)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    assert max(float(g.abs().max()) for g in plain) > 0.1


# --- oracles

Q = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
Q = Q / Q.sum()
ENTROPY = float(-(Q * Q.log()).sum())
PROCESS = uniform(V, LogLinear())
SLIVER = quadrature(30, power=3, end=LEAST_NOISE)
CUTS = (LEAST_NOISE, 0.01, 0.1, 1.0)
NOISY = [node for start, end in itertools.pairwise(CUTS) for node in quadrature(12, 1, start, end)]
"""From where the head is read as it is; the sliver before it is left to the reference. The bound has a log t at 0."""


def told(table):
    """A head that answers log p of the table at each noise level."""

    def logits(tokens, level):
        t = float(level.flatten()[0])
        return table(t)[number_of(tokens, V)].clamp(min=1e-300).log()

    return Told(V, logits)


def posterior(t):
    return denoiser(PROCESS, V, TEXTS, Q, t, sees_own=True)


def leaving_one_out(t):
    return denoiser(PROCESS, V, TEXTS, Q, t, sees_own=False)


def reading(p_loo):
    """The mean bound of a head whose leave-one-out law is p_loo."""
    return float(Q @ nelbo(PROCESS, TEXTS, uniform_ratios(PROCESS, p_loo), SLIVER + NOISY))


def test_the_leave_one_out_oracle_attains_the_entropy_and_the_plain_posterior_does_not():
    assert reading(leaving_one_out) == pytest.approx(ENTROPY, abs=1e-7)
    assert reading(posterior) > ENTROPY + 0.1


def test_the_objective_turns_the_one_into_the_other():
    """A head that knows p(x | z) attains the entropy; one that knows p(x | all other z) is turned once too often."""
    early = float(Q @ nelbo(PROCESS, TEXTS, uniform_ratios(PROCESS, leaving_one_out), SLIVER))
    found = float(Q @ expected_score(diffusion(), PROCESS, told(posterior), NOISY))
    assert early + found == pytest.approx(ENTROPY, abs=1e-7)
    assert float(Q @ expected_score(diffusion(), PROCESS, told(leaving_one_out), NOISY)) > found + 0.1


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_samplers_are_told_the_leave_one_out_law(t):
    times = torch.full((len(TEXTS),), t, dtype=torch.float64)
    everywhere = torch.ones(TEXTS.shape, dtype=torch.bool)
    from armillary.contracts import Layout

    log_p = diffusion().log_p0(told(posterior), TEXTS, Layout("full"), times, everywhere)
    torch.testing.assert_close(log_p.exp().view(-1, 2, V), leaving_one_out(t), atol=1e-12, rtol=0)


def test_a_head_that_doubts_a_clean_token_has_a_finite_bound_all_the_same():
    """Zero logits, at all times. The turn stops at LEAST_NOISE; what is then integrated is the reference's bound of the
    same ratios, above the entropy of uniform texts, and finite. Without that it would be infinite."""
    flat = Told(V, lambda tokens, level: torch.zeros(*tokens.shape, V, dtype=torch.float64))

    def p_loo(t):
        likelier = 1 + V * PROCESS.alpha(t) / max(1 - PROCESS.alpha(t), LEAST_NOISE)
        p = torch.ones(len(TEXTS), 2, V, dtype=torch.float64).scatter(2, TEXTS[..., None], 1 / likelier)
        return p / p.sum(-1, keepdim=True)

    expected = nelbo(PROCESS, TEXTS, uniform_ratios(PROCESS, p_loo), SLIVER + NOISY)
    seen = [(max(t, 1e-5), weight) for t, weight in SLIVER + NOISY]  # as the objective has it
    found = expected_score(diffusion(), PROCESS, flat, seen)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert 2 * math.log(V) < float(expected.min()) and float(expected.max()) < 2 * (2 + math.log(1 / LEAST_NOISE))
    at_once = expected_score(diffusion(), PROCESS, flat, [(1e-5, 1.0)])
    assert float(at_once.max()) < 2 * (V - 1) / LEAST_NOISE


def test_turning_is_bayes_rule_backwards():
    log_p = torch.randn(6, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(-1)
    noisy, alpha = torch.arange(6) % V, torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    found = leave_one_out(log_p, noisy, alpha).exp()
    for row in range(6):
        likelihood = torch.full((V,), (1 - float(alpha[row])) / V, dtype=torch.float64)
        likelihood[noisy[row]] += alpha[row]
        expected = log_p[row].exp() / likelihood
        torch.testing.assert_close(found[row], expected / expected.sum(), atol=1e-12, rtol=0)
