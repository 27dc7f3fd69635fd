"""The exact bound of a sampler that takes finitely many steps: it comes down to the continuous one."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import (
    absorbing,
    absorbing_ratios,
    all_texts,
    denoiser,
    nelbo,
    quadrature,
    stepwise_nelbo,
    uniform,
    uniform_ratios,
)
from tiny import V, log_p_table, network_for

from armillary.corruption.absorbing import Absorbing
from armillary.corruption.schedules import Cosine, Geometric, LogLinear
from armillary.corruption.uniform import Uniform
from armillary.registry import make, names

TEXTS = all_texts(V, 2)
Q = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2
Q = Q / Q.sum()
ENTROPY = float(-(Q * Q.log()).sum())
STEPS = (1, 2, 4, 8, 16, 32, 64)
SCHEDULES = {
    "log_linear": LogLinear(),
    "cosine": Cosine(),
    "early": LogLinear(floor=0.1),
    "geometric": Geometric(high=3),
}


def times(n):
    return [1 - i / n for i in range(n)] + [0.0]


@pytest.mark.parametrize("name", ["log_linear", "cosine"])
@torch.no_grad()
def test_absorbing_with_the_true_denoiser_comes_down_to_the_entropy(name):
    process, corruption = absorbing(V, SCHEDULES[name]), Absorbing(V, SCHEDULES[name])
    p = denoiser(process, V, TEXTS, Q, 0.5, sees_own=False)
    found = [float(Q @ stepwise_nelbo(process, corruption, TEXTS, lambda t: p, times(n))) for n in STEPS]
    assert all(a > b > ENTROPY for a, b in itertools.pairwise(found))
    assert found[-1] - ENTROPY < 0.05 * (found[0] - ENTROPY)
    # One step knows nothing but each position's own law.
    one = torch.stack([Q @ torch.nn.functional.one_hot(TEXTS[:, i], V).double() for i in range(2)])
    assert found[0] == pytest.approx(float(-(one * one.log()).sum()), abs=1e-9)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@torch.no_grad()
def test_uniform_with_the_leave_one_out_law_comes_down_to_the_entropy(name):
    """And to the distance of the last marginal from the prior, where the schedule ends early."""
    process, corruption = uniform(V, SCHEDULES[name]), Uniform(V, SCHEDULES[name])
    end = Q @ process.kernel(1.0)[TEXTS[:, None], TEXTS[None]].prod(-1)
    least = ENTROPY + float((end * (end * V**2).log()).sum())
    assert (least > ENTROPY + 1e-4) == (name in ("early", "geometric"))

    def p0(t):
        return denoiser(process, V, TEXTS, Q, t, sees_own=False)

    found = [float(Q @ stepwise_nelbo(process, corruption, TEXTS, p0, times(n))) for n in STEPS]
    assert all(a > b > least - 1e-12 for a, b in itertools.pairwise(found))
    assert found[-1] - least < 0.1 * (found[0] - least)


@torch.no_grad()
def test_uniform_with_the_plain_posterior_stays_above():
    process, corruption = uniform(V, LogLinear()), Uniform(V)

    def bound(sees_own):
        def p0(t):
            return denoiser(process, V, TEXTS, Q, t, sees_own=sees_own)

        return float(Q @ stepwise_nelbo(process, corruption, TEXTS, p0, times(64)))

    assert bound(True) > bound(False) + 0.1


@pytest.mark.parametrize("backbone", names("backbones"))
@torch.no_grad()
def test_a_network_s_steps_come_to_its_continuous_bound(backbone):
    """Any network, whatever it knows: the difference falls as 1 / n."""
    network = network_for(backbone, make("objectives", "masked_diffusion", {}))
    process = absorbing(V, Cosine())
    log_p = log_p_table(network, all_texts(V + 1, 2))
    limit = nelbo(process, TEXTS, absorbing_ratios(process, log_p.exp()), quadrature(20))
    gaps = [
        stepwise_nelbo(process, Absorbing(V, Cosine()), TEXTS, lambda t: log_p.exp(), times(n)) - limit
        for n in (50, 100, 200)
    ]
    for coarse, fine in itertools.pairwise(gaps):
        torch.testing.assert_close(fine / coarse, torch.full_like(fine, 0.5), atol=0.03, rtol=0)
    assert float(gaps[-1].abs().max()) < 0.05

    network = network_for(backbone, make("objectives", "uniform_diffusion", {}))
    process = uniform(V, LogLinear())
    p = log_p_table(network, TEXTS, 0.5).exp()  # one law at all times will do
    limit = nelbo(process, TEXTS, uniform_ratios(process, lambda t: p), quadrature(30, power=4))
    gaps = [stepwise_nelbo(process, Uniform(V), TEXTS, lambda t: p, times(n)) - limit for n in (40, 80, 160)]
    assert float(gaps[0].abs().max()) > float(gaps[1].abs().max()) > float(gaps[2].abs().max())
    assert float(gaps[2].abs().max()) < 0.1
