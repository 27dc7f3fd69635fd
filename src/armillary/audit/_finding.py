"""What the audit says of one mistake."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """wrong and right: the figure as the mistake gives it and as this package does, both in `unit`.

    error: standard error of `right`, None where it was computed without chance. is_caught: the check of `how_caught`
    passes the right figure and fails the wrong one.
    """

    name: str
    about: str
    wrong: float
    right: float
    unit: str
    error: float | None
    is_caught: bool
    how_caught: str
    source: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
