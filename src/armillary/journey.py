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
from armillary.assemble.parts import Parts
from armillary.assemble.stages import Prepared
from armillary.assemble.training_run import TrainingRun
from armillary.recipe import override, raw
from armillary.records import fingerprint
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training import distribution

MODELS = ("demo", "demo-masked")
"""Recipes that end side by side: equal shapes, equal text, and as many steps each."""

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

    def left() -> float:
        return 60 * minutes - (time.perf_counter() - started)

    reserve = sum(RESERVE_SECONDS.values())
    if not reserve + 25 < 60 * minutes < math.inf:
        raise Refusal(f"--minutes {minutes:g}: the demo needs {math.ceil((reserve + 25) / 60)} at least")
    runs: list[RunFolder] = []
    results: list[dict[str, Any]] = []
    commands: list[str] = []
    models = []
    planned = [_prepared(name, root, overrides, say) for name in MODELS]
    costs = [training.seconds_per_step(found, prepared) for found, prepared in planned]
    steps = _fitting(left() - reserve, sum(costs))
    for name, (found, prepared), cost in zip(MODELS, planned, costs, strict=True):
        run = _free_run(root, name)
        runs.append(run)
        if models:  # the machine may have slowed down since it was measured
            steps = min(steps, _fitting(left() - RESERVE_SECONDS[name], cost))
        changes = _changes(steps, found)
        found = parts_of.resolve(override(found.recipe.model_dump(mode="json"), changes))
        say(f"{name}: {found.recipe.training.steps:,} steps of {found.recipe.objective.name}")
        training_run = TrainingRun(
            found, prepared, run, distribution.join(found.recipe.training.device), fingerprint(raw(name))
        )
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


def _prepared(name: str, root: Path, overrides: Sequence[str], say: Callable[[str], None]) -> tuple[Parts, Prepared]:
    found = parts_of.resolve(raw(name, overrides))
    return found, stages.prepare(found, root, say)


def _fitting(seconds: float, cost: float) -> int:
    """Steps of `cost` seconds, with room for validations, samples and a machine that slows down."""
    return max(1, int(CAUTION * training.OVERHEAD * seconds / cost))


def _changes(steps: int, found: Parts) -> list[str]:
    """What so many steps change in the recipe, as --set takes it; a slow machine has no room for the whole warm-up."""
    every = max(1, steps // 5)
    changes = [f"training.{key}={n}" for key, n in (("steps", 5 * every), ("validate_every", every),
                                                    ("sample_every", every))]  # fmt: skip
    if every < found.recipe.training.schedule.fields.get("warmup", 0):
        changes.append(f"training.schedule.warmup={every}")
    return changes


def _free_run(root: Path, name: str) -> RunFolder:
    number = 1
    while (run := RunFolder(root / "runs" / (name if number == 1 else f"{name}-{number}"))).exists():
        number += 1
    return run


def _commands(name: str, run: RunFolder, root: Path, overrides: Sequence[str], changes: list[str]) -> list[str]:
    settings = [*overrides, *changes]
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
