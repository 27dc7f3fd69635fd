"""`armillary demo`: the whole road in a few minutes, offline, without questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import DryRun, Json, LogLevel, Set
from armillary.cli.screen import Screen, seconds, show_json


def demo(
    root: Annotated[Path, typer.Option(help="Folder for its artefacts/ and runs/.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(help="How long all of it may take.")] = 5.0,
    overrides: Set = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Text, tokenizer, an autoregressive and a masked-diffusion model of one size, measured on the same text beside
    honest baselines, and a report to open in a browser."""
    from armillary import journey
    from armillary.cli.evaluate import line
    from armillary.cli.training_screen import follow
    from armillary.reporting.report import write_report

    screen = Screen(log_level)
    if dry_run:
        from armillary import recipe

        show_json({name: recipe.raw(name, overrides or []) for name in journey.MODELS})
        return
    arrived = journey.demo(
        root, minutes, overrides or [], screen.say, lambda run, command: follow(run, screen, command)
    )
    if arrived.state == "interrupted":
        recipe_name, run = journey.MODELS[len(arrived.runs) - 1], arrived.runs[-1]
        screen.say(f"saved. Go on with: armillary train {recipe_name} --name {run.name} --root {root} --resume auto")
        sys.exit(130)
    report = write_report(arrived.runs, arrived.runs[0].report_file, arrived.comparison)
    if as_json:
        runs = [str(run.path) for run in arrived.runs]
        show_json({"runs": runs, "report": str(report), "results": arrived.results, "comparison": arrived.comparison})
        return
    print()
    for result in arrived.results:
        print(line(result))
    print(f"\nreport: {report}  ({seconds(arrived.seconds)} in all)\n\nwhat was run, and what to try next:")
    for command in arrived.commands:
        print(f"  {command}")
