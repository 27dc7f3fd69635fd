"""A recipe turned into its parts, every field checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary import artefact, recipe, registry
from armillary.contracts import BackbonePart, Objective, Source, TokenizerPart
from armillary.recipe import Choice, Recipe
from armillary.refusal import Refusal


@dataclass(frozen=True)
class Parts:
    """A recipe and what it names. sources: one a corpus; empty where packed artefacts are given instead."""

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

    backbone: BackbonePart = make("backbones", checked.model.backbone)
    window = checked.packing.window
    if backbone.max_length is not None and backbone.max_length < window:
        raise Refusal(
            f"recipe {checked.name}: packing.window is {window}, and model.backbone.max_length {backbone.max_length}; "
            f"set model.backbone.max_length={window}"
        )
    schedule = make("training/schedules", checked.training.schedule)
    schedule.check(checked.training.steps)
    return Parts(
        recipe=checked,
        folders=folders,
        sources={name: make("text/sources", corpus.source) for name, corpus in checked.corpora.items()},
        tokenizer=make("tokens/tokenizers", checked.tokenizer),
        backbone=backbone,
        objective=make("objectives", checked.objective),
        optimizer=make("training/optimizers", checked.training.optimizer),
        schedule=schedule,
        sampler=make("samplers", checked.sampling.sampler),
    )


def with_data(raw: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """The recipe reading its one corpus from `data`.

    The recipe's own source is kept where it finds its text there (WikiText's files, say); otherwise it is `files`.
    """
    if not data.exists():
        raise Refusal(f"--data {data}: no such file or folder")
    corpora = raw.get("corpora", {})
    if len(corpora) != 1:
        raise Refusal(
            f"--data: the recipe has {len(corpora)} corpora; set each one, as --set corpora.NAME.source.path=…"
        )
    ((name, corpus),) = corpora.items()
    own = corpus.get("source", {})
    for source in ({**own, "path": str(data)}, {"name": "files", "path": str(data)}):
        if source.get("name") == "files" or _finds_text(source, raw.get("parts", [])):
            return recipe.merge(raw, {"corpora": {name: {"source": source}}})
    raise AssertionError("the files source is always tried")


def _finds_text(source: Mapping[str, Any], folders: Sequence[str]) -> bool:
    fields = {key: value for key, value in source.items() if key != "name"}
    try:
        registry.make("text/sources", source["name"], fields, [Path(f) for f in folders]).fingerprint()
    except Refusal:
        return False
    return True


def artefact_kind(path: Path) -> str | None:
    """corpus, tokenizer or packed where the folder is such an artefact."""
    return artefact.read(path, verify=False).kind if (path / artefact.MANIFEST).is_file() else None
