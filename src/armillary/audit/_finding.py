"""What the audit says of one mistake."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """wrong and right: the figure as the mistake gives it and as this package does, both in `unit`.

    is_caught: the check of `how_caught` passes the right figure and fails the wrong one. error: standard error of
    `right`, None where it was computed without chance. name: of the file.
    """

    about: str
    wrong: float
    right: float
    unit: str
    is_caught: bool
    how_caught: str
    source: str
    error: float | None = None
    name: str = ""
