"""What run.json says of a run, and what a resume may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armillary import artefact
from armillary.assemble import build
from armillary.assemble.parts import Parts
from armillary.assemble.stages import Prepared
from armillary.model.network import LanguageNetwork, count_parameters
from armillary.recipe import Recipe
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder, now

MAY_CHANGE = {"steps", "log_every", "validate_every", "sample_every", "checkpoint_every", "keep_checkpoints", "track",
              "device", "validation_rows", "early_stop", "on_non_finite"}  # fmt: skip
"""Keys of `training` that a resume may set anew; another `steps` bends the schedule, and an event says so."""


def new_facts(parts: Parts, prepared: Prepared, network: LanguageNetwork, before: dict[str, Any]) -> dict[str, Any]:
    """Facts of an attempt that begins. before: those of the attempt before, empty for the first."""
    parameters, inner = count_parameters(network)
    steps, rows = parts.recipe.training.steps, build.batch_rows(parts)
    loaded = prepared.tokenizer
    return {
        "state": "running",
        "parameters": parameters,
        "parameters_non_embedding": inner,
        "tokens_per_parameter": steps * rows * parts.recipe.packing.window / parameters,
        "steps": steps,
        "batch_rows": rows,
        "started": before.get("started", now()),
        "finished": None,
        "corpora": {name: _corpus(p.about) | {"folder": p.folder.name} for name, p in prepared.packed.items()},
        "packed": {name: str(p.folder.resolve()) for name, p in prepared.packed.items()},
        "tokenizer": {
            "name": loaded.name,
            "n_vocab": loaded.tokenizer.n_vocab,
            "sha256": loaded.sha256,
            "is_lossless": loaded.tokenizer.is_lossless,
        },
    }


def changed_system(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What of the system a resume finds changed: it is equal to the bit only where none is. Told, never refused."""
    keys = ("torch", "threads", "cpu_capability", "device", "precision", "processes", "compile")
    changed = [f"{key} {before[key]} → {after[key]}" for key in keys if key in before and before[key] != after[key]]
    return f"{', '.join(changed)}: the weights may differ in their last bits" if changed else ""


def changed_steps(before: int | None, after: int) -> str:
    return f"{before} → {after}: the schedule bends here" if before not in (None, after) else ""


def refuse_edited_recipe(run: RunFolder, asked: dict[str, Any], asked_hash: str) -> None:
    """A resume is asked for with the recipe the run began with, or with the run's own recipe file."""
    own = run.recipe()
    if own["name"] != asked.get("name"):
        raise Refusal(f"run '{run.name}' was trained with recipe {own['name']}, not {asked.get('name')}; give that one")
    if asked_hash != run.facts().get("asked", asked_hash) and asked != own:
        raise Refusal(
            f"recipe {own['name']} changed since run '{run.name}' began; resume with {run.recipe_file} "
            "(and --set for what may change), or give --name for a new run"
        )


def refuse_saved_model(run: RunFolder) -> None:
    """What `LanguageModel.save` wrote is sealed: a file more, and it could not be opened again."""
    if (run.path / artefact.MANIFEST).is_file():
        raise Refusal(f"{run.path}: holds a saved model, which stays as it is; give --name for a new run")


def refuse_fewer_steps(checkpoint: Path, steps: int) -> None:
    done = int(checkpoint.name.removeprefix("step-"))
    if steps < done:
        raise Refusal(
            f"training.steps: {steps}, and {checkpoint.parent.parent} has done {done}; ask for as many or more"
        )


def refuse_other_text(run: RunFolder, prepared: Prepared) -> None:
    """The text and tokenizer must be those the run began with, wherever they lie now."""
    before = run.facts()
    if before.get("tokenizer", {}).get("sha256") not in (None, prepared.tokenizer.sha256):
        raise Refusal(f"run '{run.name}' was trained with another tokenizer; leave --tokenizer and --data out")
    for name, packed in prepared.packed.items():
        was = before.get("corpora", {}).get(name, {}).get("fingerprint")
        if was not in (None, packed.about["corpus_fingerprint"]):
            raise Refusal(f"run '{run.name}' was trained on another text; leave --data out, or give --name")


def refuse_other_recipe(run: RunFolder, recipe: Recipe) -> None:
    """A resume takes the run's own recipe; only `MAY_CHANGE` may differ."""
    old, new = run.recipe(), recipe.model_dump(mode="json")
    for section in sorted(old.keys() | new.keys()):
        if section in ("name", "about", "sampling", "evaluation", "corpora", "tokenizer"):
            continue
        a, b = old.get(section), new.get(section)
        keys: list[str] = []
        if section == "training" and isinstance(a, dict) and isinstance(b, dict):
            a, b = ({k: v for k, v in x.items() if k not in MAY_CHANGE} for x in (a, b))
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
            where = ".".join([section, *keys[:1]])
            raise Refusal(
                f"run '{run.name}' was trained with another {where}; resume it with its own recipe "
                f"({run.recipe_file}), or give --name for a new run"
            )


def _corpus(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": about["corpus"],
        "fingerprint": about["corpus_fingerprint"],
        "boundary": about["boundary"],
        "splits": about["splits"],
    }
