"""`armillary doctor`: versions, devices, why a GPU is not used, the allocator, free disk."""

from __future__ import annotations

from pathlib import Path

from armillary.cli.options import Json, LogLevel, Root
from armillary.cli.screen import show_json, table


def doctor(root: Root = Path(), as_json: Json = False, log_level: LogLevel = "info") -> None:
    """What this machine can do for a run, and what stands in its way."""
    from armillary import system

    found = system.diagnose(root)
    if as_json:
        show_json(found)
        return
    rows = [(name, str(value)) for name, value in found.items() if not isinstance(value, dict)]
    for name, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", str(inner)) for key, inner in value.items()]
    print(table(rows))
