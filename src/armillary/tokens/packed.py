"""Packed tokens on disk, memory-mapped: a flat stream for each split, with the offsets of its rows and documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armillary import artefact
from armillary.contracts import BOS, PAD
from armillary.refusal import Refusal, nearest
from armillary.text.corpus import SPLITS


@dataclass(frozen=True)
class PackedSplit:
    """One stream of n tokens: each document is `<bos> tokens <eos>`, one behind the other.

    tokens: (n,) uint16 or uint32. row_starts: (n_rows,) offset of each row. documents: (n_documents, 3), the offset of
    each document's bos, its bytes and its words. window: T, a row being T + 1 tokens; less than the recipe asked for
    where the stream is shorter. scored_bits: one bit a token, where only some are scored. pads: a row ends with its
    document, and holds padding behind it.
    """

    tokens: np.ndarray
    row_starts: np.ndarray
    documents: np.ndarray
    window: int
    scored_bits: np.ndarray | None = None
    pads: bool = False

    @property
    def n_rows(self) -> int:
        return len(self.row_starts)

    @property
    def document_starts(self) -> np.ndarray:
        return self.documents[:, 0]

    @property
    def document_bytes(self) -> np.ndarray:
        return self.documents[:, 1]

    @property
    def document_words(self) -> np.ndarray:
        return self.documents[:, 2]

    def places(self, indices: np.ndarray) -> np.ndarray:
        """(n, T+1) int64: where in the stream the tokens of these rows (n,) are; -1 for padding."""
        places = self.row_starts[indices][:, None] + np.arange(self.window + 1)
        if self.pads:
            after = self.document_of(places[:, :1]) + 1
            is_last = after == len(self.documents)
            ends = np.where(is_last, len(self.tokens), self.document_starts[after - is_last])
            places[places >= ends] = -1
        return places

    def at(self, places: np.ndarray) -> np.ndarray:
        """int64, shaped as `places`: the tokens there, PAD where there is none."""
        return np.where(places < 0, PAD, self.tokens[places]).astype(np.int64)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(n, T+1) int64: the tokens of these rows (n,)."""
        return self.at(self.places(indices))

    def scored(self, indices: np.ndarray) -> np.ndarray:
        """(n, T+1) bool: which tokens of these rows (n,) count in a loss."""
        return self.is_scored(self.places(indices))

    def is_scored(self, places: np.ndarray) -> np.ndarray:
        """Bool, for rows of places in the stream (n, L): all but the first of a row, which nothing predicts, and every
        bos, which is framing and given; of the others those whose bit is set, where there are bits."""
        out = (self.tokens[places] != BOS) & (places >= 0)
        out[:, 0] = False
        if self.scored_bits is not None:
            # np.packbits puts the first of eight in the highest bit.
            out &= (self.scored_bits[places >> 3] >> (7 - (places & 7)).astype(np.uint8) & 1).astype(bool)
        return out

    def document_of(self, places: np.ndarray) -> np.ndarray:
        """int64, shaped as `places`: the number of the document each place of the stream lies in."""
        return np.searchsorted(self.document_starts, places, side="right") - 1


@dataclass(frozen=True)
class Packed:
    """A packed artefact. about: its manifest's facts (see packing.pack)."""

    folder: Path
    about: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those it has, in the order train, validation, test."""
        return tuple(split for split in SPLITS if split in self.about["splits"])

    def split(self, name: str) -> PackedSplit:
        """Raises Refusal for a split it does not have."""
        if name not in self.about["splits"]:
            raise Refusal(f"{self.folder}: no split '{name}'; {nearest(name, self.splits)}")
        tokens = np.memmap(self.folder / f"{name}.tokens", dtype=self.about["dtype"], mode="r")
        bits = self.folder / f"{name}.scored"
        return PackedSplit(
            tokens,
            np.load(self.folder / f"{name}.rows.npy", mmap_mode="r"),
            np.load(self.folder / f"{name}.documents.npy", mmap_mode="r"),
            min(self.about["window"], len(tokens) - 1),
            np.memmap(bits, dtype=np.uint8, mode="r") if bits.is_file() else None,
            self.about["isolate_documents"] == "padded",
        )


def open_packed(folder: Path, tokenizer_sha256: str | None = None) -> Packed:
    """Opens a packed artefact after checking every file. Raises Refusal for a changed file or another tokenizer."""
    about = artefact.read(folder, "packed").about
    if tokenizer_sha256 is not None and about["tokenizer_sha256"] != tokenizer_sha256:
        raise Refusal(
            f"{folder}: the tokenizer changed since packing: packed with {about['tokenizer_sha256'][:12]}…, "
            f"this one is {tokenizer_sha256[:12]}…; pack again"
        )
    return Packed(folder, about)
