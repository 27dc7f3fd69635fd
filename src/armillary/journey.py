"""Stages in a row: the whole road on the embedded corpus, in the minutes a newcomer will wait."""

from __future__ import annotations

import math
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

MODELS = ("demo", "demo-masked")
"""Recipes that end side by side: equal shapes, equal text. Each gets its share of the minutes that are left."""

RESERVE_SECONDS = {"demo": 35.0, "demo-masked": 70.0}
"""Kept back for what comes after the training of each: measuring it, the baselines or the comparison, the report."""

REPLICATES = 3
"""Passes over the text for a bound: fewer than usual, for the sake of the clock; the interval says what it costs."""

CAUTION = 0.85
"""Share of what is left that is planned for: a laptop slows down by up to a third as it warms."""

Follow = Callable[[TrainingRun, str], dict[str, Any]]


@dataclass(frozen=True)
class Arrived:
    """Where the runs lie, what was measured (of each model, the baselines beside the first), how to do it again."""

    runs: list[RunFolder]
    results: list[dict[str, Any]]
    comparison: dict[str, Any] | None
    commands: list[str]
    seconds: float
    state: str


def demo(root: Path, minutes: float, overrides: Sequence[str], say: Callable[[str], None], follow: Follow) -> Arrived:
    """Trains and measures one model a recipe, and returns before `minutes` have passed on a machine of two cores.

    The number of steps comes from a short measurement, so that a slower machine trains less instead of waiting longer.
    """
    started = time.perf_counter()
    reserve = sum(RESERVE_SECONDS.values())
    if not reserve + 25 < 60 * minutes < math.inf:
        raise Refusal(f"--minutes {minutes:g}: the demo needs {math.ceil((reserve + 25) / 60)} at least")
    runs: list[RunFolder] = []
    results: list[dict[str, Any]] = []
    commands: list[str] = []
    models = []
    for name in MODELS:
        left = 60 * minutes - (time.perf_counter() - started)
        reserve = sum(RESERVE_SECONDS[other] for other in MODELS[len(runs) :])
        run = _free_run(root, name)
        runs.append(run)
        share = (left - reserve) / (len(MODELS) - len(models))
        training_run, changes = _planned(name, run, (root, overrides), share, say)
        commands += _commands(name, run, root, overrides, changes)
        outcome = follow(training_run, commands[-2])
        if outcome["state"] == "interrupted":
            return Arrived(runs, results, None, commands, time.perf_counter() - started, "interrupted")
        is_first = not models
        say("measuring it" + (", and the baselines, on the same held-out bytes" if is_first else " on the same bytes"))
        models.append(build.open_model(run))
        wanted = evaluating.Wanted(references=is_first, samples=REPLICATES, root=root)
        results += evaluating.evaluate(models[-1], wanted)
    compared = evaluating.compare(models, evaluating.Wanted(samples=REPLICATES, root=root), say)
    commands += _commands_of_all(runs, root)
    return Arrived(runs, results, compared.as_json(), commands, time.perf_counter() - started, "finished")


def _planned(
    name: str, run: RunFolder, where: tuple[Path, Sequence[str]], seconds: float, say: Callable[[str], None]
) -> tuple[TrainingRun, dict[str, Any]]:
    """A run of as many steps as fit, and what that changes in its recipe. where: root and overrides."""
    root, overrides = where
    started = time.perf_counter()
    recipe = raw(name, overrides)
    found = parts_of.resolve(recipe)
    prepared = stages.prepare(found, root, say)
    left = seconds - (time.perf_counter() - started)
    found = training.with_minutes(found, prepared, CAUTION * left / 60)
    every = max(1, found.recipe.training.steps // 5)
    changes = {"steps": 5 * every, "validate_every": every, "sample_every": every}
    found = parts_of.resolve(merge(recipe, {"training": changes}))
    say(f"{name}: {found.recipe.training.steps:,} steps of {found.recipe.objective.name}")
    asked = fingerprint(raw(name))
    return TrainingRun(found, prepared, run, distribution.join("auto"), asked), changes


def _free_run(root: Path, name: str) -> RunFolder:
    number = 1
    while (run := RunFolder(root / "runs" / (name if number == 1 else f"{name}-{number}"))).exists():
        number += 1
    return run


def _commands(name: str, run: RunFolder, root: Path, overrides: Sequence[str], changes: dict[str, Any]) -> list[str]:
    settings = [*overrides, *(f"training.{key}={value}" for key, value in changes.items())]
    sets = [word for setting in settings for word in ("--set", setting)]
    where = ["--root", str(root)]
    how = ["--references"] if name == MODELS[0] else ["--samples", str(REPLICATES)]
    train = ["armillary", "train", name, "--name", run.name, *sets, *where]
    return [shlex.join(train), shlex.join(["armillary", "evaluate", run.name, *how, *where])]


def _commands_of_all(runs: Sequence[RunFolder], root: Path) -> list[str]:
    names, where = [run.name for run in runs], ["--root", str(root)]
    words = [
        ["armillary", "compare", *names, "--samples", str(REPLICATES), *where],
        ["armillary", "report", *names, *where],
        ["armillary", "sample", names[0], "--prompt", "The state of the Union", "--n", "3", *where],
        ["armillary", "sample", names[-1], "--infill", "The <8> of the United States <8> peace.", "--live", *where],
    ]
    return [shlex.join(line) for line in words]
