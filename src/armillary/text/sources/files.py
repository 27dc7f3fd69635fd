"""Files and folders of the person's own text."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field, model_validator

from armillary.records import Document, Rejected
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.registry import Part
from armillary.text import reading
from armillary.text.documents import Cut, Split, cut, records, text_of

TEXTS = (".txt", ".md", ".tokens", ".raw", ".text")
RECORDS = (".jsonl", ".json", ".parquet")
SUFFIXES = f"{' '.join(TEXTS + RECORDS)}, each also with .gz or .zst"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
N_LINES_SEARCHED = 10_000


@dataclass(frozen=True)
class _Entry:
    path: Path
    name: str
    split: str | None

    @property
    def is_plain_text(self) -> bool:
        return reading.inner_suffix(self.path) in TEXTS


class Files(Part):
    """A file, a folder (with all below it, hidden ones left out) or a list of them; or one for each split.

    path or splits: exactly one. Folders are read in sorted order. Where the names of files or sub-folders under
    `path` say train and one of valid, validation, val, dev, test, they are the source's own splits, and a file whose
    name says none is left out with a warning.
    document: how plain text is cut (see documents.cut), or "jsonl" for records under any suffix. "auto" cuts .jsonl,
    .json and .parquet into records; a plain text at `separator` where one of its first 10,000 lines is that; any
    other plain text at blank lines where it is the only one of its split, else (and always for .md) not at all.
    separator: the mark between documents; text_field: where a record holds its text.
    """

    path: str | list[str] | None = Field(default=None, exclude=True)  # where it lies is not what it is: see fingerprint
    splits: dict[Split, str | list[str]] | None = Field(default=None, exclude=True)
    document: Cut | Literal["auto", "jsonl"] = "auto"
    separator: str = "<|endoftext|>"
    text_field: str = "text"

    @model_validator(mode="after")
    def is_consistent(self) -> Files:
        if (self.path is None) == (self.splits is None):
            raise ValueError("give exactly one of path and splits")
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("splits: 'train' is missing")
        if not self.separator.strip() or "\n" in self.separator:
            raise ValueError("separator: give visible text within one line; for blank lines set document: blank_line")
        if "separator" in self.model_fields_set and self.document not in ("auto", "separator"):
            raise ValueError(f"separator: has no meaning where document is {self.document}; leave one of them out")
        return self

    @property
    def boundary(self) -> Literal["newline", "end_of_text"]:
        return "newline" if self.document == "line" else "end_of_text"

    def fingerprint(self) -> dict[str, Any]:
        entries, _ = self._listing()
        return {"files": [{"name": e.name, "split": e.split} | reading.facts(e.path) for e in entries]}

    def read(self) -> Iterator[Document | Rejected]:
        entries, left_out = self._listing()
        if left_out:
            message = f"{len(left_out)} files are left out (suffix not known, or a name that says no split): "
            warnings.warn(message + ", ".join(left_out)[:200], ArmillaryWarning, stacklevel=2)
        n_texts = Counter(entry.split for entry in entries if entry.is_plain_text)
        for entry in entries:
            for item in self._documents(entry, is_only_text=n_texts[entry.split] == 1):
                yield item if isinstance(item, Rejected) else Document(item, entry.split)

    def _documents(self, entry: _Entry, *, is_only_text: bool) -> Iterator[str | Rejected]:
        suffix = reading.inner_suffix(entry.path)
        if suffix in RECORDS and self.document not in ("auto", "jsonl"):
            raise Refusal(f"{entry.path}: holds records; set document to auto or jsonl, not {self.document}")
        if suffix == ".parquet":
            rows = reading.parquet_rows(entry.path, self.text_field)
            return (text_of(row, self.text_field, entry.name, n) for n, row in enumerate(rows, start=1))
        if suffix == ".json":
            return self._json(entry)
        lines = reading.lines(entry.path)
        if suffix == ".jsonl" or self.document == "jsonl":
            return records(lines, self.text_field, entry.name)
        if self.document != "auto":
            return cut(lines, self.document, self.separator)
        opening = itertools.islice(reading.lines(entry.path), N_LINES_SEARCHED)
        if any(line.strip() == self.separator for line in opening):
            return cut(lines, "separator", self.separator)
        return cut(lines, "blank_line" if is_only_text and suffix != ".md" else "file")

    def _json(self, entry: _Entry) -> Iterator[str | Rejected]:
        lines = list(reading.lines(entry.path))
        if not next((line for line in lines if line.strip()), "").lstrip().startswith("["):
            return records(lines, self.text_field, entry.name)  # many a .json holds JSON lines
        try:
            values = json.loads("".join(lines))
        except (ValueError, RecursionError) as error:
            raise Refusal(f"{entry.path}: is not JSON ({str(error)[:80]}); give a list of records or strings") from None
        return (text_of(value, self.text_field, entry.name, n) for n, value in enumerate(values, start=1))

    def _listing(self) -> tuple[list[_Entry], list[str]]:
        """Entries in reading order, and the names of files that are left out."""
        if self.splits is not None:
            entries, left_out = [], []
            for split, paths in self.splits.items():
                found, others = _found(paths)
                entries += [_Entry(path, name, split) for path, name in found]
                left_out += others
            return entries, left_out
        found, left_out = _found(self.path or [])
        entries = [_Entry(path, name, _split_said_by(PurePath(name))) for path, name in found]
        if not {"train"} < {entry.split for entry in entries} - {None}:
            return [_Entry(entry.path, entry.name, None) for entry in entries], left_out
        return [e for e in entries if e.split], left_out + [e.name for e in entries if not e.split]


def _found(paths: str | list[str]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Readable files with their names inside the source, and the names of the others."""
    found: list[tuple[Path, str]] = []
    left_out: list[str] = []
    for path in [Path(p).expanduser() for p in ([paths] if isinstance(paths, str) else paths)]:
        if not path.exists():
            raise Refusal(f"{path}: no such file or folder; give the path of a text file or of a folder of them")
        is_folder = path.is_dir()
        inside = [p.relative_to(path) for p in path.rglob("*") if p.is_file()] if is_folder else [Path(path.name)]
        names = sorted(p.as_posix() for p in inside if not any(step.startswith(".") for step in p.parts))
        readable = [name for name in names if reading.inner_suffix(Path(name)) in TEXTS + RECORDS]
        if not readable:
            what = "no file here can be read" if is_folder else "cannot be read by its suffix"
            raise Refusal(f"{path}: {what}; known suffixes: {SUFFIXES}")
        found += [(path / name if is_folder else path, name) for name in readable]
        left_out += [name for name in names if name not in readable]
    return found, left_out


def _split_said_by(name: PurePath) -> str | None:
    """The split that a sub-folder or else the file says, where it says exactly one."""
    for step in name.parts:
        said = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", step.lower()) if word in SPLIT_WORDS}
        if said:
            return said.pop() if len(said) == 1 else None
    return None
