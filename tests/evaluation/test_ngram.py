"""Kneser–Ney against a naive dictionary implementation, by enumeration, and against the published WikiText-2 figure."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from armillary import contracts
from armillary.evaluation import ngram
from armillary.evaluation.ngram import BOS, FALLBACK_DISCOUNTS, KneserNey, discounts
from armillary.refusal import Refusal

ROOT = Path(__file__).parents[2]
WIKITEXT = Path(os.environ.get("ARMILLARY_DATA", ROOT.parent / "shared" / "data")) / "wikitext-2"
EOS = 2


class Naive:
    """The textbook formulas, one n-gram at a time. documents: lists of tokens without bos."""

    def __init__(self, documents: list[list[int]], n_vocab: int, order: int) -> None:
        self.n_vocab, self.order = n_vocab, order
        plain: Counter[tuple[int, ...]] = Counter()
        lefts: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for document in documents:
            text = [BOS, *document]
            for end in range(1, len(text)):
                for n in range(1, min(order, end + 1) + 1):
                    gram = tuple(text[end - n + 1 : end + 1])
                    plain[gram] += 1
                    if end - n >= 0:
                        lefts[gram].add(text[end - n])
        self.count = {
            gram: c if len(gram) == order or gram[0] == BOS else len(lefts[gram]) for gram, c in plain.items()
        }
        self.discount = {}
        for n in range(1, order + 1):
            counts = np.array([c for gram, c in self.count.items() if len(gram) == n], dtype=int)
            self.discount[n] = discounts(counts)

    def p(self, token: int, history: tuple[int, ...]) -> float:
        """history: ends right before the token, starts with BOS where the document does."""
        return self._p(token, history[len(history) - min(len(history), self.order - 1) :])

    def _p(self, token: int, history: tuple[int, ...]) -> float:
        below = self._p(token, history[1:]) if history else 1 / (self.n_vocab - 2)
        n = len(history) + 1
        followers = {g[-1]: c for g, c in self.count.items() if len(g) == n and g[:-1] == history}
        total = sum(followers.values())
        if total == 0:
            return below
        taken = {w: self.discount[n][min(c, 3)] for w, c in followers.items()}
        own = followers[token] - taken[token] if token in followers else 0.0
        return (own + sum(taken.values()) * below) / total


def as_stream(documents: list[list[int]], has_bos: bool = True) -> tuple[np.ndarray, np.ndarray]:
    whole = [[BOS, *d] if has_bos else d for d in documents]
    lengths = np.array([len(d) for d in whole])
    return np.concatenate([np.array(d) for d in whole]).astype(np.uint16), np.cumsum(lengths) - lengths


def draw_documents(seed: int, n_documents: int, n_vocab: int, length: int = 12) -> list[list[int]]:
    """Text with repeats: each token mostly follows from the two before it."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(n_documents):
        tokens = [3]
        for _ in range(int(generator.integers(0, length))):
            follow = (tokens[-1] * 2 + sum(tokens[-2:])) % (n_vocab - 3) + 3
            tokens.append(follow if generator.random() < 0.6 else int(generator.integers(3, n_vocab)))
        documents.append([*tokens, EOS])
    return documents


def nll_after(model: KneserNey, history: tuple[int, ...], token: int) -> float:
    return model.nll(np.array([BOS, *history, token]), np.array([0]))[-1]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize(("seed", "n_documents", "n_vocab"), [(0, 1, 6), (1, 4, 6), (2, 60, 9), (3, 300, 12)])
def test_equals_the_textbook_formulas(order: int, seed: int, n_documents: int, n_vocab: int) -> None:
    documents = draw_documents(seed, n_documents, n_vocab)
    held_out = draw_documents(seed + 100, 6, n_vocab)
    model, naive = KneserNey.fit(*as_stream(documents), n_vocab, order), Naive(documents, n_vocab, order)
    tokens, starts = as_stream(held_out)
    expected = []
    for document in held_out:
        expected.append(0.0)
        expected += [-math.log(naive.p(w, (BOS, *document[:i]))) for i, w in enumerate(document)]
    np.testing.assert_allclose(model.nll(tokens, starts), expected, rtol=1e-10)


def test_the_reference_itself_uses_true_discounts() -> None:
    """The comparison above would prove little if every corpus there fell back."""
    naive = Naive(draw_documents(3, 300, 12), 12, 5)
    usable = [n for n in range(1, 6) if not np.array_equal(naive.discount[n][1:], FALLBACK_DISCOUNTS)]
    assert len(usable) >= 2


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("n_documents", [1, 5, 200])
def test_probabilities_sum_to_one_for_any_history(n_documents: int, crosses: bool) -> None:
    n_vocab = 5
    documents = draw_documents(7, n_documents, n_vocab)
    model = KneserNey.fit(*as_stream(documents), n_vocab, 5, crosses_documents=crosses)
    for length in range(6):
        for history in itertools.product((2, 3, 4), repeat=length):
            p = [math.exp(-nll_after(model, history, w)) for w in range(2, n_vocab)]
            assert min(p) > 0
            assert sum(p) == pytest.approx(1, abs=1e-12)


