"""Known mistakes of this field, made on purpose: how far off each one is, and that a check of this package sees it.

A file is a mistake. It makes the mistake in a few lines, measures the same thing with the package, and holds both
against an answer known from elsewhere. A mistake is caught where the package's figure passes and the wrong one does
not: so each finding turns as soon as the package makes the mistake itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from armillary import registry
from armillary.audit._finding import Finding
from armillary.refusal import Refusal, nearest

ROOM = "audit"


def audit(chosen: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Reproduces the chosen mistakes, all of them by default. Raises Refusal for a name that is not known."""
    known = registry.names(ROOM)
    for name in chosen:
        if name not in known:
            raise Refusal(f"audit: no mistake is called '{name}'; {nearest(name, known)}")
    names = [name for name in known if name in chosen or not chosen]
    found = []
    for n_done, name in enumerate(names, start=1):
        found.append(replace(importlib.import_module(f"armillary.{ROOM}.{name}").reproduce(), name=name))
        if progress is not None:
            progress(n_done, len(names))
    return found
