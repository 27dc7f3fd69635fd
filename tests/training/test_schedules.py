"""Schedules: their corners, their monotone parts, and what does not fit into a run."""

from __future__ import annotations

import itertools

import pytest

from armillary import registry
from armillary.refusal import Refusal

N = 1000


def curve(name, n_steps=N, **fields):
    schedule = registry.make("training/schedules", name, fields)
    schedule.check(n_steps)
    return [schedule.factor(step, n_steps) for step in range(n_steps)]


def is_falling(values):
    return all(b < a for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", ["constant", "cosine", "warmup_stable_decay"])
@pytest.mark.parametrize(("n_steps", "warmup"), [(1, 0), (1, 1), (2, 1), (10, 10), (N, 0), (N, 1), (N, 200)])
def test_warmup_and_range(name, n_steps, warmup):
    fields = {"decay": 0.0} if name == "warmup_stable_decay" else {}
    values = curve(name, n_steps, warmup=warmup, **fields)
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert max(values) == 1


def test_constant():
    assert curve("constant", warmup=5)[5:] == [1.0] * (N - 5)
    assert curve("constant") == [1.0] * N


def test_cosine():
    values = curve("cosine", warmup=200, final=0.1)
    assert values[199] == 1.0
    assert is_falling(values[199:])
    assert values[-1] == pytest.approx(0.1, abs=1e-12)
    halfway = curve("cosine", 1001, final=0.2)[500]
    assert halfway == pytest.approx(0.6)
    assert curve("cosine", 1001, final=0.2)[250] == pytest.approx(0.2 + 0.8 * (1 + 2**-0.5) / 2)


def test_the_baseline_goes_from_3e_4_to_3e_5():
    schedule = registry.make("training/schedules", "cosine", {"warmup": 200})
    rates = [3e-4 * schedule.factor(step, 20_000) for step in (0, 199, 19_999)]
    assert rates == pytest.approx([1.5e-6, 3e-4, 3e-5])


@pytest.mark.parametrize(("shape", "fallen"), [("linear", 0.25), ("sqrt", 0.5)])
def test_warmup_stable_decay(shape, fallen):
    values = curve("warmup_stable_decay", warmup=50, decay=0.2, shape=shape, final=0.1)
    assert values[49:800] == [1.0] * 751  # 200 steps decay, the first of them falls already
    assert is_falling(values[799:])
    assert values[849] == pytest.approx(1 - 0.9 * fallen)  # a quarter of the way
    assert values[-1] == pytest.approx(0.1)
    assert curve("warmup_stable_decay", warmup=50)[-1] == 0.0


def test_after_the_run_nothing_rises():
    for name in ("cosine", "warmup_stable_decay"):
        schedule = registry.make("training/schedules", name, {"final": 0.1})
        assert schedule.factor(N + 50, N) == pytest.approx(0.1)


def test_a_schedule_longer_than_the_run_is_refused():
    for name in ("constant", "cosine", "warmup_stable_decay"):
        with pytest.raises(Refusal, match=r"^schedule: warmup of 101 steps in a run of 100; lower schedule.warmup$"):
            curve(name, 100, warmup=101)
    with pytest.raises(Refusal, match=r"^schedule: warmup of 90 and decay of 20 steps in a run of 100; lower one$"):
        curve("warmup_stable_decay", 100, warmup=90)
    with pytest.raises(Refusal, match="'final'"):
        registry.make("training/schedules", "cosine", {"final": 1.5})
