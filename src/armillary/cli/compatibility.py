"""`armillary compatibility`: which backbone, objective and sampler go together."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.options import Json, LogLevel
from armillary.cli.screen import show_json, table


def compatibility(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/compatibility.md.")] = False,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Every backbone with every objective, and the samplers that work there; --json says why others do not."""
    from armillary.assemble import compatibility as rules

    if markdown:
        print(rules.markdown(), end="")
        return
    cells = rules.cube()
    if as_json:
        show_json([cell.as_json() for cell in cells])
        return
    works: dict[str, list[str]] = {}
    for cell in cells:
        works.setdefault(f"{cell.backbone} · {cell.objective}", []).extend([cell.sampler] if cell.works else [])
    print(table([(pair, ", ".join(samplers) or "none") for pair, samplers in works.items()]))
