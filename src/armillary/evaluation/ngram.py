"""Interpolated modified Kneser–Ney over integer tokens: the reference that a neural model must beat.

Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3.
An n-gram that starts at a document's left edge keeps its plain count below the highest order, as nothing stands to
its left (Heafield et al. 2013, section 3.2).
Differs: the unigrams are mixed with a uniform distribution over every token that can be predicted, so that none has
probability zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.refusal import Refusal

N_NEVER_PREDICTED = 2
"""pad (id 0) and bos (id 1), as in contracts, which this module does not import: contracts brings torch."""
BOS = 1

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For an order whose counts of counts give no usable discount: a text of some hundred tokens, or a repeated one."""

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The n-grams of one order. A context is the number of an (n-1)-gram in the level below.

    keys: (n_grams,) sorted, context * n_vocab + token. share: (n_grams,) discounted count over the context's total.
    backoff: (n_contexts,) the weight that a context leaves to the order below; 1 where nothing ever followed it.
    """

    keys: NDArray[np.int64]
    share: Floats
    backoff: Floats


@dataclass(frozen=True)
class KneserNey:
    """A fitted model; make one with `fit`. 3 M tokens, order 5: about 3 s and 0.6 GB on one core."""

    levels: tuple[Level, ...]
    n_vocab: int
    crosses_documents: bool

    @classmethod
    def fit(
        cls,
        tokens: Ints,
        document_starts: Ints,
        n_vocab: int,
        order: int = 5,
        crosses_documents: bool = False,
    ) -> KneserNey:
        """Counts the n-grams of a flat stream (n_tokens,) whose documents start at `document_starts` (n_documents,).

        A document is `<bos> … <eos>`; a bos that is missing is taken as there. No context reaches past it, unless
        `crosses_documents`: then the stream is one text and only its very start is an edge.
        Raises Refusal for a token outside the vocabulary, or where there is nothing to count.
        """
        if order < 1:
            raise Refusal(f"order: {order} is not an order of n-grams; give 1 or more")
        stream, depth = _edged(tokens, document_starts, n_vocab, crosses_documents)
        if not depth.any():
            raise Refusal("tokens: nothing to count, every token is a bos; give a longer text")
        grams: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        before = np.zeros(len(stream), np.int32)  # the (n-1)-gram that ends at each position
        for n in range(1, order + 1):
            where = np.flatnonzero(depth >= n - 1)
            keys, inverse, counts = np.unique(
                _keys(stream, before, where, n, n_vocab), return_inverse=True, return_counts=True
            )
            if n > 1:
                without_first = np.empty(len(keys), np.int32)
                without_first[inverse] = before[where]
                grams[-1] = (grams[-1][0], _continuations(without_first, grams[-1][1]))
            grams.append((keys, counts))
            before = np.full(len(stream), -1, np.int32)
            before[where] = inverse
        unigrams = grams[0]
        unigrams[1][unigrams[0] == BOS] = 0
        sizes = [1, *(len(keys) for keys, _ in grams)]
        levels = tuple(_level(keys, counts, size, n_vocab) for (keys, counts), size in zip(grams, sizes, strict=False))
        return cls(levels, n_vocab, crosses_documents)

    def nll(self, tokens: Ints, document_starts: Ints) -> Floats:
        """Nats of each token given those before it: (n_tokens,), 0 for a bos. Raises Refusal as `fit` does."""
        stream, depth = _edged(tokens, document_starts, self.n_vocab, self.crosses_documents)
        p = np.full(len(stream), 1 / (self.n_vocab - N_NEVER_PREDICTED))
        before = np.zeros(len(stream), np.int32)
        for n, level in enumerate(self.levels, start=1):
            where = np.flatnonzero(depth >= n - 1)
            if n > 1:
                where = where[before[where - 1] >= 0]
            keys = _keys(stream, before, where, n, self.n_vocab)
            slot = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            is_known = level.keys[slot] == keys
            p[where] = level.backoff[keys // self.n_vocab] * p[where] + np.where(is_known, level.share[slot], 0)
            before = np.full(len(stream), -1, np.int32)
            before[where[is_known]] = slot[is_known]
        nats = np.zeros(len(tokens))
        nats[tokens != BOS] = -np.log(p[depth > 0])
        return nats


def discounts(counts: Ints) -> Floats:
    """What to take from a count of 0, 1, 2, and 3 or more: (4,), each above 0 and at most its count.

    Chen & Goodman, equation 26; the fallback where a count of counts is zero or a discount leaves its range.
    """
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < d <= k for k, d in enumerate(found, start=1)):
            return np.array([0, *found])
    return np.array([0, *FALLBACK_DISCOUNTS])


def check_stream(tokens: Ints, document_starts: Ints, n_vocab: int) -> None:
    """Raises Refusal where a flat stream is empty, holds a pad or an id outside the vocabulary, or has wrong starts."""
    if len(tokens) == 0 or len(document_starts) == 0:
        raise Refusal("tokens: the stream is empty; give a text with at least one document")
    starts = np.asarray(document_starts, np.int64)  # a difference of unsigned numbers is never negative
    if starts[0] != 0 or starts[-1] >= len(tokens) or (np.diff(starts) <= 0).any():
        raise Refusal("document_starts: must rise from 0 and stay below the number of tokens; pack the text again")
    if (highest := int(tokens.max())) >= n_vocab or int(tokens.min()) < BOS:
        raise Refusal(f"tokens: ids must be 1 to {n_vocab - 1}, found {tokens.min()} and {highest}; wrong tokenizer?")


def _level(keys: NDArray[np.int64], counts: NDArray[np.int64], n_contexts: int, n_vocab: int) -> Level:
    taken = discounts(counts)[np.minimum(counts, 3)]
    context = keys // n_vocab
    total = np.bincount(context, weights=counts, minlength=n_contexts)
    left = np.bincount(context, weights=taken, minlength=n_contexts)
    is_followed = total > 0
    total[~is_followed] = 1
    return Level(keys, (counts - taken) / total[context], np.where(is_followed, left / total, 1.0))


def _continuations(without_first: Ints, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many distinct tokens stand to the left of each n-gram; its plain count where it starts at an edge."""
    n_left = np.bincount(without_first, minlength=len(counts))
    return np.where(n_left > 0, n_left, counts)


def _keys(stream: Ints, before: Ints, where: Ints, n: int, n_vocab: int) -> NDArray[np.int64]:
    token = stream[where].astype(np.int64)
    return token if n == 1 else before[where - 1].astype(np.int64) * n_vocab + token


def _edged(
    tokens: Ints, document_starts: Ints, n_vocab: int, crosses_documents: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stream with exactly one bos at each left edge, and how far each position stands from it: 0 is the bos."""
    check_stream(tokens, document_starts, n_vocab)
    starts = np.asarray(document_starts, np.int64)
    is_text = tokens != BOS
    n_in_document = np.add.reduceat(is_text, starts[:1] if crosses_documents else starts, dtype=np.int64)
    edges = np.cumsum(n_in_document + 1) - n_in_document - 1
    stream = np.full(int(n_in_document.sum()) + len(edges), BOS, np.int64)
    depth = np.arange(len(stream)) - np.repeat(edges, n_in_document + 1)
    stream[depth > 0] = tokens[is_text]
    return stream, depth
