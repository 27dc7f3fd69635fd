"""Which packed set each sample of training comes from: a pure function of the sample's number, exact in its counts.

Source: sets are interleaved as the steps of a line are drawn, in integers and without drift (Bresenham 1965).
Nothing is random here, so every batch holds its shares to within about a row; what is shuffled is the order in a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from armillary.recipe import Phase
from armillary.refusal import Refusal

RESOLUTION = 10**9  # weights are held to nine decimals; in int64 that is exact for phases of up to 9e9 samples


class Mixture:
    """Phases of weights over sets. Without phases each set is drawn in proportion to its rows, each row equally often.

    After m samples of a phase, a set has given its share of them to within one row for every set. A phase ends at the
    last whole sample before its `until_tokens`. n_rows: rows of each set, by name, in the order of set indices.
    window_tokens: tokens a sample trains on. Raises Refusal where a phase names other sets, or the last one an end.
    """

    def __init__(self, n_rows: Mapping[str, int], phases: Sequence[Phase], window_tokens: int) -> None:
        names = list(n_rows)
        for phase in phases:
            if set(phase.weights) != set(names):
                raise Refusal(f"mixture: weights name {sorted(phase.weights)}, the packed sets are {sorted(names)}")
        if phases and phases[-1].until_tokens is not None:
            raise Refusal("mixture: the last phase goes on to the end of training; leave out its until_tokens")
        # Whole rows as weights, not rounded: after as many samples as there are rows, each was drawn exactly once.
        weights = [_whole([phase.weights[name] for name in names]) for phase in phases] or [list(n_rows.values())]
        ends = [phase.until_tokens // window_tokens for phase in phases if phase.until_tokens is not None]
        self._weights = np.array(weights, dtype=np.int64)
        self._starts = np.array([0, *ends], dtype=np.int64)
        self._before = np.zeros_like(self._weights)  # counts of each set before each phase
        for phase in range(1, len(weights)):
            n_samples = self._starts[phase : phase + 1] - self._starts[phase - 1]
            self._before[phase] = self._before[phase - 1] + _due(n_samples, self._weights[[phase - 1]])[0]

    def counts(self, sample_numbers: np.ndarray) -> np.ndarray:
        """(n, n_sets): how many of the samples before each of these numbers (n,) came from each set."""
        phases = np.searchsorted(self._starts, sample_numbers, side="right") - 1
        return self._before[phases] + _due(sample_numbers - self._starts[phases], self._weights[phases])

    def which(self, sample_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each sample's set (n,), and its running number within that set (n,)."""
        before = self.counts(sample_numbers)
        sets = (self.counts(sample_numbers + 1) - before).argmax(axis=1)  # the one set whose count it raises
        return sets, np.take_along_axis(before, sets[:, None], axis=1)[:, 0]


def _due(n_samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, n_sets): n_samples (n,) shared out by weights (n, n_sets). Each rises by one in exactly one set a sample.

    The first set takes its rounded share of the samples, the next its share of what is left, the last the rest: each
    count is monotone, since what is left of a count that rises by 0 or 1 also rises by 0 or 1.
    """
    due = np.empty((len(n_samples), weights.shape[1]), dtype=np.int64)
    left = n_samples
    weight_left = weights.sum(axis=1)
    for k in range(weights.shape[1]):
        scale = np.maximum(weight_left, 1)  # 0 only where earlier sets have taken all
        due[:, k] = (left * weights[:, k] + scale // 2) // scale
        left = left - due[:, k]
        weight_left = weight_left - weights[:, k]
    return due


def _whole(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers that keep their proportions to nine decimals; a positive one never becomes zero."""
    total = sum(weights)
    return [max(round(weight / total * RESOLUTION), int(weight > 0)) for weight in weights]
