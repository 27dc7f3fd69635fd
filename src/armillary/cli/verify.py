"""`armillary verify`: an artefact against its manifest, or a run against what a model of its objective must do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import Json, LogLevel, Root
from armillary.cli.screen import show_json


def verify(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An artefact, a checkpoint, or a run.")],
    behaviour: Annotated[
        bool, typer.Option(help="For a run: shapes, and what its model may and must not see.")
    ] = False,
    root: Root = Path(),
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Every file's size and SHA-256; for a run, all of its checkpoints and its tokenizer. Exit status 1 on a fault."""
    from armillary.assemble import verifying

    checks = verifying.verify(path, root, behaviour=behaviour)
    if as_json:
        show_json([check.as_json() for check in checks])
    else:
        for check in checks:
            print(f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.detail}")
    if not all(check.holds for check in checks):
        sys.exit(1)
