"""From what a person asks to a run that is ready to go: recipe or existing run, artefacts, number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from armillary import recipe as recipes
from armillary.assemble import build, parts, planning, stages
from armillary.assemble.parts import Parts
from armillary.assemble.stages import Given, Prepared
from armillary.assemble.training_run import TrainingRun
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training import distribution

OVERHEAD = 0.9
"""Share of the minutes asked for that optimizer steps get; the rest validates, samples and saves."""


@dataclass(frozen=True)
class Request:
    """What the command line or Python asks for. overrides: "a.b=c"; data: text, or a corpus or packed artefact."""

    recipe: str
    overrides: list[str]
    data: Path | None = None
    tokenizer: Path | None = None
    name: str | None = None
    minutes: float | None = None
    resumes: bool = False
    root: Path = Path()


@dataclass(frozen=True)
class Checked:
    """A request whose recipe holds; nothing is written yet."""

    request: Request
    parts: Parts
    given: Given
    run: RunFolder
    continues: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run.path),
            "continues": self.continues,
            "checkpoints": self.run.checkpoint_steps(),
            "recipe": self.parts.recipe.model_dump(mode="json"),
        }


def check(request: Request) -> Checked:
    """Raises Refusal for an unknown recipe or key, a text that is not there, or a run that exists already."""
    raw = recipes.raw(request.recipe, request.overrides)
    run = RunFolder(request.root / "runs" / (request.name or str(raw.get("name", request.recipe))))
    continues = run.exists() and request.resumes
    if run.exists() and not request.resumes:
        raise Refusal(f"run '{run.name}' exists; add --resume auto to go on with it, or --name for a new one")
    if continues:
        own = run.recipe()
        if own["name"] != raw.get("name"):
            raise Refusal(
                f"run '{run.name}' was trained with recipe {own['name']}, not {raw.get('name')}; give that one"
            )
        raw = recipes.override(own, request.overrides)
    text, given = stages.given(request.data, request.tokenizer)
    if text is not None:
        raw = parts.with_data(raw, text)
    return Checked(request, parts.resolve(raw), given, run, continues)


def start(checked: Checked, say: Callable[[str], None]) -> TrainingRun:
    """Runs the missing stages and fixes the number of steps. The main process makes artefacts, the others open them.

    Raises Refusal for a device that is not there or rows that do not divide, before any stage runs.
    """
    request, found = checked.request, checked.parts
    accelerator = distribution.join(found.recipe.training.device)
    distribution.share(accelerator, build.batch_rows(found), found.recipe.training.accumulation)
    with accelerator.main_process_first():
        prepared = _prepare(checked, say)
    if request.minutes is not None and not checked.continues:
        found = with_minutes(found, prepared, request.minutes)
        say(f"{request.minutes:g} minutes are about {found.recipe.training.steps:,} steps")
    elif request.minutes is not None:
        raise Refusal("--minutes sets the steps of a new run; this one goes on, set --steps instead")
    return TrainingRun(found, prepared, checked.run, accelerator)


def with_minutes(found: Parts, prepared: Prepared, minutes: float) -> Parts:
    """The recipe with as many steps as fit, by a short measurement; from there on it is a run like any other."""
    if minutes <= 0:
        raise Refusal(f"--minutes {minutes:g}: must be more than 0")
    rows = build.batch_rows(found)
    micro = max(1, rows // found.recipe.training.accumulation)
    per_row, _ = planning.seconds_per_row(found, prepared.tokenizer.tokenizer.n_vocab, micro)
    # Every rank has timed itself; all take the count of the first.
    (steps,) = broadcast_object_list([max(1, int(60 * OVERHEAD * minutes / (per_row * rows)))])
    raw = recipes.merge(found.recipe.model_dump(mode="json"), {"training": {"steps": steps}})
    return parts.resolve(raw)


def _prepare(checked: Checked, say: Callable[[str], None]) -> Prepared:
    """A run that goes on uses the artefacts it began with, where they still are."""
    if checked.continues and checked.given == Given() and checked.request.data is None:
        return stages.reopen(checked.run, checked.parts, checked.request.root)
    return stages.prepare(checked.parts, checked.request.root, say, checked.given)
