"""Text for a model: read, split, tokenized and packed by the stages that the command line runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from armillary import artefact, registry
from armillary.assemble import parts as parts_of
from armillary.assemble import stages
from armillary.assemble.stages import Given, Prepared
from armillary.contracts import Tokenizer
from armillary.refusal import ArmillaryWarning, Refusal, nearest
from armillary.text import reading
from armillary.text.sources.files import RECORDS, TEXTS
from armillary.tokens import tokenizer as tokenizers
from armillary.tokens.packed import PackedSplit

BACKENDS = {"sentencepiece": "sentencepiece", "tokenizers": "bpe", "simple": "character"}
"""Names of the Python surface, in the order that "auto" tries them, and the tokenizers they are."""

ELSE: dict[str, Any] = {
    "name": "language-model",
    "model": {"backbone": {"name": "llama"}},
    "objective": {"name": "autoregressive"},
    "training": {"steps": 1, "batch_rows": 1, "optimizer": {"name": "adamw"}, "schedule": {"name": "cosine"}},
}
"""What a recipe says beside its text, until a model says it."""


class Windows(Sequence[dict[str, Tensor]]):
    """Rows of a split: input_ids and labels (T,), labels[i] = input_ids[i + 1]; padding is id 0, its label -100."""

    def __init__(self, split: PackedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return self.split.n_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        places = self.split.places(np.array([index]))[0]
        tokens = torch.from_numpy(self.split.at(places))
        return {"input_ids": tokens[:-1], "labels": tokens[1:].masked_fill(torch.from_numpy(places[1:] < 0), -100)}


class _Checked(registry.Part):
    max_length: int = Field(ge=2)
    pack_sequences: bool
    val_split: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)


class TextData:
    """Documents, their tokenizer and windows of their tokens.

    texts_or_paths: strings, a document each; or existing files, a document for each line; blank ones are left out.
    tokenizer: auto, sentencepiece, tokenizers (byte-level BPE) or simple (characters), trained on this text. auto takes
    the first of them whose package can be imported. The vocabulary has a token for a thousand characters of text (a
    power of two, 512 to 32,768) and one for each different character, where the text gives so many.
    tokenizer_model_path: one to use instead: an artefact, its model file, or the folder of a run or a saved model.
    max_length: T, the tokens of a window. pack_sequences: windows are cut from all documents in a row, max(1, ⌊(n - 1)
    / T⌋) of them; False: each document has its own, padded at the end. val_split: share of the documents kept for
    validation, one at least: chosen by what they say, of fewer than a hundred the last ones, and the end of a single
    one. seed: of the model's first weights and of the order of batches.
    """

    def __init__(
        self,
        texts_or_paths: Iterable[str | Path],
        tokenizer: str = "auto",
        tokenizer_model_path: str | Path | None = None,
        max_length: int = 256,
        pack_sequences: bool = True,
        val_split: float = 0.0,
        seed: int = 1337,
    ) -> None:
        given = {"max_length": max_length, "pack_sequences": pack_sequences, "val_split": val_split, "seed": seed}
        checked: _Checked = registry.check(_Checked, given, "TextData")
        if not isinstance(tokenizer, str) or tokenizer not in {"auto", *BACKENDS}:
            raise Refusal(f"TextData: tokenizer is '{tokenizer}'; {nearest(str(tokenizer), ['auto', *BACKENDS])}")
        self.folder = temporary(self)
        self.text = self.folder / "text.jsonl"
        n_characters, alphabet = _write(_documents(texts_or_paths), self.text)
        choice: dict[str, Any] = {"name": "character"}
        if tokenizer_model_path is not None:
            choice, tokenizer_model_path = _existing(Path(tokenizer_model_path), tokenizer)
        elif (name := BACKENDS[_importable(tokenizer)]) != "character":
            n = 2 ** max(9, min(15, (n_characters // 1000).bit_length() - 1))
            choice = {"name": name, "vocabulary": n + len(alphabet)}
        source = {"name": "files", "path": str(self.text)}
        self.recipe: dict[str, Any] = {
            "seed": checked.seed,
            "corpora": {"text": {"source": source, "validation_fraction": checked.val_split}},
            "tokenizer": choice,
            "packing": {
                "window": checked.max_length,
                "isolate_documents": False if checked.pack_sequences else "padded",
            },
        }
        with warnings.catch_warnings():  # nobody asked for so many tokens
            warnings.filterwarnings("ignore", "tokenizer: the text gives", ArmillaryWarning)
            self.prepared = self.prepare(ELSE | self.recipe, tokenizer_model_path)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prepared.tokenizer.tokenizer

    @property
    def tokenizer_backend(self) -> str:
        """sentencepiece, tokenizers or simple; of another tokenizer given by its path, the name of that one."""
        name = self.prepared.tokenizer.name
        return next((backend for backend, part in BACKENDS.items() if part == name), name)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.n_vocab

    @property
    def dataset(self) -> Windows:
        return Windows(self.prepared.packed["text"].split("train"))

    @property
    def val_dataset(self) -> Windows | None:
        packed = self.prepared.packed["text"]
        return Windows(packed.split("validation")) if "validation" in packed.splits else None

    def __len__(self) -> int:
        return len(self.dataset)

    def prepare(self, raw: Mapping[str, Any], tokenizer: Path | str | None) -> Prepared:
        """The stages of a recipe, run where this text lies; what is there already is found again."""
        given = Given(tokenizer=None if tokenizer is None else Path(tokenizer))
        return stages.prepare(parts_of.resolve(raw), self.folder, lambda line: None, given)

    def validated_by(self, held_out: TextData) -> dict[str, Any]:
        """This text's part of a recipe, with all of another text as its validation split."""
        if self.recipe["corpora"]["text"]["validation_fraction"]:
            raise Refusal("val_data: the data has a val_split of its own; leave one of them out")
        if held_out.recipe["corpora"]["text"]["validation_fraction"]:
            raise Refusal("val_data: has a val_split of its own, and all of it would be read; give it without one")
        source = {"name": "files", "splits": {"train": [str(self.text)], "validation": [str(held_out.text)]}}
        return {**self.recipe, "corpora": {"text": {"source": source}}}


