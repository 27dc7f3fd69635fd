"""Quality of texts: the judge's nats are those of the enumerated law; entropy and distinct n-grams by hand."""

from __future__ import annotations

import math

import pytest
import torch

from armillary.contracts import BOS, Layout
from armillary.evaluation import sample_quality
from armillary.refusal import Refusal
from armillary.registry import make

V = 7


@pytest.fixture
def autoregressive():
    return make("objectives", "autoregressive", {})


def nats_by_hand(network, row, window):
    """Each token given what its window shows: windows overlap by half, and score what none before did."""
    total, done = 0.0, 0
    while done < len(row):
        end = min(len(row), done + (window // 2 if done else window))
        start = max(0, end - window)
        seen = torch.tensor([[BOS, *row][start:end]])
        log_p = network(seen, Layout("causal"))[0]
        total -= sum(float(log_p[place - start - 1, row[place - 1]]) for place in range(done + 1, end + 1))
        done = end
    return total


def test_the_judge_reads_short_texts_whole_and_long_ones_by_windows(network_of, autoregressive):
    network = network_of(autoregressive, V)
    rows = [[4, 5, 6], [], [4, 4, 5, 6, 5, 4, 6, 6, 5, 4, 5]]
    found = sample_quality.judge(network, autoregressive, rows, window=4)
    assert [n for _, n in found] == [3, 0, 11]
    for (nats, _), row in zip(found, rows, strict=True):
        assert nats == pytest.approx(nats_by_hand(network, row, 4), abs=1e-10)


def test_a_bound_is_no_judge(network_of):
    masked = make("objectives", "masked_diffusion", {})
    with pytest.raises(Refusal, match="exact likelihood"):
        sample_quality.judge(network_of(masked, V), masked, [[4]], window=4)


def test_entropy_and_distinct_by_hand():
    assert sample_quality.entropy([4, 4, 5, 6]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert sample_quality.entropy([4] * 9) == 0
    texts = [[4, 5, 4, 5], [4, 5]]  # unigrams 4 5 4 5 4 5; bigrams 45 54 45 45; trigrams 454 545
    assert [sample_quality.distinct(texts, n) for n in (1, 2, 3, 4, 5)] == [2 / 6, 2 / 4, 1.0, 1.0, 0.0]


def test_quality_is_of_all_texts_and_its_error_of_their_spread():
    found = sample_quality.quality([[4, 5], [], [4, 4]], [(2.0, 2), (0.0, 0), (6.0, 2)])
    assert (found.n_texts, found.tokens_per_text) == (3, 4 / 3)
    assert found.judge_perplexity == pytest.approx(math.exp(2))
    assert found.entropy_nats == pytest.approx(math.log(2) / 2)  # of the two that have a token
    assert found.stderr_log_perplexity == pytest.approx(math.sqrt((4 + 0 + 4) * 3 / 2) / 4)
    with pytest.raises(Refusal, match="no text has a token"):
        sample_quality.quality([[]], [(0.0, 0)])
