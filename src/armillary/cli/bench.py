"""`armillary bench`: measurements that leave a folder with their figures and the machine they are of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.options import DryRun, Json, LogLevel, Root
from armillary.cli.screen import Screen, show_json


def bench(
    name: Annotated[str, typer.Argument(help="tokenizers, kv-cache, throughput, memory, tiny-corpus, gpu; or all.")],
    base: Annotated[list[str] | None, typer.Option(help="A backbone to measure. Repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="gpu: only this check. Repeatable.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cuda, mps or cpu; gpu: auto, cuda, or cpu to try it there.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="tokenizers, tiny-corpus: your text; else text is made.")] = None,
    megabytes: Annotated[
        float | None,
        typer.Option(help="tokenizers, tiny-corpus: size of the text made; tokenizers: the first of --data."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: to see that it works, not to measure.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field of the bench: batch=4. Repeatable.")
    ] = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Figures with their spread and the machine, under ROOT/bench/NAME/TIME. Exit status 1 where something failed."""
    from armillary import benches, recipe
    from armillary.reporting.pictures import draw
    from armillary.reporting.tables import as_markdown

    screen = Screen(log_level)
    given: dict[str, Any] = {"base": base, "only": only, "device": device, "megabytes": megabytes}
    given |= {"data": str(data) if data is not None else None}
    fields = {key: value for key, value in given.items() if value not in (None, [])}
    made = benches.prepare(name, recipe.override(fields, overrides or []), is_quick=quick)
    if dry_run:
        benches.check(made, root)
        show_json({one: part.model_dump(mode="json") for one, part in made.items()})  # type: ignore[attr-defined]
        return
    is_sweep = name == "all"
    reports = []
    for report in (
        benches.sweep(made, root, screen.say) if is_sweep else [benches.run(name, made[name], root, screen.say)]
    ):
        reports.append(report)
        screen.end_live()
        for file, panels in report.found.panels.items():
            draw(panels, report.folder / file)
        if not as_json:
            print(f"{report.name}: {report.folder}\n\n{as_markdown(report.found.rows)}\n")
            print("".join(f"note: {note}\n" for note in report.found.notes), end="")
    if as_json:
        found = [report.as_json() for report in reports]
        show_json(found if is_sweep else found[0])
    if not all(report.found.is_ok for report in reports):
        sys.exit(1)
