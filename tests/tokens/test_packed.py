"""Opening a packed artefact: verified, of the right tokenizer; rows, documents and what is scored."""

import numpy as np
import pytest

from armillary.contracts import BOS, EOS
from armillary.refusal import Refusal
from armillary.tokens.packed import open_packed

SHA = "5a" * 32


@pytest.fixture(scope="module")
def packed(packed_of):
    texts = ["", "abcdefghij", "kl", "", "mnopqrstuvwxyz" * 3]
    return packed_of({"train": texts, "validation": ["held out"] * 3, "test": ["unseen"] * 3}, window=8)


def test_opening_gives_what_was_packed(packed) -> None:
    again = open_packed(packed.folder, SHA)
    assert again == packed
    assert again.splits == ("train", "validation", "test")  # the manifest sorts its keys, we do not
    assert np.array_equal(again.split("test").tokens, packed.split("test").tokens)


def test_another_tokenizer_is_refused_with_both_hashes(packed) -> None:
    with pytest.raises(Refusal, match="tokenizer changed since packing: packed with 5a5a5a5a5a5a…, this one is bbbbbb"):
        open_packed(packed.folder, "b" * 64)


def test_an_unknown_split_is_refused(packed) -> None:
    with pytest.raises(Refusal, match="no split 'valid'; did you mean 'validation'"):
        packed.split("valid")


@pytest.mark.parametrize("name", ["train.tokens", "train.rows.npy", "validation.documents.npy"])
def test_a_flipped_byte_is_refused_by_name(packed_of, name: str) -> None:
    folder = packed_of({"train": ["abc" * 9], "validation": ["abc" * 9]}, window=8).folder
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(Refusal, match=name):
        open_packed(folder)


def test_documents_by_place(packed) -> None:
    split = packed.split("train")
    expected = np.cumsum(np.asarray(split.tokens) == BOS) - 1
    places = np.arange(len(split.tokens))
    assert np.array_equal(split.document_of(places), expected)
    assert np.array_equal(split.document_of(places[:24].reshape(4, 6)), expected[:24].reshape(4, 6))
    assert (split.tokens[split.document_starts] == BOS).all()
    assert split.document_starts.flags.c_contiguous  # or each search would copy all of them


def test_scored_is_all_but_the_first_of_a_row_and_bos(packed) -> None:
    split = packed.split("train")
    indices = np.array([2, 0, 1, 2])
    rows, scored = split.rows(indices), split.scored(indices)
    assert rows.dtype == np.int64 and rows.shape == scored.shape == (4, 9)
    assert np.array_equal(rows[0], np.asarray(split.tokens)[16:25])
    expected = rows != BOS
    expected[:, 0] = False
    assert np.array_equal(scored, expected)
    assert scored[rows == EOS].any()


def test_at_stride_of_the_window_each_token_is_scored_once(packed) -> None:
    split = packed.split("train")
    places = split.places(np.arange(split.n_rows))
    times = np.bincount(places[split.is_scored(places)], minlength=len(split.tokens))
    last = places.max()
    assert np.array_equal(times[: last + 1], np.asarray(split.tokens[: last + 1]) != BOS)
    assert len(split.tokens) - 1 - last < 8
