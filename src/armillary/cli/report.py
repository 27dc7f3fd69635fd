"""`armillary report`: one HTML file for one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import DryRun, Json, LogLevel, Root
from armillary.cli.screen import show_json


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to show side by side.")],
    target: Annotated[
        Path | None, typer.Option(help="Where to write it; by default into the first run's folder.")
    ] = None,
    root: Root = Path(),
    as_json: Json = False,
    log_level: LogLevel = "info",
    dry_run: DryRun = False,
) -> None:
    """Curves, samples, results beside the baselines, what differs between recipes, and the commands to do it again."""
    from armillary.assemble.evaluating import stored_comparison
    from armillary.reporting.report import write_report
    from armillary.run_folder import open_run

    folders = [open_run(run, root) for run in runs]
    path = target or folders[0].report_file
    if not dry_run:
        found = stored_comparison(folders) if len(folders) > 1 else None
        write_report(folders, path, found.as_json() if found else None)
    if as_json:
        show_json({"report": str(path), "runs": [f.name for f in folders]})
    else:
        print(path)
