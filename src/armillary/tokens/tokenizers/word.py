"""Words separated by whitespace. The model file lists them.

Source: the vocabulary of WikiText (Merity et al. 2016, arXiv 1609.07843) for `unknown: unk`.
Differs: with `unknown: bytes` it is lossless. A unit is then a run of non-whitespace *with the one space before it*,
where there is one: " word" and "word" are two units, and each is learnt if it is frequent. Units that were not learnt,
and all other whitespace (newlines, second spaces), are spelled in bytes. So every id stands for fixed bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from armillary.contracts import SPECIAL_TOKENS, UNK
from armillary.refusal import Refusal
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

FILE = "words.json"
UNIT = re.compile(r" ?\S+|\s")
"""Every character of a text is in exactly one match."""


class Word(Part):
    """vocabulary: how many words are learnt at most, the most frequent ones, ties broken by string order.

    Specials, markers and (with `unknown: bytes`) 256 bytes come on top.
    unknown: "bytes" spells what was not learnt and is lossless. "unk" is a closed vocabulary, declared lossy: all
    whitespace is one space, other words are UNK, and so is a word of the text written like a special or a marker (the
    `<unk>` of WikiText's tokenised release is that very id).
    """

    vocabulary: int = Field(default=50_000, ge=1)
    unknown: Literal["bytes", "unk"] = "bytes"
    markers: Markers = ()

    @property
    def planned_vocabulary(self) -> int:
        return self.vocabulary + N_SPECIALS + (N_BYTES if self.unknown == "bytes" else 0) + len(self.markers)

    def train(self, texts: Iterable[str]) -> OpenWords | ClosedWords:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(UNIT.findall(well_formed(text)) if self.unknown == "bytes" else well_formed(text).split())
        reserved = {*SPECIAL_TOKENS, *self.markers} if self.unknown == "unk" else set()
        words = [word for word in counts if not word.isspace() and word not in reserved]
        words.sort(key=lambda word: (-counts[word], word))
        return self._of(words[: self.vocabulary])

    def load(self, folder: Path) -> OpenWords | ClosedWords:
        model = json.loads((folder / FILE).read_text(encoding="utf-8"))
        refuse_other_markers(folder / FILE, model["markers"], self.markers)
        if model["unknown"] != self.unknown:
            raise Refusal(f"{folder / FILE}: was made with unknown: {model['unknown']}; load it with that")
        return self._of(model["words"])

    def _of(self, words: list[str]) -> OpenWords | ClosedWords:
        return (OpenWords if self.unknown == "bytes" else ClosedWords)(words, self.markers)


class OpenWords(FixedBytes):
    """Lossless: words with the space before them, and bytes."""

    def __init__(self, words: list[str], markers: Sequence[str]) -> None:
        super().__init__(spelling_table(words), markers, SPELLED_BYTES)
        self._words = words
        self._ids_of = _Spelling({word: (SPELLED_BYTES.stop + i,) for i, word in enumerate(words)})

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        look_up = self._ids_of.__getitem__
        units = (UNIT.findall(well_formed(text)) for text in texts)
        return [np.fromiter(chain.from_iterable(map(look_up, found)), dtype=np.int32) for found in units]

    def save(self, folder: Path) -> Path:
        return _save(folder, "bytes", self._words, self.markers)


class ClosedWords(FixedBytes):
    """Lossy: words only. `decode` joins them with single spaces."""

    is_lossless = False

    def __init__(self, words: list[str], markers: Sequence[str]) -> None:
        super().__init__([b""] * N_SPECIALS + [f" {word}".encode() for word in words], markers, range(0))
        self._words = words
        self._id_of = {word: N_SPECIALS + i for i, word in enumerate(words)}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        look_up = self._id_of.get
        return [np.array([look_up(w, UNK) for w in well_formed(text).split()], dtype=np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).removeprefix(" ")

    def save(self, folder: Path) -> Path:
        return _save(folder, "unk", self._words, self.markers)


class _Spelling(dict[str, tuple[int, ...]]):
    """Ids of a unit; one that was not learnt is spelled, and not remembered."""

    def __missing__(self, unit: str) -> tuple[int, ...]:
        return tuple(SPELLED_BYTES[byte] for byte in unit.encode())


def _save(folder: Path, unknown: str, words: list[str], markers: Iterable[str]) -> Path:
    model = {"unknown": unknown, "markers": list(markers), "words": words}
    (folder / FILE).write_text(json.dumps(model, indent=0) + "\n", encoding="utf-8")
    return folder / FILE
