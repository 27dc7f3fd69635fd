"""What a trained model is: its parts, its sizes, and what its backbone says of itself."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from armillary import registry
from armillary.assemble import compatibility, stages
from armillary.assemble.build import OpenModel
from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork, count_parameters
from armillary.nn.sine import Sine
from armillary.objectives.mixture import Mixture
from armillary.refusal import Refusal

Panel = dict[str, Any]
"""A picture as plain data: see reporting/pictures."""


@runtime_checkable
class Describes(Protocol):
    """A backbone module that has more to say than its fields: plain facts of its weights as they are now."""

    def describe(self) -> dict[str, Any]: ...


@runtime_checkable
class Oscillates(Protocol):
    """A backbone module of oscillators: a row of facts for each, with its layer, half-life and period."""

    def oscillators(self) -> list[dict[str, Any]]: ...


@runtime_checkable
class Invertible(Protocol):
    """A backbone module that can be undone, where `is_bijective` says so."""

    @property
    def is_bijective(self) -> bool: ...

    def log_det(self, a: Tensor, b: Tensor, layout: Layout) -> Tensor: ...

    def reconstruction_error(self, a: Tensor, b: Tensor, layout: Layout) -> float: ...


def inspect(model: OpenModel, root: Path = Path()) -> dict[str, Any]:
    """Facts as `info --json` prints them. `runs show` has the run's history, `report` its curves."""
    recipe, objective, network = model.parts.recipe, model.parts.objective, model.network
    every, inner = count_parameters(network)
    facts = model.run.facts()
    terms = {}
    if isinstance(objective, Mixture):
        terms["kind_of_each_term"] = {name: term.kind for name, term in objective.objectives.items()}
    return {
        "run": model.run.name,
        "recipe": recipe.name,
        "about": recipe.about,
        "backbone": recipe.model.backbone.model_dump(),
        "tied": recipe.model.tied,
        "objective": recipe.objective.model_dump() | {"kind": objective.kind, **terms, "views": list(objective.views)},
        "samplers": samplers(model),
        "parameters": {"total": every, "without_embeddings": inner, "by_part": parameters_by_part(network)},
        "tokenizer": {
            "name": facts.get("tokenizer", {}).get("name"),
            "n_vocab": model.tokenizer.n_vocab,
            "is_lossless": model.tokenizer.is_lossless,
            "sha256": model.tokenizer_sha256,
        },
        "checkpoint": {"asked": model.checkpoint, "step": model.step, "steps_on_disk": model.run.checkpoint_steps()},
        "training": {
            "state": facts.get("state"),
            "steps": facts.get("steps"),
            "window": recipe.packing.window,
            "batch_rows": facts.get("batch_rows"),
            "optimizer": recipe.training.optimizer.name,
            "seconds": facts.get("training_seconds"),
            "best_step": facts.get("best_step"),
            "best_bits_per_byte": facts.get("best_bits_per_byte"),
            "best_kind": objective.kind,
            "corpora": {name: corpus.get("name") for name, corpus in facts.get("corpora", {}).items()},
        },
        "details": details(model, root),
    }


def details(model: OpenModel, root: Path) -> dict[str, Any]:
    """What the backbone says of itself, how well it is undone on held-out text, and what its sines have learnt."""
    backbone = model.network.backbone
    found = backbone.describe() if isinstance(backbone, Describes) else {}
    if isinstance(backbone, Invertible) and backbone.is_bijective:
        found = found | undone(model, backbone, root)
    if isinstance(backbone, Oscillates):
        found = found | {"oscillators": backbone.oscillators()}
    sines = sine_parameters(model.network)
    return found | ({"sines": sines} if sines else {})


def samplers(model: OpenModel) -> list[str]:
    """Those that can draw from the model."""
    parts = model.parts
    learnt = (parts.recipe.objective.name, parts.objective)
    found = []
    for name in registry.names("samplers", parts.folders):
        fields = compatibility.fitting_sampler(name, parts.objective) if name in registry.names("samplers") else {}
        part = registry.make("samplers", name, fields, parts.folders)
        found += [] if compatibility.sampler_fault(learnt, (name, part), parts.folders) else [name]
    return found


def parameters_by_part(network: LanguageNetwork) -> dict[str, int]:
    """Weights of the layers of one kind together: "backbone.blocks.attention"."""
    found: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        steps = [step for step in name.split(".")[:-1] if not step.isdigit()]
        found[".".join(steps[:3]) or name] += parameter.numel()
    return dict(found)


