"""Schedules: where they begin and end, their slopes, their inverses."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from armillary.corruption.schedules import Cosine, Geometric, LogLinear, Polynomial, end
from armillary.corruption.uniform import Uniform

SCHEDULES = [
    LogLinear(),
    LogLinear(floor=0.1),
    Cosine(),
    Polynomial(),
    Polynomial(power=1),
    Polynomial(power=3.5),
    Geometric(),
    Geometric(low=0.1, high=2.0),
]
ENDS = [0, 0.1, 0, 0, 0, 0, math.exp(1e-3 - 20), math.exp(0.1 - 2.0)]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each
def test_clean_at_zero_exactly_and_falling(schedule, dtype):
    t = torch.linspace(0, 1, 101, dtype=dtype)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == 1.0
    assert bool((alpha.diff() <= 0).all()) and bool((alpha >= 0).all())
    assert bool((schedule.slope(t) <= 0).all())


@pytest.mark.parametrize(("schedule", "left"), list(zip(SCHEDULES, ENDS, strict=True)), ids=str)
def test_the_end(schedule, left):
    assert end(schedule) == pytest.approx(left, abs=1e-15)


@each
def test_the_slope_is_the_derivative(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    step = 1e-6
    found = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.slope(t), found, atol=1e-7, rtol=1e-6)


@each
def test_time_is_the_inverse(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    back = schedule.time(schedule.alpha(t))
    assert float(back[0]) == 0
    # Where alpha is close to 0 or flat, t is known less well than alpha.
    torch.testing.assert_close(back, t, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha(back), schedule.alpha(t), atol=1e-14, rtol=0)


def test_noise_that_would_shrink_is_refused():
    with pytest.raises(ValidationError, match="below high"):
        Geometric(low=2.0, high=1.0)


@pytest.mark.parametrize("n_vocab", [2, 3, 50])
@each
def test_what_an_early_end_owes_is_the_distance_from_the_prior(schedule, n_vocab):
    alpha = end(schedule)
    q = torch.full((n_vocab,), (1 - alpha) / n_vocab, dtype=torch.float64)
    q[0] += alpha
    expected = float((q * (q * n_vocab).log()).sum())
    assert Uniform(n_vocab, schedule).prior_nats() == pytest.approx(expected, abs=1e-12)
    assert (Uniform(n_vocab, schedule).prior_nats() > 1e-4) == (alpha > 0.01)
