"""A dataset of the Hugging Face hub, or a local folder that `datasets` can load. No remote code is ever run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from armillary.records import Document, Rejected
from armillary.refusal import Refusal, nearest
from armillary.registry import Part
from armillary.text.documents import Split, text_of

WAITS_SECONDS = (2.0, 8.0, 30.0)


class Huggingface(Part):
    """Each record is a document.

    splits: our split → the dataset's; None: those of train, validation and test that it has. max_documents: of each
    split, the first ones. streaming: read while it downloads, and keep nothing. revision: branch, tag or commit.
    """

    dataset: str
    config: str | None = None
    revision: str | None = None
    splits: dict[Split, str] | None = None
    text_field: str = "text"
    streaming: bool = False
    max_documents: int | None = Field(default=None, ge=1)

    @property
    def boundary(self) -> Literal["newline", "end_of_text"]:
        return "end_of_text"

    def fingerprint(self) -> dict[str, Any]:
        """`version` is the dataset's commit on the hub; of a local folder, a hash of its files' paths and times."""
        # The library waits and tries again by itself here, for about 20 seconds.
        load = _datasets().load_dataset_builder
        builder = self._reached(lambda: load(self.dataset, self.config, revision=self.revision), waits=())
        return {"version": builder.hash}

    def read(self) -> Iterator[Document | Rejected]:
        load = _datasets().load_dataset
        data = self._reached(
            lambda: load(self.dataset, self.config, revision=self.revision, streaming=self.streaming), WAITS_SECONDS
        )
        for ours, theirs in self._chosen(list(data)):
            columns = data[theirs].column_names  # None where a streamed dataset does not know them
            if columns is not None and self.text_field not in columns:
                raise Refusal(
                    f"{self.dataset}: no column is called '{self.text_field}'; {nearest(self.text_field, columns)}"
                )
            rows = itertools.islice(data[theirs], self.max_documents)
            for number, row in enumerate(rows, start=1):
                item = text_of(row, self.text_field, f"{self.dataset}:{theirs}", number)
                yield item if isinstance(item, Rejected) else Document(item, ours)

    def _chosen(self, present: list[str]) -> list[tuple[str, str]]:
        """Pairs of our split and the dataset's."""
        own = [(split, split) for split in ("train", "validation", "test") if split in present]
        chosen: list[tuple[str, str]] = [*self.splits.items()] if self.splits else own
        for _, theirs in chosen:
            if theirs not in present:
                raise Refusal(f"{self.dataset}: no split is called '{theirs}'; {nearest(theirs, present)}")
        if not chosen:
            raise Refusal(f"{self.dataset}: has only the splits {', '.join(present)}; set splits, such as train: NAME")
        return chosen

    def _reached(self, load: Callable[[], Any], waits: tuple[float, ...]) -> Any:
        """The result of `load`, tried again after each wait where the fault may be the network's."""
        for wait in (*waits, None):
            try:
                return load()
            except Exception as fault:  # noqa: BLE001 - the hub's client changes its error types with its versions
                is_final = isinstance(fault, (FileNotFoundError, ValueError))
                if is_final or wait is None:
                    hint = "check dataset, config and revision" if is_final else "go online, or give local files"
                    first_line = str(fault).strip().split("\n")[0][:160]
                    raise Refusal(f"{self.dataset}: cannot be loaded ({first_line}); {hint}") from None
                time.sleep(wait)
        raise AssertionError("the last wait is None")


def _datasets() -> ModuleType:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Refusal("source huggingface: needs the package datasets; run: pip install armillary[data]") from None
    return datasets
