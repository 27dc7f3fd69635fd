"""Score entropy against the reference, for both processes; and what it costs beside masked diffusion."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import (
    absorbing,
    absorbing_ratios,
    all_orders,
    all_texts,
    denoiser,
    law,
    nelbo,
    number_of,
    quadrature,
    uniform,
    uniform_ratios,
)
from tiny import L, Told, V, counts, each_with_each, logit_table, mean_loss, network_for, scores

from armillary.corruption.schedules import Geometric, LogLinear
from armillary.refusal import Refusal
from armillary.registry import make, names

DRAWS = each_with_each(level=counts(L), order=all_orders(L))


def entropy(**fields):
    return make("objectives", "score_entropy", fields)


# --- absorbing

TEXTS, STATES = all_texts(V, L), all_texts(V + 1, L)
MASKS = absorbing(V, LogLinear())


@pytest.fixture(params=names("backbones"))
def network(request):
    return network_for(request.param, entropy())


@pytest.mark.parametrize("pairs", [False, True])
def test_absorbing_is_the_reference(network, pairs):
    with torch.no_grad():
        likely = logit_table(network, STATES).exp() / V  # Z p, Z the mean of e^logit
    expected = nelbo(MASKS, TEXTS, absorbing_ratios(MASKS, likely), quadrature(8))
    found = scores(entropy(pairs=pairs), network, TEXTS, DRAWS).mean(1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    total, nats = mean_loss(entropy(pairs=pairs), network, TEXTS, DRAWS)
    assert float(total.detach()) == pytest.approx(float(expected.sum()), abs=1e-8) == float(nats)


def test_absorbing_has_the_gradient_of_the_reference(network):
    ratios = absorbing_ratios(MASKS, logit_table(network, STATES).exp() / V)
    expected = nelbo(MASKS, TEXTS, ratios, quadrature(8)).sum()
    plain = torch.autograd.grad(expected, list(network.parameters()))
    fast = torch.autograd.grad(mean_loss(entropy(), network, TEXTS, DRAWS)[0], list(network.parameters()))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_it_costs_z_minus_one_minus_log_z_more_than_masked_diffusion(network):
    masked = make("objectives", "masked_diffusion", {})
    own, other = (scores(objective, network, TEXTS, DRAWS).mean(1) for objective in (entropy(), masked))
    with torch.no_grad():
        z = logit_table(network, STATES).exp().mean(-1)
    excess = torch.zeros(len(TEXTS), dtype=torch.float64)
    for k, order in zip(DRAWS["level"].mul(L).long() + 1, DRAWS["order"], strict=True):
        hidden = order < k
        here = z[number_of(torch.where(hidden, V, TEXTS), V + 1)]
        excess += L / k * ((here - 1 - here.log()) * hidden).sum(1) / len(DRAWS["level"])
    assert float(excess.min()) > 1e-3
    torch.testing.assert_close(own - other, excess, atol=1e-9, rtol=0)


def test_a_normalised_head_makes_it_masked_diffusion(network):
    def normalised(tokens, noise_level):
        return logit_table(network, tokens).log_softmax(-1) + math.log(V)

    told, masked = Told(V, normalised), make("objectives", "masked_diffusion", {})
    with torch.no_grad():
        own, other = (scores(objective, told, TEXTS, DRAWS) for objective in (entropy(), masked))
    torch.testing.assert_close(own, other, atol=1e-10, rtol=0)


# --- uniform

WORDS = all_texts(V, 2)
SCHEDULES = {
    "log_linear": LogLinear(floor=1e-3),
    "early": LogLinear(floor=0.2),
    "geometric": Geometric(low=1e-2, high=3.0),
}
TIMES = quadrature(10)


@pytest.fixture(params=names("backbones"))
def knowing(request):
    return network_for(request.param, entropy(process="uniform"))


def noisy_draws(process, t):
    """One draw for each noisy text, and the probability of each under each clean one. u: the cell of the new token."""
    alpha = process.alpha(t)
    u = alpha + (1 - alpha) * (WORDS + 0.5) / V
    level = torch.full((len(WORDS),), t, dtype=torch.float64)
    return {"level": level, "u": u}, law(process, WORDS, WORDS, t)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_uniform_is_the_reference_at_every_time_and_owes_the_end(knowing, name):
    schedule = SCHEDULES[name]
    objective, process = entropy(process="uniform", schedule=schedule), uniform(V, schedule)

    def ratios(t):
        s = logit_table(knowing, WORDS, t).exp()
        return s.scatter(2, WORDS[..., None], 1.0)

    found = torch.zeros(len(WORDS), dtype=torch.float64)
    with torch.no_grad():
        for t, weight in TIMES:
            draws, p = noisy_draws(process, t)
            found += weight * (p * scores(objective, knowing, WORDS, draws)).sum(1)
        expected = nelbo(process, WORDS, ratios, TIMES)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    owed = process.prior_nats(WORDS)
    assert float(owed.min()) > 0
    part = objective.loss(knowing, *_one_row(objective)).parts["prior"]
    assert float(part) == pytest.approx(float(owed[0]), abs=1e-12)


def _one_row(objective):
    from tiny import batch_of

    return batch_of(WORDS[:1]), objective.draw(1, 2, torch.Generator().manual_seed(0))


def test_uniform_has_the_gradient_of_the_reference(knowing):
    schedule = SCHEDULES["early"]
    objective, process = entropy(process="uniform", schedule=schedule), uniform(V, schedule)
    t, weight = 0.37, 1.0

    def ratios(t):
        return logit_table(knowing, WORDS, t).exp().scatter(2, WORDS[..., None], 1.0)

    draws, p = noisy_draws(process, t)
    parameters = list(knowing.parameters())
    fast = torch.autograd.grad((p * scores(objective, knowing, WORDS, draws)).sum(), parameters)
    plain = torch.autograd.grad(nelbo(process, WORDS, ratios, [(t, weight)]).sum(), parameters)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_the_true_ratios_attain_the_entropy():
    """Both processes, for texts drawn with unequal probability."""
    q = torch.rand(len(WORDS), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
    q = q / q.sum()
    truth = -(q * q.log()).sum()
    masks = absorbing(V, LogLinear())
    p = denoiser(masks, V, WORDS, q, 0.5, sees_own=False)
    told = Told(V, lambda tokens, t: p[number_of(tokens, V + 1)].clamp(min=1e-300).log() + math.log(V))
    draws = each_with_each(level=counts(2), order=all_orders(2))
    assert float(q @ scores(entropy(), told, WORDS, draws).mean(1)) == pytest.approx(float(truth), abs=1e-9)

    schedule = SCHEDULES["early"]
    objective, process = entropy(process="uniform", schedule=schedule), uniform(V, schedule)

    def ratios(t):
        return uniform_ratios(process, lambda t: denoiser(process, V, WORDS, q, t, sees_own=False))(t)

    total = torch.zeros(len(WORDS), dtype=torch.float64)
    for t, weight in quadrature(40, power=3):
        s = ratios(t)
        told = Told(V, lambda tokens, level, s=s: s[number_of(tokens, V)].log())
        draws, p = noisy_draws(process, t)
        # Below t = 1e-5 the objective looks at 1e-5 itself; the reference covers that sliver.
        part = (
            (p * scores(objective, told, WORDS, draws)).sum(1) if t > 1e-5 else nelbo(process, WORDS, ratios, [(t, 1)])
        )
        total += weight * part
    # What is missing is the distance of the marginal of q at the schedule's end from the prior: ratios do not see it.
    end = q @ process.kernel(1.0)[WORDS[:, None], WORDS[None]].prod(-1)
    missing = (end * (end * V**2).log()).sum()
    assert float(q @ total) == pytest.approx(float(truth + missing), abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "log_linear"])
def test_a_uniform_process_without_an_end_is_refused(name):
    """Its rate dσ/dt grows without bound, and so would the bound."""
    with pytest.raises(Refusal, match="above 0"):
        entropy(process="uniform", schedule={"name": name})
