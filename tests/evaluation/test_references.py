"""Baselines: each figure against arithmetic by hand, their order on text with structure, and xz on copied text."""

from __future__ import annotations

import lzma
import math

import numpy as np
import pytest

from armillary.evaluation.ngram import KneserNey
from armillary.evaluation.references import TokenStream, kneser_ney, references, uniform, unigram, xz
from armillary.refusal import Refusal

BOS, EOS = 1, 2


def as_stream(documents: list[list[int]]) -> TokenStream:
    whole = [[BOS, *document, EOS] for document in documents]
    lengths = np.array([len(d) for d in whole])
    return TokenStream(np.concatenate([np.array(d, np.uint16) for d in whole]), np.cumsum(lengths) - lengths)


@pytest.fixture
def text() -> tuple[list[bytes], list[bytes]]:
    """Characters as bytes, so that tokens and text are the same thing: token = byte - 90."""
    generator = np.random.default_rng(0)
    words = [bytes(generator.integers(97, 123, size=generator.integers(2, 7)).astype(np.uint8)) for _ in range(40)]
    documents = [b"`".join(words[i] for i in generator.integers(0, 12, size=60) ** 2 % 40) for _ in range(60)]
    return documents[:50], documents[50:]


def tokens_of(documents: list[bytes]) -> TokenStream:
    return as_stream([[byte - 90 for byte in document] for document in documents])


def test_uniform_is_the_log_of_what_can_come() -> None:
    found = uniform(as_stream([[3]]), as_stream([[4, 5], [6]]), 10)
    assert found.nats_per_document == pytest.approx(np.array([3, 2]) * math.log(8))
    assert found.nats == pytest.approx(5 * math.log(8))
    assert found.kind == "exact"


def test_unigram_by_hand() -> None:
    """Training: 3 3 4 eos, so n = 4 tokens of 3 types; 8 choices."""
    found = unigram(as_stream([[3, 3, 4]]), as_stream([[3], [9]]), 10)
    p = {3: (2 + 3 / 8) / 7, EOS: (1 + 3 / 8) / 7, 9: (3 / 8) / 7}
    expected = [-math.log(p[3] * p[EOS]), -math.log(p[9] * p[EOS])]
    assert found.nats_per_document == pytest.approx(expected)


def test_unigram_sums_to_one() -> None:
    train, n_vocab = as_stream([[3, 3, 4], [5, 4]]), 9
    held_out = as_stream([[token] for token in range(3, n_vocab)])
    by_document = unigram(train, held_out, n_vocab).nats_per_document
    assert by_document is not None
    of_eos = unigram(train, TokenStream(np.array([BOS, EOS]), np.array([0])), n_vocab).nats
    assert np.exp(-(by_document - of_eos)).sum() + math.exp(-of_eos) == pytest.approx(1)


def test_kneser_ney_is_summed_by_document() -> None:
    generator = np.random.default_rng(1)
    documents = [list(generator.integers(3, 7, size=generator.integers(0, 30))) for _ in range(40)]
    train, held_out = as_stream(documents), as_stream(documents[:7])
    found = kneser_ney(train, held_out, 8)
    nats = KneserNey.fit(train.tokens, train.document_starts, 8).nll(held_out.tokens, held_out.document_starts)
    expected = [part.sum() for part in np.split(nats, held_out.document_starts[1:])]
    assert found.nats_per_document == pytest.approx(np.array(expected))
    assert found.nats == pytest.approx(nats.sum())


def test_references_stand_in_their_order(text: tuple[list[bytes], list[bytes]]) -> None:
    train, held_out = text
    found = references(tokens_of(train), tokens_of(held_out), 34, train, held_out)
    assert [r.name for r in found] == ["uniform", "unigram", "kneser-ney-5", "xz"]
    assert [r.kind for r in found] == ["exact", "exact", "exact", "upper_bound"]
    nats = {r.name: r.nats for r in found}
    assert nats["uniform"] > nats["unigram"] > nats["xz"] > 0
    assert nats["unigram"] > nats["kneser-ney-5"] > 0
    assert all(r.seconds > 0 for r in found)
    for reference in found[:3]:
        assert reference.nats_per_document is not None
        assert reference.nats_per_document.shape == (10,)
        assert reference.nats == pytest.approx(reference.nats_per_document.sum())
    assert found[3].nats_per_document is None


def test_without_text_there_is_no_xz() -> None:
    stream = as_stream([[3, 4]])
    assert [r.name for r in references(stream, stream, 6)] == ["uniform", "unigram", "kneser-ney-5"]


def test_xz_copies_from_the_far_end_of_the_training_text() -> None:
    """Noise, 9 MB back: a dictionary of preset 6 (8 MiB) would not reach it, and the copy would cost 8 bits a byte."""
    noise = np.random.default_rng(2).integers(0, 255, size=20_000, dtype=np.uint8).tobytes()
    train = [noise, b"\0" * 9_500_000]
    found = xz(iter(train), iter([noise]))
    assert 0 < found.nats / math.log(2) < 0.05 * 8 * len(noise)
    fresh = np.random.default_rng(3).integers(0, 255, size=20_000, dtype=np.uint8).tobytes()
    assert xz(iter(train), iter([fresh])).nats / math.log(2) > 0.98 * 8 * len(fresh)


def test_xz_is_the_difference_of_two_code_lengths_that_decode() -> None:
    train, held_out = [b"one fish two fish " * 20], [b"red fish", b"blue fish"]
    before = train[0] + b"\xff"
    both = before + b"red fish\xffblue fish\xff"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0, "nice_len": 273, "dict_size": 4096}]
    coded = [lzma.compress(text, lzma.FORMAT_RAW, filters=filters) for text in (before, both)]
    assert lzma.decompress(coded[1], lzma.FORMAT_RAW, filters=filters) == both
    assert xz(train, held_out).nats == pytest.approx(8 * math.log(2) * (len(coded[1]) - len(coded[0])))


def test_tokens_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(Refusal, match="1 to 5"):
        references(as_stream([[3, 4]]), as_stream([[3, 7]]), 6)