def test_a_context_that_was_never_seen_backs_off_fully() -> None:
    documents = draw_documents(1, 50, 6)
    model = KneserNey.fit(*as_stream(documents), 8, 5)
    assert nll_after(model, (3, 4, 7), 4) == pytest.approx(nll_after(model, (7,), 4))
    assert nll_after(model, (3, 4, 7), 6) < math.inf


def test_a_document_does_not_see_the_one_before() -> None:
    documents = draw_documents(4, 40, 9)
    model = KneserNey.fit(*as_stream(documents), 9, 5)
    together = model.nll(*as_stream(documents[:2]))
    alone = model.nll(*as_stream(documents[1:2]))
    np.testing.assert_array_equal(together[-len(alone) :], alone)
    crossing = KneserNey.fit(*as_stream(documents), 9, 5, crosses_documents=True)
    assert crossing.nll(*as_stream(documents[:2]))[-len(alone) + 1] != crossing.nll(*as_stream(documents[1:2]))[1]


def test_a_missing_bos_is_taken_as_there_and_costs_nothing() -> None:
    documents = draw_documents(5, 30, 9)
    with_bos, without = as_stream(documents), as_stream(documents, has_bos=False)
    nats = KneserNey.fit(*with_bos, 9).nll(*with_bos)
    np.testing.assert_array_equal(nats[with_bos[0] != BOS], KneserNey.fit(*without, 9).nll(*without))
    assert (nats[with_bos[0] == BOS] == 0).all()


@pytest.mark.parametrize("counts", [[], [1], [1, 1, 1], [2, 2], [1, 2], [1, 2, 3], [5, 9], [1, 2, 3, 3, 3, 3, 4]])
def test_discounts_of_a_tiny_text_stay_between_zero_and_the_count(counts: list[int]) -> None:
    found = discounts(np.array(counts, dtype=int))
    assert found[0] == 0
    assert all(0 < d <= k for k, d in enumerate(found[1:], start=1))


def test_discounts_of_a_large_text_are_those_of_the_paper() -> None:
    y = 100 / (100 + 2 * 40)
    expected = [0, 1 - 2 * y * 40 / 100, 2 - 3 * y * 20 / 40, 3 - 4 * y * 10 / 20]
    found = discounts(np.repeat([1, 2, 3, 4, 5, 70], [100, 40, 20, 10, 30, 9]))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("tokens", "starts", "names"),
    [
        ([], [], "tokens"),
        ([1, 4, 9, 2], [0], "1 to 8"),
        ([1, 4, 0, 2], [0], "tokens"),
        ([1, 4, 2], [1], "document_starts"),
        ([1, 4, 2, 1, 2], [0, 3, 3], "document_starts"),
        ([1, 4, 2], [0, 3], "document_starts"),
        ([1], [0], "tokens"),
    ],
)
def test_a_wrong_stream_is_refused(tokens: list[int], starts: list[int], names: str) -> None:
    with pytest.raises(Refusal, match=names):
        KneserNey.fit(np.array(tokens, dtype=int), np.array(starts, dtype=int), 9)


def test_the_special_ids_are_those_of_the_contracts() -> None:
    assert (contracts.PAD, contracts.BOS, contracts.EOS) == (0, ngram.BOS, EOS)
    assert {contracts.PAD, contracts.BOS} == set(range(ngram.N_NEVER_PREDICTED))


def test_a_million_tokens_take_seconds() -> None:
    """Guards the vectorised path; alone on a core it takes under a second."""
    generator = np.random.default_rng(0)
    tokens = (generator.zipf(1.3, 1_000_000) % 8000 + 3).astype(np.uint16)
    starts = np.arange(0, len(tokens), 5000)
    start = time.process_time()
    model = KneserNey.fit(tokens, starts, 8192)
    model.nll(tokens[:200_000], starts[:40])
    assert time.process_time() - start < 10


@pytest.mark.slow
@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="no wikitext-2 in shared/data or ARMILLARY_DATA")
def test_wikitext_2_gives_the_published_perplexity() -> None:
    """Published: 219. Contexts that end with the line give 220.1, contexts that cross it 217.8."""
    spec = importlib.util.spec_from_file_location("kneser_ney_wikitext2", ROOT / "benchmarks/kneser_ney_wikitext2.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    for crosses_lines, expected in ((False, 220.14), (True, 217.80)):
        perplexity, n_tokens, n_types = benchmark.test_perplexity(WIKITEXT, crosses_lines)
        assert (n_tokens, n_types) == (245_569, 33_278)
        assert perplexity == pytest.approx(expected, abs=0.1)
        assert perplexity == pytest.approx(219, abs=1.5)
