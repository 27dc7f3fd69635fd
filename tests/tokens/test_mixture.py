"""Which set a sample comes from: exact counts, phases kept, no walk from zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.recipe import Phase
from armillary.refusal import Refusal
from armillary.tokens.mixture import Mixture

ROWS = {"a": 100, "b": 30, "c": 7}


def walk(mixture: Mixture, n: int) -> np.ndarray:
    """(n, n_sets): counts before each sample, kept by hand; the running number must agree with them."""
    sets, running = mixture.which(np.arange(n))
    given = np.eye(mixture.counts(np.array([0])).shape[1], dtype=np.int64)[sets]
    before = np.cumsum(given, axis=0) - given
    assert np.array_equal(before[np.arange(n), sets], running)
    return before


def test_without_phases_an_epoch_of_everything_is_everything_once() -> None:
    mixture = Mixture(ROWS, [], 8)
    for epoch in (1, 2, 1_000_000):
        assert mixture.counts(np.array([137 * epoch]))[0].tolist() == [100 * epoch, 30 * epoch, 7 * epoch]
    sets, running = mixture.which(np.arange(137))
    assert sorted(zip(sets.tolist(), running.tolist(), strict=True)) == [
        (k, j) for k, n in enumerate((100, 30, 7)) for j in range(n)
    ]


def test_one_set_is_counting() -> None:
    sets, running = Mixture({"a": 5}, [], 8).which(np.array([0, 7, 10**9]))
    assert sets.tolist() == [0, 0, 0]
    assert running.tolist() == [0, 7, 10**9]


def test_phases_begin_and_end_where_they_say() -> None:
    phases = [
        Phase(weights={"a": 1, "b": 0, "c": 0}, until_tokens=8 * 50 + 3),
        Phase(weights={"a": 0, "b": 0.7, "c": 0.3}, until_tokens=8 * 1050),
        Phase(weights={"a": 2, "b": 1, "c": 1}),
    ]
    mixture = Mixture(ROWS, phases, 8)
    sets, _ = mixture.which(np.arange(1450))
    assert (sets[:50] == 0).all()
    assert np.bincount(sets[50:1050], minlength=3).tolist() == [0, 700, 300]
    assert np.bincount(sets[1050:], minlength=3).tolist() == [200, 100, 100]
    walk(mixture, 1450)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01), st.integers(0, 10**8))
def test_shares_hold_at_every_sample(weights: list[float], far: int) -> None:
    rows = {str(k): 10 for k in range(len(weights))}
    mixture = Mixture(rows, [Phase(weights={str(k): w for k, w in enumerate(weights)})], 8)
    before = walk(mixture, 500)
    assert np.array_equal(mixture.counts(np.arange(500)), before)
    numbers = far + np.arange(50)
    share = np.array(weights) / sum(weights)
    assert np.abs(mixture.counts(numbers) - numbers[:, None] * share).max() <= len(weights) + far * 1e-8
    sets, running = mixture.which(numbers)
    assert np.array_equal(mixture.counts(numbers)[np.arange(50), sets], running)
    assert all(weights[k] > 0 for k in sets)


def test_batches_hold_their_shares() -> None:
    """Not only in the long run: each 10 samples in a row hold 7 : 3."""
    mixture = Mixture({"a": 1, "b": 1}, [Phase(weights={"a": 0.7, "b": 0.3})], 8)
    sets, _ = mixture.which(np.arange(1000))
    assert (np.add.reduceat(sets, np.arange(0, 1000, 10)) == 3).all()


def test_a_rare_set_is_not_lost() -> None:
    mixture = Mixture({"big": 1_000_000, "small": 1}, [], 8)
    assert mixture.counts(np.array([1_000_001]))[0].tolist() == [1_000_000, 1]
    by_weight = Mixture({"big": 5, "small": 5}, [Phase(weights={"big": 1, "small": 1e-12})], 8)
    assert by_weight.counts(np.array([4 * 10**9]))[0, 1] == 4


def test_other_sets_and_an_end_of_the_last_phase_are_refused() -> None:
    with pytest.raises(Refusal, match=r"weights name \['x'\], the packed sets are \['a', 'b', 'c'\]"):
        Mixture(ROWS, [Phase(weights={"x": 1})], 8)
    with pytest.raises(Refusal, match="leave out its until_tokens"):
        Mixture(ROWS, [Phase(weights={"a": 1, "b": 1, "c": 1}, until_tokens=100)], 8)