def as_data(given: TextData | Iterable[str | Path], tokenizer: Path, window: int) -> TextData:
    """Texts or paths as TextData that trains no tokenizer of its own."""
    if isinstance(given, TextData):
        return given
    return TextData(given, tokenizer_model_path=tokenizer, max_length=window)


def temporary(owner: object) -> Path:
    """A folder that goes when its owner does."""
    folder = tempfile.mkdtemp(prefix="armillary-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _documents(given: Iterable[str | Path]) -> Iterator[str]:
    if not isinstance(given, str | os.PathLike | Iterable):
        raise Refusal(f"texts_or_paths: is {type(given).__name__}; give strings or paths")
    items = [given] if isinstance(given, str | os.PathLike) else list(given)
    for number, item in enumerate(items):
        if not isinstance(item, str | os.PathLike):
            raise Refusal(f"texts_or_paths: item {number} is {type(item).__name__}; give strings or paths")
    missing = next((item for item in items if not _is_file(item)), None)
    meant = next((item for item in items if _is_meant_as_path(item)), None)
    if missing is not None and meant is not None:
        name = missing if _is_file(meant) else meant
        fault = f"'{name!s:.80}' is a folder" if _is_folder(name) else f"no file is called '{name!s:.80}'"
        raise Refusal(f"texts_or_paths: {fault}; give files that exist, or texts alone")
    if missing is not None:
        yield from map(str, items)
        return
    for path in map(Path, items):
        if reading.inner_suffix(path) in RECORDS:
            raise Refusal(f"{path}: holds records, not lines; give their texts, or train with `armillary train --data`")
        yield from (line.removesuffix("\n").removesuffix("\r") for line in reading.lines(path))


def _is_file(item: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a text may be too long for a name
        return Path(item).is_file()
    return False


def _is_folder(item: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(item).is_dir()
    return False


def _is_meant_as_path(item: str | Path) -> bool:
    """A path that is there, or a word that ends as the name of a text does."""
    if isinstance(item, os.PathLike) or _is_file(item):
        return True
    is_word = bool(item) and not any(character.isspace() for character in item)
    return is_word and (item.endswith((*TEXTS, *RECORDS)) or _is_folder(item))


def _write(documents: Iterable[str], path: Path) -> tuple[int, set[str]]:
    """How many characters there are, and the different ones."""
    n_characters, alphabet = 0, set[str]()
    with path.open("w", encoding="utf-8") as file:
        for text in documents:
            if text.strip():
                file.write(json.dumps(text) + "\n")
                n_characters += len(text)
                alphabet.update(text)
    if not n_characters:
        raise Refusal("texts_or_paths: holds no text; give at least one string or file with some")
    return n_characters, alphabet


def _importable(asked: str) -> str:
    """The backend asked for, or the first of all that can be used. Raises Refusal where it cannot."""
    for backend in BACKENDS if asked == "auto" else [asked]:
        try:
            if backend != "simple":
                importlib.import_module(backend)
        except ImportError:
            continue
        if asked == "auto" and backend == "simple":
            message = "tokenizer: neither sentencepiece nor tokenizers can be imported; every character is a token"
            warnings.warn(message, ArmillaryWarning, stacklevel=3)
        return backend
    raise Refusal(f"TextData: tokenizer '{asked}' cannot be imported; run: pip install {asked}")


def _existing(path: Path, asked: str) -> tuple[dict[str, Any], Path]:
    """The recipe's choice and the artefact of a tokenizer on disk."""
    places = [path, path / "tokenizer", path.parent] if path.exists() else []
    found = [place for place in places if (place / artefact.MANIFEST).is_file()]
    folder = next((place for place in found if artefact.read(place, verify=False).kind == tokenizers.KIND), None)
    if folder is None:
        raise Refusal(f"tokenizer_model_path: no tokenizer of ours at {path} (in another's model file bos and eos are "
                      "other ids); give a run, a saved model, or what `armillary tokenizer train` made")  # fmt: skip
    loaded = tokenizers.load(folder)
    if asked != "auto" and BACKENDS[asked] != loaded.name:
        raise Refusal(f"tokenizer_model_path: {folder} is a {loaded.name} tokenizer, tokenizer asks for {asked}")
    return {"name": loaded.name, **loaded.fields}, folder
