"""Characters of the training text, and bytes for all others: lossless. The model file lists the characters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from armillary.registry import Part
from armillary.tokens.tokenizers._vocabulary import (
    N_BYTES,
    N_SPECIALS,
    SPELLED_BYTES,
    FixedBytes,
    Markers,
    refuse_other_markers,
    spelling_table,
    well_formed,
)

FILE = "characters.json"
N_CODE_POINTS = 0x110000


class Character(Part):
    """vocabulary: how many characters are learnt, the most frequent ones; all where it is None.

    Specials, 256 bytes and markers come on top.
    """

    vocabulary: int | None = Field(default=None, ge=0)
    markers: Markers = ()

    @property
    def planned_vocabulary(self) -> int | None:
        if self.vocabulary is None:
            return None
        return self.vocabulary + N_SPECIALS + N_BYTES + len(self.markers)

    def train(self, texts: Iterable[str]) -> CharacterTokenizer:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(well_formed(text))
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return CharacterTokenizer("".join(ranked[: self.vocabulary]), self.markers)

    def load(self, folder: Path) -> CharacterTokenizer:
        model = json.loads((folder / FILE).read_text(encoding="utf-8"))
        refuse_other_markers(folder / FILE, model["markers"], self.markers)
        return CharacterTokenizer(model["characters"], self.markers)


class CharacterTokenizer(FixedBytes):
    """One id a character, or one a byte of a character that was not learnt."""

    def __init__(self, characters: str, markers: Sequence[str]) -> None:
        super().__init__(spelling_table(characters), markers, SPELLED_BYTES)
        self._characters = characters
        self._id_of = np.full(N_CODE_POINTS, -1, dtype=np.int32)
        self._id_of[_code_points(characters)] = np.arange(len(characters)) + SPELLED_BYTES.stop

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._ids(well_formed(text)) for text in texts]

    def save(self, folder: Path) -> Path:
        model = {"characters": self._characters, "markers": list(self.markers)}
        (folder / FILE).write_text(json.dumps(model) + "\n", encoding="utf-8")
        return folder / FILE

    def _ids(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = self._id_of[points]
        is_unknown = ids < 0
        if not is_unknown.any():
            return ids
        n_bytes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
        n_tokens = np.where(is_unknown, n_bytes, 1)
        unknown = points[is_unknown].tobytes().decode("utf-32-le").encode()
        ids = np.repeat(ids, n_tokens)
        ids[np.repeat(is_unknown, n_tokens)] = np.frombuffer(unknown, np.uint8) + np.int32(SPELLED_BYTES.start)
        return ids


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
