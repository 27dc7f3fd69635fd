"""A tokenizer that cannot be wrong and a corpus that lives in memory, for packing and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from armillary.recipe import Packing
from armillary.text.corpus import n_bytes, n_words
from armillary.tokens.packed import Packed
from armillary.tokens.packing import pack

SHA = "5a" * 32


class ByteTokenizer:
    """Ids are bytes + 4, or `offset`."""

    is_lossless = True
    markers: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, offset: int = 4, n_vocab: int | None = None) -> None:
        self.offset = offset
        self.n_vocab = n_vocab or offset + 256

    def encode(self, text: str) -> list[int]:
        return [byte + self.offset for byte in text.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - self.offset for i in ids if i >= self.offset).decode()


class MemoryCorpus:
    def __init__(self, boundary: str, splits: dict[str, list[str]]) -> None:
        self.name, self.boundary, self._texts = "memory", boundary, splits
        self.splits = tuple(splits)
        self.fingerprint = hashlib.sha256(repr(splits).encode()).hexdigest()

    def facts(self, split: str) -> SimpleNamespace:
        texts = self._texts[split]
        return SimpleNamespace(
            n_documents=len(texts),
            n_bytes=sum(n_bytes(text, self.boundary) for text in texts),
            n_words=sum(n_words(text, self.boundary) for text in texts),
            text_sha256=hashlib.sha256("".join(texts).encode()).hexdigest(),
        )

    def documents(self, split: str) -> Iterator[str]:
        return iter(self._texts[split])


@pytest.fixture(scope="session")
def packed_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Packed]:
    """Packs texts: a list for train, or a dict of splits."""

    def make(
        texts: list[str] | dict[str, list[str]],
        *,
        boundary: str = "end_of_text",
        tokenizer: ByteTokenizer | None = None,
        folder: Path | None = None,
        progress: Any = None,
        **packing: Any,
    ) -> Packed:
        corpus: Any = MemoryCorpus(boundary, {"train": texts} if isinstance(texts, list) else texts)
        folder = folder or tmp_path_factory.mktemp("packed") / "memory-00000000"
        return pack(corpus, tokenizer or ByteTokenizer(), SHA, Packing(**packing), folder, progress)

    return make


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
