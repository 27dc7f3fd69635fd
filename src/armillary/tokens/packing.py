"""A corpus through a tokenizer into a packed artefact: a flat stream of tokens a split, cut in rows by offset.

artefacts/packed/NAME-HASH8/  manifest.json  and of each split
    SPLIT.tokens         the stream, uint16 (uint32 for more than 65,536 ids), little-endian, no header
    SPLIT.rows.npy       int64 (n_rows,)
    SPLIT.documents.npy  int64 (n_documents, 3): offset of the document's bos, its bytes, its words
    SPLIT.scored         np.packbits of one bit a token, where only some tokens are scored
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from armillary import artefact
from armillary.contracts import BOS, EOS, Tokenizer
from armillary.recipe import Packing
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.text.corpus import Corpus, n_bytes, n_words
from armillary.tokens.packed import Packed

Progress = Callable[[int, int, int], None]
"""Called with (documents done, documents in all, bytes of text done)."""

BATCH_CHARACTERS = 2**20
BITS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Encoded:
    """A document as the stream takes it. ids: (n,) with its bos and eos. scored: (n,) bool; None means all are."""

    ids: np.ndarray
    n_bytes: int
    n_words: int
    scored: np.ndarray | None = None


def pack(
    corpus: Corpus,
    tokenizer: Tokenizer,
    tokenizer_sha256: str,
    packing: Packing,
    folder: Path,
    progress: Progress | None = None,
) -> Packed:
    """Encodes every split of a corpus into the artefact `folder`, in memory that does not grow with the corpus.

    tokenizer_sha256: of the tokenizer's model file; whoever opens the artefact with another one is refused. Warns where
    a split is shorter than one window: it becomes one shorter row. `packing.max_rows` keeps the first rows of the
    training split; the stream stays whole. Raises Refusal for a training split without text.
    """
    stride = packing.stride or packing.window
    dtype = "<u2" if tokenizer.n_vocab <= 2**16 else "<u4"
    about: dict[str, Any] = {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "boundary": corpus.boundary,
        "tokenizer_sha256": tokenizer_sha256,
        "n_vocab": tokenizer.n_vocab,
        "is_lossless": tokenizer.is_lossless,
        "dtype": dtype,
        "packing": packing.model_dump(),
        "window": packing.window,
        "stride": stride,
        "max_rows": packing.max_rows,
        "isolate_documents": packing.isolate_documents,
        "splits": {},
    }
    tell = _Telling(progress, sum(corpus.facts(split).n_documents for split in corpus.splits))
    with artefact.writing(folder, "packed", about) as beside:
        for split in corpus.splits:
            with StreamWriter(beside, split, dtype, corpus.facts(split).n_documents) as stream:
                for batch in _encoded(corpus, split, tokenizer):
                    for document in batch:
                        stream.append(document)
                    tell.done(batch)
            where = f"corpus '{corpus.name}', split {split}"
            if split == "train" and stream.n_tokens <= 2 * stream.n_written:
                raise Refusal(f"{where}: holds no text; give a corpus with some")
            if packing.isolate_documents == "padded":
                starts = np.load(beside / f"{split}.documents.npy")[:, 0]
                rows = rows_of_documents(starts, stream.n_tokens, stride)
            else:
                rows = row_starts(stream.n_tokens, packing.window, stride, where)
            if split == "train":
                rows = rows[: packing.max_rows]
            np.save(beside / f"{split}.rows.npy", rows)
            about["splits"][split] = _facts(corpus, split, stream, len(rows))
    return Packed(folder, about)


def row_starts(n_tokens: int, window: int, stride: int, where: str) -> np.ndarray:
    """int64 offsets of the rows of window + 1 tokens, one every `stride`.

    At stride T these are max(1, ⌊(n - 1) / T⌋): each token but the first is a target once, and fewer than T at the end
    are in no row. A stream shorter than one row is one shorter row; `where` names it in the warning.
    """
    if n_tokens <= window:
        message = (
            f"{where}: {n_tokens:,} tokens do not fill a window of {window:,} and its target; it is one shorter row"
        )
        warnings.warn(message, ArmillaryWarning, stacklevel=3)
    n_rows = max(1, (n_tokens - 1 - window) // stride + 1)
    return np.arange(n_rows, dtype=np.int64) * stride


def rows_of_documents(starts: np.ndarray, n_tokens: int, stride: int) -> np.ndarray:
    """int64 offsets of rows that each begin in one document and end with it: no token of it is left out."""
    ends = np.append(starts[1:], n_tokens)
    return np.concatenate([np.arange(a, b - 1, stride, dtype=np.int64) for a, b in zip(starts, ends, strict=True)])


class StreamWriter:
    """Writes the stream of one split, document by document. `n_scored` counts neither bos nor what is masked out."""

    def __init__(self, folder: Path, split: str, dtype: str, n_documents: int) -> None:
        self.n_tokens = self.n_scored = self.n_written = 0
        self._n_documents, self._dtype = n_documents, np.dtype(dtype)
        self._file = (folder / f"{split}.tokens").open("wb", buffering=2**20)
        # Column by column on disk: a search among the offsets then reads nothing else, and copies nothing.
        shape = (n_documents, 3)
        self._documents = open_memmap(folder / f"{split}.documents.npy", "w+", np.dtype("<i8"), shape, True)
        self._bits_file = folder / f"{split}.scored"
        self._bits: _Bits | None = None

    def append(self, document: Encoded) -> None:
        """Ids must fit the dtype and begin with the document's only bos."""
        ids, scored = document.ids, document.scored
        if scored is not None and self._bits is None:
            self._bits = _Bits(self._bits_file)
            for start in range(0, self.n_tokens, BITS_AT_ONCE):
                self._bits.append(np.ones(min(BITS_AT_ONCE, self.n_tokens - start), dtype=bool))
        if self._bits is not None:
            self._bits.append(np.ones(len(ids), dtype=bool) if scored is None else scored)
        self._file.write(ids.astype(self._dtype).tobytes())
        self._documents[self.n_written] = self.n_tokens, document.n_bytes, document.n_words
        self.n_written += 1
        self.n_tokens += len(ids)
        self.n_scored += len(ids) - 1 if scored is None else int(scored[1:].sum())

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        self._documents.flush()
        del self._documents  # Windows renames no folder with a mapped file in it
        if self._bits is not None:
            self._bits.close()
        if kind is None and self.n_written != self._n_documents:
            raise ValueError(f"{self.n_written} documents were written, {self._n_documents} were announced")


