"""A recipe turned into its parts, every field checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary import artefact, recipe, registry
from armillary.assemble import compatibility
from armillary.contracts import BackbonePart, Objective, Source, TokenizerPart
from armillary.recipe import Choice, Recipe
from armillary.refusal import Refusal


@dataclass(frozen=True)
class Parts:
    """A recipe, every default of its parts filled in, and the parts it names. sources: one a corpus."""

    recipe: Recipe
    folders: tuple[Path, ...]
    sources: dict[str, Source]
    tokenizer: TokenizerPart
    backbone: BackbonePart
    objective: Objective
    optimizer: Any
    schedule: Any
    sampler: Any


def resolve(raw: Mapping[str, Any]) -> Parts:
    """Raises Refusal that names the section, the key and the nearest known one."""
    checked: Recipe = registry.check(Recipe, raw, f"recipe {raw.get('name', '?')}")
    folders = tuple(Path(folder) for folder in checked.parts)

    def make(room: str, choice: Choice) -> Any:
        return registry.make(room, choice.name, choice.fields, folders)

    def whole(part: Any, choice: Choice) -> Choice:
        # Fields that only say where text lies are left out of a dump; the recipe keeps what it said of them.
        return Choice(name=choice.name, **{**part.model_dump(mode="json"), **choice.fields})

    backbone: BackbonePart = make("backbones", _told_the_window(checked, folders))
    objective = make("objectives", checked.objective)
    training, sampling = checked.training, checked.sampling
    sampler_choice = sampling.sampler or Choice(name=compatibility.usual_sampler(objective))
    sampler = make("samplers", sampler_choice)
    _refuse_misfits(checked, (backbone, objective, (sampler_choice.name, sampler)), folders)
    schedule = make("training/schedules", training.schedule)
    schedule.check(training.steps)
    sources = {name: make("text/sources", corpus.source) for name, corpus in checked.corpora.items()}
    tokenizer = make("tokens/tokenizers", checked.tokenizer)
    optimizer = make("training/optimizers", training.optimizer)
    filled = {
        "corpora": {
            n: c.model_copy(update={"source": whole(sources[n], c.source)}) for n, c in checked.corpora.items()
        },
        "tokenizer": whole(tokenizer, checked.tokenizer),
        "model": checked.model.model_copy(update={"backbone": whole(backbone, checked.model.backbone)}),
        "objective": whole(objective, checked.objective),
        "training": training.model_copy(
            update={"optimizer": whole(optimizer, training.optimizer), "schedule": whole(schedule, training.schedule)}
        ),
        "sampling": sampling.model_copy(update={"sampler": whole(sampler, sampler_choice)}),
    }
    complete = checked.model_copy(update=filled)
    return Parts(complete, folders, sources, tokenizer, backbone, objective, optimizer, schedule, sampler)


def _told_the_window(checked: Recipe, folders: Sequence[Path]) -> Choice:
    """The recipe's backbone; one with a field `window` learns the packing's where the recipe does not repeat it."""
    choice = checked.model.backbone
    if "window" not in registry.find("backbones", choice.name, folders).model_fields:
        return choice
    return Choice(**{"window": checked.packing.window, **choice.model_dump()})


def longest_row(objective: Any, window: int) -> int:
    """Positions that a row of this window takes: one more where the first token is read and any place comes next."""
    return window + ("target_positions" in objective.needs)


def _refuse_misfits(checked: Recipe, found: tuple[Any, Any, compatibility.Named], folders: Sequence[Path]) -> None:
    """found: backbone, objective, the sampler with its name."""
    backbone, objective, sampler = found
    learnt = (checked.objective.name, objective)
    fault = compatibility.network_fault((checked.model.backbone.name, backbone), learnt)
    fault = fault or compatibility.sampler_fault(learnt, sampler, folders)
    window, limit = checked.packing.window, backbone.max_length
    longest = longest_row(objective, window)
    if limit is not None and limit < longest:
        more = "" if longest == window else f" ({longest} positions for {learnt[0]})"
        fault = fault or (
            f"packing.window is {window}{more}, and model.backbone.max_length {limit}; "
            f"set model.backbone.max_length={longest}"
        )
    told = getattr(backbone, "window", window)
    if told != window:
        fault = fault or f"packing.window is {window}, and model.backbone.window {told}; leave the second one out"
    if checked.packing.isolate_documents and any(view != "next_token" for view in objective.views):
        fault = fault or (
            f"packing.isolate_documents: {learnt[0]} looks ahead and would see where documents end; set it to false"
        )
    if checked.sampling.compile and compatibility.shared_view(objective, sampler[1]) != "next_token":
        fault = fault or f"sampling.compile: compiles the steps of left_to_right, not of {sampler[0]}; set it to false"
    if fault is not None:
        raise Refusal(f"recipe {checked.name}: {fault}")


def with_data(raw: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """The recipe reading its one corpus from `data`."""
    corpora = raw.get("corpora", {})
    if len(corpora) != 1:
        raise Refusal(f"--data: the recipe has {len(corpora)} corpora; set each: --set corpora.NAME.source.path=…")
    ((name, corpus),) = corpora.items()
    source = source_of(data, corpus.get("source", {}), raw.get("parts", []))
    return recipe.merge(raw, {"corpora": {name: {"source": source}}})


def source_of(data: Path, own: Mapping[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """The source that reads `data`: the recipe's own where it finds its text there (WikiText's files), else `files`."""
    if not data.exists():
        raise Refusal(f"--data {data}: no such file or folder")
    here = {**own, "path": str(data)}
    fields = {key: value for key, value in here.items() if key != "name"}
    if own.get("name") != "files":
        try:
            registry.make("text/sources", own["name"], fields, [Path(f) for f in folders]).fingerprint()
        except Refusal:
            return {"name": "files", "path": str(data)}
    return here


def artefact_kind(path: Path) -> str | None:
    """corpus, tokenizer or packed where the folder is such an artefact."""
    is_ours = path.parent.parent.name == "artefacts"
    return artefact.read(path, verify=False).kind if (path / artefact.MANIFEST).is_file() or is_ours else None
