"""How bad input is refused: one line that names the thing and the fix. Imports nothing of the house."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refusal(Exception):
    """Bad input, told in one line that names the file or field and the fix. The command exits with status 2.

    Raised before any work, so nothing half-written is left behind.
    """


class ArmillaryWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that ends a refusal: the nearest known name, or the list of all when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known)}" if known else "none is known here"
