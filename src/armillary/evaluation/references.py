"""Honest baselines on the same held-out text: what a neural model must beat to be worth its training.

The first three are exact likelihoods over the run's own tokens; `xz` is a code length, so an upper bound.
"""

from __future__ import annotations

import lzma
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from armillary.evaluation.ngram import BOS, N_NEVER_PREDICTED, KneserNey, check_stream
from armillary.records import Kind
from armillary.refusal import Refusal

END_OF_DOCUMENT = b"\xff"
"""Never occurs in UTF-8, so the joined text can be cut again and the code length pays for every document's end."""

MAX_DICTIONARY_BYTES = 3 << 29  # liblzma's own limit


@dataclass(frozen=True)
class TokenStream:
    """Documents `<bos> … <eos>` one after the other: tokens (n_tokens,), document_starts (n_documents,) from 0."""

    tokens: NDArray[np.integer]
    document_starts: NDArray[np.integer]

    def per_document(self, nats: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_tokens,) → (n_documents,): the sum of each document."""
        return np.add.reduceat(nats, self.document_starts)


@dataclass(frozen=True)
class Reference:
    """What a baseline assigns to the held-out text. nats: total. nats_per_document: None where only the total is known.

    about: one sentence that says exactly what was computed. seconds: wall time, training included.
    """

    name: str
    about: str
    kind: Kind
    nats: float
    nats_per_document: NDArray[np.float64] | None
    seconds: float = 0.0


def references(
    train: TokenStream,
    held_out: TokenStream,
    n_vocab: int,
    train_text: Iterable[bytes] | None = None,
    held_out_text: Iterable[bytes] | None = None,
) -> list[Reference]:
    """All baselines, weakest first; `xz` only where both texts are given (UTF-8, one item a document).

    About 5 s of one core for 3 M tokens; `xz` takes 0.9 s of one core a MB of text for each of its two compressions,
    side by side: 20 s of work for 12 MB. Raises Refusal for tokens outside the vocabulary.
    """
    for stream in (train, held_out):
        check_stream(stream.tokens, stream.document_starts, n_vocab)
    found = [_timed(part, train, held_out, n_vocab) for part in (uniform, unigram, kneser_ney)]
    if train_text is not None and held_out_text is not None:
        found.append(_timed(xz, train_text, held_out_text))
    return found


def uniform(train: TokenStream, held_out: TokenStream, n_vocab: int) -> Reference:
    n_choices = n_vocab - N_NEVER_PREDICTED
    nats = np.where(held_out.tokens == BOS, 0.0, math.log(n_choices))
    return _exact("uniform", f"each of the {n_choices:,} tokens that can come is equally likely", held_out, nats)


def unigram(train: TokenStream, held_out: TokenStream, n_vocab: int) -> Reference:
    """Witten–Bell: p(w) = (count(w) + n_types / n_choices) / (n_tokens + n_types)."""
    counts = np.bincount(train.tokens[train.tokens != BOS], minlength=n_vocab)
    n_types = np.count_nonzero(counts)
    p = (counts + n_types / (n_vocab - N_NEVER_PREDICTED)) / (counts.sum() + n_types)
    nats = np.where(held_out.tokens == BOS, 0.0, -np.log(p[held_out.tokens]))
    about = "token frequencies of the training text, mixed with uniform by Witten–Bell's weight; no context"
    return _exact("unigram", about, held_out, nats)


def kneser_ney(train: TokenStream, held_out: TokenStream, n_vocab: int, order: int = 5) -> Reference:
    model = KneserNey.fit(train.tokens, train.document_starts, n_vocab, order)
    nats = model.nll(held_out.tokens, held_out.document_starts)
    about = f"interpolated modified Kneser–Ney of order {order} over the run's own tokens; contexts end with a document"
    return _exact(f"kneser-ney-{order}", about, held_out, nats)


def xz(train_text: Iterable[bytes], held_out_text: Iterable[bytes]) -> Reference:
    """Code length of the held-out text given the training text: bits(train + held-out) - bits(train).

    LZMA2 without container, at its strongest setting for text, with a dictionary as long as both texts together: all
    of the training text can be copied from. Memory: 23 bytes a byte of text. Raises Refusal above 1.5 GiB of text.
    """
    train = b"".join(document + END_OF_DOCUMENT for document in train_text)
    both = train + b"".join(document + END_OF_DOCUMENT for document in held_out_text)
    if len(both) > MAX_DICTIONARY_BYTES:
        raise Refusal(f"xz: {len(both):,} bytes of text, its dictionary ends at 1.5 GiB; leave this reference out")
    # Nothing cheaper will do: with a shallower search 12 MB take two thirds of the time and a quarter more bits.
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0, "nice_len": 273}
    filters = [lzma2 | {"dict_size": max(4096, len(both))}]

    def n_compressed_bytes(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as threads:  # lzma lets go of the GIL
        before, after = threads.map(n_compressed_bytes, (train, both))
    about = "extra bytes xz -9 needs for the held-out text after the training text, with a dictionary that holds both"
    return Reference("xz", about, "upper_bound", 8 * (after - before) * math.log(2), None)


def _exact(name: str, about: str, held_out: TokenStream, nats: NDArray[np.float64]) -> Reference:
    per_document = held_out.per_document(nats)
    return Reference(name, about, "exact", float(per_document.sum()), per_document)


def _timed(part, *arguments) -> Reference:
    start = time.perf_counter()
    found = part(*arguments)
    return replace(found, seconds=time.perf_counter() - start)
