"""`armillary compare`: runs side by side on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.evaluate import Exact, Samples, Tokens
from armillary.cli.options import Checkpoint, Device, DryRun, Json, LogLevel, Root, Set
from armillary.cli.screen import Screen, show_json
from armillary.refusal import Refusal


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN ...", help="The first is what others are held against.")
    ],
    split: Annotated[str | None, typer.Option(help="By default the last split their corpus has.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens a window sees; by default each run's own.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens a window scores.")] = None,
    samples: Samples = None,
    exact: Exact = None,
    tokens: Tokens = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Paired differences with 95 % intervals over documents. Runs measured on other texts are refused."""
    from armillary.assemble import build, evaluating
    from armillary.reporting.tables import as_markdown, comparison_rows
    from armillary.run_folder import open_run

    screen = Screen(log_level)
    if len(runs) < 2:
        raise Refusal("compare: give two runs or more")
    wanted = evaluating.Wanted(split, window, stride, root=root, samples=samples, exact=exact, n_tokens=tokens)
    models = [build.open_model(open_run(run, root), checkpoint, device, overrides or []) for run in runs]
    evaluating.refuse_idle_samples(models, wanted)
    if dry_run:
        rows = zip(runs, evaluating.stored(models, wanted), strict=True)
        show_json([{"run": run, "scores": str(path), "is_measured": is_there} for run, (path, is_there) in rows])
        return
    found = evaluating.compare(models, wanted, screen.say).as_json()
    if as_json:
        show_json(found)
        return
    print(as_markdown(comparison_rows(found)))
    for note in found["notes"]:
        print(f"note: {note}")
