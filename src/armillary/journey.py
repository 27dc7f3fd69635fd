"""Stages in a row: the whole road on the embedded corpus, in the minutes a newcomer will wait."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.assemble import build, evaluating, stages, training
from armillary.assemble import parts as parts_of
from armillary.assemble.training_run import TrainingRun
from armillary.recipe import merge, raw
from armillary.records import fingerprint
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training import distribution

RESERVE_SECONDS = 40.0
"""Kept back for the evaluation, its baselines and the report."""

CAUTION = 0.85
"""Share of what is left that is planned for: a laptop slows down by up to a third as it warms."""

Follow = Callable[[TrainingRun, str], dict[str, Any]]


@dataclass(frozen=True)
class Arrived:
    """Where the demo's run lies, what it measured (the model first, then the baselines), and how to do it again."""

    run: RunFolder
    results: list[dict[str, Any]]
    commands: list[str]
    seconds: float
    state: str


def demo(root: Path, minutes: float, overrides: Sequence[str], say: Callable[[str], None], follow: Follow) -> Arrived:
    """Trains, measures, and returns before `minutes` have passed on a machine of two cores.

    The number of steps comes from a short measurement, so that a slower machine trains less instead of waiting longer.
    """
    started = time.perf_counter()
    if 60 * minutes <= RESERVE_SECONDS + 15:
        raise Refusal(f"--minutes {minutes:g}: the demo needs at least 1; give --minutes 1 or more")
    recipe = raw("demo", overrides)
    found = parts_of.resolve(recipe)
    prepared = stages.prepare(found, root, say)
    left = 60 * minutes - RESERVE_SECONDS - (time.perf_counter() - started)
    found = training.with_minutes(found, prepared, CAUTION * left / 60)
    every = max(1, found.recipe.training.steps // 5)
    steps = 5 * every
    changes = {"training": {"steps": steps, "validate_every": every, "sample_every": every}}
    found = parts_of.resolve(merge(recipe, changes))
    run = _free_run(root)
    commands = _commands(run, root, overrides, changes["training"])
    outcome = follow(
        TrainingRun(found, prepared, run, distribution.join("auto"), fingerprint(raw("demo"))), commands[0]
    )
    if outcome["state"] == "interrupted":
        return Arrived(run, [], commands, time.perf_counter() - started, "interrupted")
    say("measuring the model and the baselines on the same held-out bytes")
    model = build.open_model(run)
    results = evaluating.evaluate(model, evaluating.Wanted(references=True, root=root))
    return Arrived(run, results, commands, time.perf_counter() - started, "finished")


def _free_run(root: Path) -> RunFolder:
    number = 1
    while (run := RunFolder(root / "runs" / ("demo" if number == 1 else f"demo-{number}"))).exists():
        number += 1
    return run


def _commands(run: RunFolder, root: Path, overrides: Sequence[str], changes: dict[str, Any]) -> list[str]:
    where = ["--root", str(root)]
    settings = [*overrides, *(f"training.{key}={value}" for key, value in changes.items())]
    sets = [word for setting in settings for word in ("--set", setting)]
    words = [
        ["armillary", "train", "demo", "--name", run.name, *sets, *where],
        ["armillary", "evaluate", run.name, "--references", *where],
        ["armillary", "report", run.name, *where],
        ["armillary", "sample", run.name, "--prompt", "The state of the Union", "--n", "3", *where],
    ]
    return [shlex.join(line) for line in words]
