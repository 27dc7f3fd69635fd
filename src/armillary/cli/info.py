"""`armillary info`: what a trained model is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.options import Checkpoint, Device, Json, LogLevel, Root, RunName
from armillary.cli.screen import show_json, table
from armillary.refusal import Refusal

MOST_ROWS = 16


def info(
    run: RunName,
    plot: Annotated[Path | None, typer.Option(help="Draw what its backbone has to show, as .png or .svg.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    root: Root = Path(),
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Its parts, its sizes, what it can do, and what its backbone says of itself."""
    from armillary.assemble import build, inspecting
    from armillary.reporting.pictures import draw, refuse_kind
    from armillary.run_folder import open_run

    if plot is not None:
        refuse_kind(plot)
    found = inspecting.inspect(build.open_model(open_run(run, root), checkpoint, device), root)
    if plot is not None:
        panels = inspecting.panels(found["details"])
        if not panels:
            raise Refusal(f"--plot {plot}: backbone {found['backbone']['name']} has nothing to draw; leave it out")
        draw(panels, plot)
    if as_json:
        show_json(found)
        return
    print(table(list(_lines(found))))
    if plot is not None:
        print(plot)


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value), a section's own under it; a list of rows as a row a line."""
    for key, value in found.items():
        if value == {}:
            continue
        if isinstance(value, dict):
            yield _title(key), ""
            yield from ((f"  {name}", told) for name, told in _lines(value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            n_rows = len(value)
            yield _title(key), f"{n_rows}, each with {', '.join(value[0])}: --json has them" * (n_rows > MOST_ROWS)
            for row in value if n_rows <= MOST_ROWS else ():
                yield "", " · ".join(f"{_title(name)} {_told(inner)}" for name, inner in row.items())
        else:
            yield _title(key), _told(value)


def _title(key: str) -> str:
    return str(key).replace("_", " ")


def _told(value: Any) -> str:
    match value:
        case None:
            return "—"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(_told(inner) for inner in value) or "—"
    return str(value)
