"""WikiText-2, line by line: from a folder of its files, or from the Hugging Face hub.

Source: Merity et al. 2016, arXiv 1609.07843
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from armillary.records import Document, Rejected
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.text import reading
from armillary.text.documents import Split, cut
from armillary.text.sources.huggingface import Huggingface

Release = Literal["raw", "tokens"]
FILES: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
HUB_CONFIGS: dict[Release, str] = {"raw": "wikitext-2-raw-v1", "tokens": "wikitext-2-v1"}


class Wikitext2(Part):
    """Every line is a document, blank ones too; its end stands for the newline. WikiText's own three splits.

    path: a folder of wiki.{train,valid,test}.{raw,tokens}, plain or .gz; None: the hub, through `datasets`.
    release: "auto" takes the raw text where all three files of it are there, else the tokenised one, whose rare words
    are `<unk>`. Results on the two are never comparable; the fingerprint says which one it is.
    """

    path: str | None = Field(default=None, exclude=True)
    release: Literal["auto", "raw", "tokens"] = Field(
        default="auto", exclude=True
    )  # the fingerprint holds the one taken

    @property
    def boundary(self) -> Literal["newline", "end_of_text"]:
        return "newline"

    def fingerprint(self) -> dict[str, Any]:
        if self.path is None:
            return {"release": self._hub_release, "hub": self._hub.fingerprint()}
        release, files = self._files(Path(self.path).expanduser())
        return {
            "release": release,
            "files": {split: {"name": path.name} | reading.facts(path) for split, path in files.items()},
        }

    def read(self) -> Iterator[Document | Rejected]:
        if self.path is None:
            yield from map(_as_line, self._hub.read())
            return
        _, files = self._files(Path(self.path).expanduser())
        for split, path in files.items():
            yield from (Document(line, split) for line in cut(reading.lines(path), "line"))

    @property
    def _hub_release(self) -> Release:
        return "tokens" if self.release == "tokens" else "raw"

    @property
    def _hub(self) -> Huggingface:
        config = HUB_CONFIGS[self._hub_release]
        return Huggingface(dataset="Salesforce/wikitext", config=config, splits={s: s for s in FILES})

    def _files(self, folder: Path) -> tuple[Release, dict[str, Path]]:
        if not folder.is_dir():
            raise Refusal(f"{folder}: no such folder; give one that holds wiki.train.tokens, or leave path out")
        wanted: list[Release] = ["raw", "tokens"] if self.release == "auto" else [self.release]
        missing: list[str] = []
        for release in wanted:
            names = {split: f"wiki.{name}.{release}" for split, name in FILES.items()}
            found = {split: _first(folder / name, folder / f"{name}.gz") for split, name in names.items()}
            files = {split: path for split, path in found.items() if path is not None}
            if len(files) == len(FILES):
                return release, files
            missing = [name for split, name in names.items() if split not in files]
        raise Refusal(f"{folder}: {', '.join(missing)} not here (plain or .gz); add them or set another release")


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _as_line(item: Document | Rejected) -> Document | Rejected:
    if isinstance(item, Rejected):
        return item
    # The hub keeps each line's newline but empties blank lines, which are " \n" throughout the official files.
    return Document(item.text.removesuffix("\n") or " ", item.split)
