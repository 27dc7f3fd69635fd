"""`armillary runs`: which there are, and the facts of one."""

from __future__ import annotations

from pathlib import Path

import typer

from armillary.cli.options import Json, LogLevel, Root, RunName
from armillary.cli.screen import show_json

app = typer.Typer(help="Runs on disk.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(root: Root = Path(), as_json: Json = False, log_level: LogLevel = "info") -> None:
    """Every run under ROOT/runs: how far it is, its size, its best figure."""
    from armillary.reporting.tables import as_markdown, runs_table

    rows = runs_table(root)
    if as_json:
        show_json(rows)
    elif rows:
        print(as_markdown(rows))
    else:
        print(f"no runs under {root / 'runs'}")


@app.command()
def show(run: RunName, root: Root = Path(), as_json: Json = False, log_level: LogLevel = "info") -> None:
    """The facts of a run, its checkpoints, events and results."""
    from armillary.run_folder import open_run

    folder = open_run(run, root)
    found = {
        **folder.facts(),
        "checkpoints": folder.checkpoint_steps(),
        "events": folder.events(),
        "last": (folder.metrics("train") or [None])[-1],
        "evaluations": folder.evaluations(),
    }
    if as_json:
        show_json(found)
        return
    import yaml

    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), end="")
