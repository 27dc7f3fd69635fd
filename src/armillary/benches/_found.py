"""What a bench is given, what it finds, and how repeated readings are told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Desk:
    """Where a bench works. stamp: the time it began, which names its folder."""

    root: Path
    stamp: str
    say: Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """rows: the table a person sees. files: name → its rows (.csv) or facts (.json). panels: pictures as plain data,
    by file name. is_ok: nothing failed; what was skipped did not fail."""

    rows: list[dict[str, Any]]
    files: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    panels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    is_ok: bool = True


@dataclass(frozen=True)
class Report:
    name: str
    folder: Path
    found: Found

    def as_json(self) -> dict[str, Any]:
        found = self.found
        return {"bench": self.name, "folder": str(self.folder), "rows": found.rows, "notes": found.notes,
                "is_ok": found.is_ok}  # fmt: skip


class Bench(Protocol):
    """quick: fields of a run that only shows that it works."""

    quick: ClassVar[dict[str, Any]]

    def check(self, desk: Desk) -> None:
        """Raises Refusal for what would stop `run`, such as a part or a text that is not there. Leaves nothing."""
        ...

    def run(self, desk: Desk) -> Found: ...


def spread(readings: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(readings), "low": min(readings), "high": max(readings)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Within each round, so that what slows the machine slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
