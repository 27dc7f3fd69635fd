"""A keyed permutation without memory: a bijection, uniform, the same everywhere."""

import numpy as np
import pytest

from armillary.randomness import key
from armillary.tokens.permutation import permute


@pytest.mark.parametrize("sizes", [range(1, 301), [4095, 4096, 4097, 100_003]])
def test_it_is_a_bijection(sizes) -> None:
    for n in sizes:
        assert np.array_equal(np.sort(permute(np.arange(n), n, key(n))), np.arange(n))


def test_a_part_is_the_part_of_the_whole_in_any_shape() -> None:
    whole = permute(np.arange(1000), 1000, 7)
    places = np.array([[999, 0], [3, 3]])
    assert np.array_equal(permute(places, 1000, 7), whole[places])
    assert permute(places, 1000, 7).dtype == np.int64
    assert permute(np.array([], dtype=np.int64), 1000, 7).shape == (0,)


@pytest.mark.parametrize(
    ("n", "n_keys"), [(2, 500), (3, 1000), (17, 1000), pytest.param(5, 20_000, marks=pytest.mark.slow)]
)
def test_every_place_is_equally_likely(n: int, n_keys: int) -> None:
    """χ² over keys of where each element goes. With 8 rounds and n = 5 it is 66 on 4 degrees of freedom."""
    seen = np.zeros((n, n))
    for k in range(n_keys):
        seen[np.arange(n), permute(np.arange(n), n, key(k, "chi"))] += 1
    chi = ((seen - n_keys / n) ** 2 / (n_keys / n)).sum(axis=1)
    assert chi.max() < (n - 1) + 4 * np.sqrt(2 * (n - 1))


def test_neighbours_and_neighbouring_keys_are_unrelated() -> None:
    n = 50_021
    order = permute(np.arange(n), n, 5)
    for other in (np.roll(order, 1), np.arange(n), permute(np.arange(n), n, 6)):
        assert abs(np.corrcoef(order, other)[0, 1]) < 5 / np.sqrt(n)
    steps = np.diff(order) % n
    assert len(np.unique(steps)) > 0.6 * n  # 1 - 1/e for random steps


def test_golden_values() -> None:
    assert permute(np.arange(8), 100, 42).tolist() == [50, 81, 57, 95, 48, 6, 28, 69]
    assert permute(np.arange(3), 10**12, 2**63 - 1).tolist() == [840474666356, 951642480482, 300264442074]


def test_an_index_outside_is_an_error() -> None:
    for index in (-1, 10):
        with pytest.raises(IndexError):
            permute(np.array([index]), 10, 1)
