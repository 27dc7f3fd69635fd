"""Packing: no token is lost, windows are counted as promised, what is declared acts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary import artefact
from armillary.contracts import BOS, EOS
from armillary.recipe import Packing
from armillary.records import Document
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.text import corpus as text_corpus
from armillary.tokens import packing
from armillary.tokens.packed import PackedSplit, open_packed
from armillary.tokens.packing import Encoded, StreamWriter, pack


def decoded(split: PackedSplit, tokenizer) -> list[str]:
    ends = [*split.document_starts[1:], len(split.tokens)]
    return [tokenizer.decode(split.tokens[a:b].tolist()) for a, b in zip(split.document_starts, ends, strict=True)]


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(texts.filter(any), st.integers(2, 20))
@pytest.mark.filterwarnings("ignore::armillary.refusal.ArmillaryWarning")
def test_no_token_and_no_document_is_lost(packed_of, byte_tokenizer, texts: list[str], window: int) -> None:
    packed = packed_of(texts, window=window)
    split = packed.split("train")
    assert decoded(split, byte_tokenizer) == texts
    stream = [i for text in texts for i in (BOS, *byte_tokenizer.encode(text), EOS)]
    assert split.tokens.tolist() == stream
    rows = split.rows(np.arange(split.n_rows))
    n = len(stream)
    assert len(rows) == max(1, (n - 1) // window)
    # Rows overlap in one token: the target of one is the first input of the next.
    assert [*rows[0, :1], *rows[:, 1:].ravel()] == stream[: len(rows) * window + 1]
    assert n - (len(rows) * split.window + 1) < window
    assert [len(text.encode()) for text in texts] == split.document_bytes.tolist()
    assert packed.about["splits"]["train"]["n_scored"] == (split.tokens != BOS).sum() == n - len(texts)


@pytest.mark.parametrize(
    ("n", "window", "n_rows"), [(10, 8, 1), (9, 8, 1), (16, 8, 1), (17, 8, 2), (18, 8, 2), (25, 8, 3)]
)
def test_number_of_windows(packed_of, n: int, window: int, n_rows: int) -> None:
    split = packed_of(["x" * (n - 2)], window=window).split("train")
    assert len(split.tokens) == n
    assert split.n_rows == n_rows == max(1, (n - 1) // window)
    rows = split.rows(np.arange(n_rows))
    inputs, labels = rows[:, :-1], rows[:, 1:]
    assert np.array_equal(labels[:, :-1], inputs[:, 1:])
    assert np.array_equal(labels, np.asarray(split.tokens)[split.places(np.arange(n_rows))[:, :-1] + 1])


def test_a_short_stream_is_one_shorter_row_with_a_warning(packed_of, byte_tokenizer) -> None:
    with pytest.warns(ArmillaryWarning, match="corpus 'memory', split train: 8 tokens do not fill a window of 8"):
        split = packed_of(["a", "bcd"], window=8).split("train")
    assert (split.n_rows, split.window) == (1, 7)
    assert split.rows(np.array([0]))[0].tolist() == [
        1,
        *byte_tokenizer.encode("a"),
        2,
        1,
        *byte_tokenizer.encode("bcd"),
        2,
    ]


def test_stride_and_max_rows_act_on_rows_alone(packed_of) -> None:
    splits = {"train": ["x" * 98], "validation": ["y" * 98]}
    packed = packed_of(splits, window=8, stride=3, max_rows=5)
    train, validation = packed.split("train"), packed.split("validation")
    assert train.row_starts.tolist() == [0, 3, 6, 9, 12]
    assert validation.n_rows == (100 - 1 - 8) // 3 + 1 == 31
    assert validation.row_starts[-1] + 8 <= 99 < validation.row_starts[-1] + 8 + 3
    assert len(train.tokens) == 100
    assert packed.about["splits"]["train"]["n_rows"] == 5
    with pytest.raises(ValueError, match="stride 9 is more than the window, 8"):
        packed_of(splits, window=8, stride=9)


@pytest.mark.parametrize(("n_vocab", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_the_last_id_fits(packed_of, byte_tokenizer, n_vocab: int, dtype: str) -> None:
    tokenizer = type(byte_tokenizer)(offset=n_vocab - 256)
    split = packed_of(["\x7f" * 20], window=8, tokenizer=tokenizer).split("train")
    assert split.tokens.dtype == dtype
    assert split.tokens.max() == n_vocab - 129
    assert tokenizer.decode(split.tokens.tolist()) == "\x7f" * 20


def test_an_id_beyond_the_vocabulary_is_refused(packed_of, byte_tokenizer) -> None:
    with pytest.raises(Refusal, match="gives id 126, its n_vocab is 100"):
        packed_of(["z" * 20], window=8, tokenizer=type(byte_tokenizer)(n_vocab=100))


def test_a_corpus_without_text_is_refused_and_leaves_nothing(packed_of, tmp_path) -> None:
    for boundary in ("newline", "end_of_text"):
        with pytest.raises(Refusal, match="corpus 'memory', split train: holds no text"):
            packed_of(["", "", "", "", ""], window=2, boundary=boundary, folder=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_small_batches_pack_the_same_bytes_and_tell_how_far_they_are(packed_of, monkeypatch, tmp_path) -> None:
    splits = {"train": ["line " * k for k in range(40)], "validation": ["äö", ""] * 20}
    told: list[tuple[int, int, int]] = []
    whole = packed_of(splits, window=16, boundary="newline", folder=tmp_path / "a")
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 50)
    parts = packed_of(
        splits, window=16, boundary="newline", folder=tmp_path / "b", progress=lambda *done: told.append(done)
    )
    assert (whole.folder / artefact.MANIFEST).read_bytes() == (parts.folder / artefact.MANIFEST).read_bytes()
    assert len(told) > 10 and told == sorted(told)
    assert told[-1] == (80, 80, sum(whole.split(s).document_bytes.sum() for s in splits))


def test_a_bitmap_masks_single_tokens_wherever_it_begins(tmp_path) -> None:
    rng = np.random.default_rng(0)
    masks: list[np.ndarray | None] = [None, None, rng.random(13) < 0.5, None, rng.random(3) < 0.5, rng.random(30) < 0.5]
    lengths = [11, 6, 13, 5, 3, 30]
    with StreamWriter(tmp_path, "train", "<u2", 6) as writer:
        for n, mask in zip(lengths, masks, strict=True):
            writer.append(Encoded(np.array([BOS, *range(4, n + 2), EOS]), n, 1, mask))
    bits = np.fromfile(tmp_path / "train.scored", np.uint8)
    tokens = np.fromfile(tmp_path / "train.tokens", "<u2")
    marked = np.concatenate([np.ones(n, bool) if m is None else m for n, m in zip(lengths, masks, strict=True)])
    assert np.array_equal(np.unpackbits(bits)[: len(tokens)].astype(bool), marked)
    documents = np.load(tmp_path / "train.documents.npy")
    split = PackedSplit(tokens, np.arange(0, 60, 4), documents, 7, bits)
    places = split.places(np.arange(split.n_rows))
    expected = marked[places] & (tokens[places] != BOS)
    expected[:, 0] = False
    assert np.array_equal(split.scored(np.arange(split.n_rows)), expected)
    assert writer.n_scored == (marked & (tokens != BOS)).sum()


def test_a_missing_document_is_an_error(tmp_path) -> None:
    with (
        pytest.raises(ValueError, match="1 documents were written, 2 were announced"),
        StreamWriter(tmp_path, "train", "<u2", 2) as writer,
    ):
        writer.append(Encoded(np.array([BOS, 5, EOS]), 1, 1))


class Lines:
    """A source in memory; blank lines too."""

    boundary = "newline"

    def fingerprint(self):
        return {}

    def read(self):
        for k in range(200):
            yield Document(f"line {k} of text" if k % 3 else "", "validation" if k % 10 == 0 else "train")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_real_corpus_packs_with_its_own_sums(tmp_path, byte_tokenizer, split: str) -> None:
    corpus = text_corpus.build("lines", Lines(), 0.05, tmp_path)  # type: ignore[arg-type]
    sha = "ab" * 32
    pack(corpus, byte_tokenizer, sha, Packing(window=16, isolate_documents=True), tmp_path / "packed" / "lines")
    packed = open_packed(tmp_path / "packed" / "lines", sha)
    stream, facts = packed.split(split), corpus.facts(split)
    assert decoded(stream, byte_tokenizer) == list(corpus.documents(split))
    assert stream.document_bytes.sum() == facts.n_bytes == packed.about["splits"][split]["n_bytes"]
    assert stream.document_words.sum() == facts.n_words == packed.about["splits"][split]["n_words"]
    about = packed.about
    assert about["splits"][split]["text_sha256"] == facts.text_sha256
    assert about["corpus_fingerprint"] == corpus.fingerprint
    assert (about["corpus"], about["boundary"], about["is_lossless"]) == ("lines", "newline", True)
    assert (about["window"], about["stride"], about["isolate_documents"]) == (16, 16, True)