class _Bits:
    """A file of bits that grows by any number of them; fewer than eight wait for the next ones."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._waiting = np.empty(0, dtype=bool)

    def append(self, bits: np.ndarray) -> None:
        bits = np.concatenate([self._waiting, bits])
        n_whole = len(bits) // 8 * 8
        self._file.write(np.packbits(bits[:n_whole]).tobytes())
        self._waiting = bits[n_whole:]

    def close(self) -> None:
        self._file.write(np.packbits(self._waiting).tobytes())
        self._file.close()


class _Telling:
    """Sums what was done over all splits, for a progress callback."""

    def __init__(self, progress: Progress | None, n_documents: int) -> None:
        self._progress, self._n_documents = progress, n_documents
        self._n_done = self._n_bytes = 0

    def done(self, batch: list[Encoded]) -> None:
        self._n_done += len(batch)
        self._n_bytes += sum(document.n_bytes for document in batch)
        if self._progress is not None:
            self._progress(self._n_done, self._n_documents, self._n_bytes)


def _facts(corpus: Corpus, split: str, stream: StreamWriter, n_rows: int) -> dict[str, Any]:
    text = corpus.facts(split)
    return {
        "n_tokens": stream.n_tokens,
        "n_scored": stream.n_scored,
        "n_rows": n_rows,
        "n_documents": text.n_documents,
        "n_bytes": text.n_bytes,
        "n_words": text.n_words,
        "text_sha256": text.text_sha256,
    }


def _encoded(corpus: Corpus, split: str, tokenizer: Tokenizer) -> Iterator[list[Encoded]]:
    for texts in _batched(corpus.documents(split)):
        batch = []
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            framed = np.concatenate([[BOS], ids, [EOS]])
            if framed.max() >= tokenizer.n_vocab:
                raise Refusal(f"tokenizer: gives id {framed.max()}, its n_vocab is {tokenizer.n_vocab}; mend the part")
            batch.append(Encoded(framed, n_bytes(text, corpus.boundary), n_words(text, corpus.boundary)))
        yield batch


def _batched(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents by about a million characters; a longer document is a batch of its own size."""
    batch: list[str] = []
    n_characters = 0
    for text in documents:
        batch.append(text)
        n_characters += len(text) + 1  # a blank line counts too, or a batch of them would never end
        if n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
