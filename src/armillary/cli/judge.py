"""`armillary judge`: how good the texts of a run are, by another model and by their variety."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.options import Checkpoint, Device, DryRun, Json, LogLevel, Root, RunName, Set
from armillary.cli.screen import Screen, show_json
from armillary.refusal import Refusal


def judge(
    run: RunName,
    by: Annotated[str, typer.Option(help="The run that judges: its likelihood must be exact.")],
    n: Annotated[int, typer.Option(min=2, help="Texts in each manner.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a text.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Another sampler than the recipe's; see `compatibility`.")] = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Steps from noise to text. Repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same texts.")] = 0,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Perplexity under another model, entropy and distinct n-grams, beside those of held-out text of the same length.

    Texts are drawn from the beginning of a document. They and their figures are kept in the run's evaluation folder.
    """
    from armillary.assemble import build, judging, sampling
    from armillary.reporting.tables import as_markdown, quality_rows
    from armillary.run_folder import open_run

    screen = Screen(log_level)
    if by == run:
        raise Refusal(f"--by {by}: a model finds its own texts likely; give another run")
    chosen = [f"sampling.sampler.name={sampler}"] if sampler is not None else []
    model = build.open_model(open_run(run, root), checkpoint, device, [*chosen, *(overrides or [])])
    other = build.open_model(open_run(by, root), "best", device)
    manners = [
        sampling.settings(model.parts, model.tokenizer, [], {} if k is None else {"steps": k}, max_new_tokens)
        for k in (steps or [None])
    ]
    if other.parts.objective.kind != "exact":
        raise Refusal(f"--by {by}: the judge needs an exact likelihood; give a run whose objective is autoregressive")
    if dry_run:
        show_json({"run": run, "by": by, "n": n, "settings": [manner.sampler.model_dump() for manner in manners]})
        return
    real = judging.real(model, other, n, manners[0].n_new, root)
    found: list[dict[str, Any]] = judging.judged(model, other, manners, n, seed, screen.say)
    if as_json:
        show_json([*found, real])
        return
    print(as_markdown(quality_rows([*found, real])))