@torch.inference_mode()
def undone(model: OpenModel, backbone: Invertible, root: Path) -> dict[str, Any]:
    """log|det| on the first row of the last split of its corpus (on random tokens, where that cannot be read), and what
    forth and back leaves of an error."""
    try:
        packed = next(iter(stages.reopen(model.run, model.parts, root).packed.values()))
    except Refusal as refusal:
        shape, generator = (1, model.parts.recipe.packing.window), torch.Generator().manual_seed(0)
        tokens, of = torch.randint(model.network.n_vocab, shape, generator=generator), f"drawn at random ({refusal})"
    else:
        tokens = torch.from_numpy(packed.split(packed.splits[-1]).rows(np.array([0]))[:, :-1])
        of = f"of {packed.splits[-1]}"
    tokens = tokens.to(model.network.embedding.weight.device)
    if model.network.encoder is not None:
        (a, b), of = model.network.encode(tokens)[0].chunk(2, dim=-1), f"{of}, at the means of their latents"
    else:
        a = b = model.network.embedding(tokens)
    layout = Layout("causal" if "next_token" in model.parts.objective.views else "full")
    return {
        "measured_on": f"a row of {tokens.shape[1]} tokens {of}",
        "log_det": float(backbone.log_det(a, b, layout)),
        "reconstruction_error": backbone.reconstruction_error(a, b, layout),
    }


def sine_parameters(network: LanguageNetwork) -> list[dict[str, Any]]:
    """Of every sine activation, over its features: the tenth, the middle and the ninetieth per cent."""
    found = []
    for name, module in network.named_modules():
        if not isinstance(module, Sine):
            continue
        values = {one: F.softplus(getattr(module, one).detach()) for one in ("amplitude", "frequency", "damping")}
        if module.phase is not None:
            values["phase"] = module.phase.detach()
        shares = torch.tensor([0.1, 0.5, 0.9], device=values["amplitude"].device)
        told = {one: value.float().quantile(shares).tolist() for one, value in values.items()}
        found.append(_place(name) | told)
    return found


def _place(name: str) -> dict[str, Any]:
    """Of a sine by its module's name. layer: the first number in it; None where it has none."""
    numbered = re.search(r"\.(\d+)(?:\.|$)", name)
    if numbered is None:
        return {"layer": None, "where": name.removesuffix(".sine")}
    where = name[numbered.end() :] or name[: numbered.start()]
    return {"layer": int(numbered[1]), "where": where.removesuffix(".sine")}


def panels(found: Mapping[str, Any]) -> list[Panel]:
    """Pictures of `details`; none where there is nothing that a person would rather look at."""
    return _oscillators(found.get("oscillators", [])) + _sines(found.get("sines", []))


def _oscillators(rows: list[dict[str, Any]]) -> list[Panel]:
    """How long each one remembers, against how long a turn takes it; those that never turn are left out."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        points = [(row["period_tokens"], row["half_life_tokens"]) for row in own]
        points = [
            (x, y) for x, y in points if x is not None and y is not None and 0 < x < math.inf and 0 < y < math.inf
        ]
        if points:
            x, y = ([point[i] for point in points] for i in range(2))
            lines.append({"label": f"layer {layer}", "mark": "o", "x": x, "y": y})
    labels = {"x_label": "period, tokens", "y_label": "half-life, tokens"}
    return [{**labels, "is_log_x": True, "is_log_y": True, "lines": lines}] if lines else []


def _sines(rows: list[dict[str, Any]]) -> list[Panel]:
    """Middle and spread over the features, from the first layer to the last; a line for each place in a layer."""
    rows = [row for row in rows if row["layer"] is not None]
    made = []
    for one in ("amplitude", "frequency", "damping", "phase"):
        lines = []
        for where in dict.fromkeys(row["where"] for row in rows if one in row):
            own = [row for row in rows if row["where"] == where and one in row]
            low, middle, high = ([row[one][i] for row in own] for i in range(3))
            x = [row["layer"] for row in own]
            lines.append({"label": where, "mark": "o-", "x": x, "y": middle, "low": low, "high": high})
        if lines:
            made.append({"x_label": "layer", "y_label": f"{one}, middle and 80 %", "lines": lines})
    return made
