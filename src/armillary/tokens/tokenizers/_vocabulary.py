"""What the vocabularies here share: specials first, chat markers last, and fixed bytes for every id between.

An id that always stands for the same bytes makes decoding a table, the same one for every tokenizer: text of a whole
document, of a window cut anywhere and of one token at a time agree.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from armillary.contracts import SPECIAL_TOKENS
from armillary.refusal import ArmillaryWarning, Refusal

N_SPECIALS = len(SPECIAL_TOKENS)
N_BYTES = 256


def _are_distinct(markers: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(markers)) < len(markers) or {"", *SPECIAL_TOKENS} & set(markers):
        raise ValueError(f"markers must differ from each other and from {' '.join(SPECIAL_TOKENS)}, and not be empty")
    return markers


Markers = Annotated[tuple[str, ...], AfterValidator(_are_distinct)]
"""Chat markers in the order of their ids, the last ones of the vocabulary."""


class FixedBytes(ABC):
    """A tokenizer whose ids each stand for fixed bytes; see contracts.Tokenizer.

    table: the bytes of each id below the markers, empty for specials. byte_tokens: ids that spell single bytes where
    no longer token fits (the letters of a byte-level BPE are among them).
    """

    is_lossless: bool = True

    def __init__(self, table: Sequence[bytes], markers: Sequence[str], byte_tokens: range) -> None:
        self.markers = {marker: len(table) + i for i, marker in enumerate(markers)}
        self.byte_tokens = byte_tokens
        self._table = [*table, *[b""] * len(markers)]

    @property
    def n_vocab(self) -> int:
        return len(self._table)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    @abstractmethod
    def save(self, folder: Path) -> Path: ...

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join([self._table[i] for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._table[token]


def spelling_table(units: Iterable[str]) -> list[bytes]:
    """The table of specials, then the 256 bytes, then units of text."""
    return [b""] * N_SPECIALS + [bytes([byte]) for byte in range(N_BYTES)] + [unit.encode() for unit in units]


SPELLED_BYTES = range(N_SPECIALS, N_SPECIALS + N_BYTES)
"""Ids of the bytes in a `spelling_table`."""


def well_formed(text: str) -> str:
    """The text itself. Raises Refusal where UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"character {error.start:,} is the lone surrogate U+{ord(text[error.start]):04X}"
        raise Refusal(f"text: {what}, which UTF-8 cannot hold; remove it from the text") from None
    return text


def refuse_small(vocabulary: int, least: int) -> None:
    """Raises Refusal where a vocabulary cannot hold its alphabet."""
    if vocabulary < least:
        raise Refusal(f"tokenizer: vocabulary {vocabulary:,} is smaller than the alphabet; give at least {least:,}")


def warn_short(vocabulary: int, n_vocab: int) -> None:
    """Warns where the text had fewer units to learn than were asked for."""
    if n_vocab < vocabulary:
        what = f"the text gives {n_vocab:,} tokens, vocabulary asks for {vocabulary:,}"
        warnings.warn(f"tokenizer: {what}; train on more text or ask for less", ArmillaryWarning, stacklevel=3)


def refuse_learnt_markers(markers: Sequence[str], is_learnt: Callable[[str], bool]) -> None:
    """Raises Refusal where a marker is spelled like a token of text: a model file holds each spelling once."""
    for marker in markers:
        if is_learnt(marker):
            raise Refusal(f"tokenizer: marker '{marker}' is also a token of the text; choose a longer one")


def refuse_other_markers(file: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises Refusal where a model file holds other markers than the part that loads it."""
    if tuple(found) != tuple(expected):
        raise Refusal(f"{file}: holds markers {list(found)}, not {list(expected)}; load it with its own markers")
