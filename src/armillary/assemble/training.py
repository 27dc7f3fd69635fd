"""From what a person asks to a run that is ready to go: recipe or existing run, artefacts, number of steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from armillary import recipe as recipes
from armillary.assemble import build, parts, planning, stages, tracking
from armillary.assemble import facts as facts_of
from armillary.assemble.parts import Parts
from armillary.assemble.stages import Given, Prepared
from armillary.assemble.training_run import TrainingRun
from armillary.records import fingerprint
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training import distribution

OVERHEAD = 0.9
"""Share of the minutes asked for that optimizer steps get; the rest validates, samples and saves."""


@dataclass(frozen=True)
class Request:
    """What the command line or Python asks for. recipe: name, file or plain data; overrides: "a.b=c"; data: text, or a
    corpus or packed artefact."""

    recipe: str | Mapping[str, Any]
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
    asked_recipe: str

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run.path),
            "continues": self.continues,
            "checkpoints": self.run.checkpoint_steps(),
            "recipe": self.parts.recipe.model_dump(mode="json"),
        }


def check(request: Request) -> Checked:
    """Raises Refusal for an unknown recipe or key, text or artefacts that are not there, or a run that exists."""
    asked = recipes.raw(request.recipe)
    name = request.name or str(asked.get("name", "unnamed"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise Refusal(f"--name {name}: it becomes a folder; use letters, digits, dot, dash and underscore")
    run = RunFolder(request.root / "runs" / name)
    continues = run.exists() and request.resumes
    if not run.exists() and run.checkpoint_steps():
        raise Refusal(f"{run.recipe_file}: is gone, and its checkpoints are there; restore it, or give --name")
    if run.exists() and not request.resumes:
        raise Refusal(f"run '{run.name}' exists; add --resume auto to go on with it, or --name for a new one")
    if continues:
        facts_of.refuse_edited_recipe(run, asked, fingerprint(asked))
        if request.minutes is not None:
            raise Refusal("--minutes sets the steps of a new run; this one goes on, set --steps instead")
    raw = recipes.override(run.recipe() if continues else asked, request.overrides)
    text, given = stages.given(request.data, request.tokenizer)
    if text is not None:
        raw = parts.with_data(raw, text)
    found = parts.resolve(raw)
    tracking.refuse_missing(found.recipe.training.track)
    stages.refuse_absent(found, given, needs_text=not continues or text is not None)
    return Checked(request, found, given, run, continues, fingerprint(asked))


def start(checked: Checked, say: Callable[[str], None]) -> TrainingRun:
    """Runs the missing stages and fixes the number of steps. The main process makes artefacts, the others open them.

    Raises Refusal for a device that is not there or rows that do not divide, before any stage runs.
    """
    request, found = checked.request, checked.parts
    accelerator = distribution.join(found.recipe.training.device)
    distribution.share(accelerator, build.batch_rows(found), found.recipe.training.accumulation)
    with accelerator.main_process_first():
        prepared = _prepare(checked, say)
    if (why := distribution.fallen_back(found.recipe.training.device)) is not None:
        say(why)
    if request.minutes is not None:
        found = with_minutes(found, prepared, request.minutes)
        say(f"{request.minutes:g} minutes are about {found.recipe.training.steps:,} steps")
    return TrainingRun(found, prepared, checked.run, accelerator, checked.asked_recipe)


def with_minutes(found: Parts, prepared: Prepared, minutes: float) -> Parts:
    """The recipe with as many steps as fit, by a short measurement; from there on it is a run like any other."""
    if minutes <= 0:
        raise Refusal(f"--minutes {minutes:g}: must be more than 0")
    (steps,) = broadcast_object_list([max(1, int(60 * OVERHEAD * minutes / seconds_per_step(found, prepared)))])
    return parts.resolve(recipes.merge(found.recipe.model_dump(mode="json"), {"training": {"steps": steps}}))


def seconds_per_step(found: Parts, prepared: Prepared) -> float:
    """Every rank times itself; whoever plans by it takes the first one's."""
    rows = build.batch_rows(found)
    micro = max(1, rows // found.recipe.training.accumulation)
    return planning.measure_steps(found, prepared.tokenizer.tokenizer.n_vocab, micro).seconds / micro * rows


def _prepare(checked: Checked, say: Callable[[str], None]) -> Prepared:
    """A run that goes on uses the artefacts it began with, where they still are."""
    if checked.continues and checked.given == Given() and checked.request.data is None:
        return stages.reopen(checked.run, checked.parts, checked.request.root)
    return stages.prepare(checked.parts, checked.request.root, say, checked.given)
