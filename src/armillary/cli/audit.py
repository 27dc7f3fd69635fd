"""`armillary audit`: known mistakes made on purpose, beside the right figures."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from armillary.cli.options import Json, LogLevel
from armillary.cli.screen import Screen, show_json


def audit(
    mistakes: Annotated[
        list[str] | None, typer.Argument(metavar="[MISTAKE...]", help="Only these; by default all.")
    ] = None,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """How far off each mistake is, and that a check catches it. Exit status 1 where one is not. Needs no data."""
    from armillary import audit as room
    from armillary.reporting.tables import as_markdown

    screen = Screen(log_level)
    found = room.audit(mistakes or [], lambda done, total: screen.progress("mistakes made", done, total))
    screen.end_live()
    if as_json:
        show_json([asdict(finding) for finding in found])
    else:
        rows = [
            {"mistake": f.name, "wrong": f.wrong, "right": f.right, "stderr": f.error, "unit": f.unit,
             "caught": f.is_caught}
            for f in found
        ]  # fmt: skip
        print(as_markdown(rows))
        for f in found:
            print(f"{f.name}: {f.about}.\n  {'caught' if f.is_caught else 'NOT CAUGHT'}: {f.how_caught}. {f.source}")
    if not all(finding.is_caught for finding in found):
        sys.exit(1)
