"""`armillary train`: a recipe and a text, or a run to go on with, → a trained run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from armillary.cli.options import Data, DryRun, Json, LogLevel, RecipeName, Root, Set, TokenizerPath
from armillary.cli.screen import Screen, show_json
from armillary.refusal import Refusal


def train(
    recipe: RecipeName,
    data: Data = None,
    tokenizer: TokenizerPath = None,
    name: Annotated[str | None, typer.Option(help="The run's name; by default the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="As many steps as fit, by a short measurement.")] = None,
    resume: Annotated[
        Literal["never", "auto"], typer.Option(help="auto: go on with the run where it exists.")
    ] = "never",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Trains, running the missing stages first. Ctrl-C saves and stops; `--resume auto` goes on."""
    from armillary.assemble import training
    from armillary.cli.training_screen import follow

    if steps is not None and minutes is not None:
        raise Refusal("--steps and --minutes: give one of them")
    screen = Screen(log_level)
    changes = [*(overrides or []), *([f"training.steps={steps}"] if steps is not None else [])]
    request = training.Request(recipe, changes, data, tokenizer, name, minutes, resume == "auto", root)
    plan = training.check(request)
    if dry_run:
        show_json(plan.as_json())
        return
    run = training.start(plan, screen.say)
    launcher = ["torchrun", "--nproc-per-node", os.environ["WORLD_SIZE"], "-m"] if "WORLD_SIZE" in os.environ else []
    command = shlex.join([*launcher, "armillary", *sys.argv[1:]])
    outcome: dict[str, Any] = follow(run, screen, command)
    if as_json and run.is_main:
        show_json(outcome)
    if outcome["state"] == "interrupted":
        screen.say(f"saved. Go on with: armillary train {recipe} --name {run.run.name} --resume auto" + _root(root))
        sys.exit(130)


def _root(root: Path) -> str:
    return "" if root == Path() else f" --root {shlex.quote(str(root))}"
