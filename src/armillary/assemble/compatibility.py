"""Which backbone, objective and sampler go together, and why others do not: what recipes are held to, and the table of
all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from armillary import registry
from armillary.recipe import Choice

USUAL_SAMPLERS = {
    "next_token": "left_to_right",
    "absorbing": "confident",
    "uniform": "ancestral",
    "blocks": "blockwise",
    "any_order": "speculative",
    "latent": "latent",
}
"""What a recipe that names no sampler gets, by the first view its objective offers."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "score_entropy": {
        "score_entropy, absorbing": {"process": "absorbing"},
        "score_entropy, uniform": {"process": "uniform"},
    },
    "mixture": {
        "mixture of autoregressive and masked_diffusion": {
            "terms": {
                "causal": {"weight": 1.0, "objective": {"name": "autoregressive"}},
                "masked": {"weight": 1.0, "objective": {"name": "masked_diffusion"}},
            }
        }
    },
}
"""Objectives whose fields decide what they offer: the examples that the table shows."""

Named = tuple[str, Any]
"""A part's name and the part."""


@dataclass(frozen=True)
class Cell:
    backbone: str
    objective: str
    sampler: str
    works: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def usual_sampler(objective: Any) -> str:
    return next((USUAL_SAMPLERS[view] for view in objective.views if view in USUAL_SAMPLERS), "left_to_right")


def shared_view(objective: Any, sampler: Any) -> str | None:
    """The view that the sampler is given: the first it takes and the objective offers."""
    return next((view for view in _views(sampler) if view in objective.views), None)


def offering(objective: Any, view: str) -> Any:
    """The objective itself, or the term of a mixture whose model offers that view."""
    return objective.offering(view) if hasattr(objective, "offering") else objective


def network_fault(backbone: Named, objective: Named) -> str | None:
    """Why this backbone cannot learn this objective, with the fix; None where it can."""
    (backbone_name, shape), (objective_name, goal) = backbone, objective
    tells = "noise_level" in goal.needs
    knows = getattr(shape, "knows_noise_level", None)
    if "encoder" in goal.needs and not getattr(shape, "is_flow", False):
        why = f"objective {objective_name} needs a density, and backbone {backbone_name} as it is gives none"
        return f"{why}; use backbone bijective with coupling: affine and no hybrid_layers"
    if tells and not knows:
        fix = "set model.backbone.knows_noise_level=true"
        fix = "use a backbone that has knows_noise_level" if knows is None else fix
        return f"objective {objective_name} needs the noise level, and backbone {backbone_name} does not know it; {fix}"
    if knows and not tells:
        return (
            f"backbone {backbone_name} waits for the noise level, and objective {objective_name} never tells it; "
            "set model.backbone.knows_noise_level=false"
        )
    return None


def sampler_fault(objective: Named, sampler: Named, folders: Sequence[Path] = ()) -> str | None:
    """Why this sampler cannot draw from a model of this objective, and which can; None where it can."""
    (objective_name, goal), (sampler_name, part) = objective, sampler
    view = shared_view(goal, part)
    if view is not None:
        return _block_fault(objective_name, offering(goal, view), sampler)
    able = [
        name
        for name in registry.names("samplers", folders)
        if shared_view(goal, registry.find("samplers", name, folders)) is not None
    ]
    return (
        f"sampler {sampler_name} needs {' or '.join(_views(part))}; {objective_name} offers "
        f"{' and '.join(goal.views) or 'no view'}: use {', '.join(able) or 'another objective'}"
    )


def _block_fault(objective_name: str, goal: Any, sampler: Named) -> str | None:
    """Blocks are the model's own, or the sampler has to say how long they are."""
    name, part = sampler
    if not hasattr(part, "block"):
        return None
    own, learnt = part.block, getattr(goal, "block", None)
    if own is None and learnt is None:
        return f"sampler {name}: {objective_name} has no blocks of its own; set sampling.sampler.block=16"
    if own not in (None, learnt) and learnt is not None:
        return f"sampler {name}: its block is {own}, and {objective_name} learns blocks of {learnt}; leave it out"
    return None


def objectives() -> dict[str, Choice]:
    """Every objective as the table shows it, by label."""
    found = {}
    for name in registry.names("objectives"):
        for label, fields in VARIANTS.get(name, {name: {}}).items():
            found[label] = Choice(name=name, **fields)
    return found


def fitting(backbone: str, objective: Any) -> dict[str, Any]:
    """The fields of a backbone that this objective asks for."""
    wanted: dict[str, Any] = {"knows_noise_level": "noise_level" in objective.needs}
    wanted |= {"coupling": "affine"} if "encoder" in objective.needs else {}
    return {k: v for k, v in wanted.items() if k in registry.find("backbones", backbone).model_fields}


def fitting_sampler(sampler: str, objective: Any) -> dict[str, Any]:
    """The fields of a sampler that this objective asks for."""
    part = registry.find("samplers", sampler)
    view = shared_view(objective, part)
    has_blocks = view is None or hasattr(offering(objective, view), "block")
    return {} if has_blocks or "block" not in part.model_fields else {"block": 16}


def cube() -> list[Cell]:
    """Every backbone with every objective and every sampler of the package."""
    cells = []
    for backbone in registry.names("backbones"):
        for label, choice in objectives().items():
            goal = (choice.name, registry.make("objectives", choice.name, choice.fields))
            shape = (backbone, registry.make("backbones", backbone, fitting(backbone, goal[1])))
            for name in registry.names("samplers"):
                fields = fitting_sampler(name, goal[1])
                sampler = (name, registry.make("samplers", name, fields))
                reason = network_fault(shape, goal) or sampler_fault(goal, sampler)
                said = ", ".join(f"sampling.sampler.{key}={value}" for key, value in fields.items())
                told = reason or (f"with {said} or another" if said else "")
                cells.append(Cell(backbone, label, name, reason is None, told))
    return cells


def markdown() -> str:
    """docs/compatibility.md: one table for all backbones whose cells are alike."""
    alike: dict[tuple[tuple[str, str, bool], ...], list[str]] = {}
    cells = cube()
    for backbone in dict.fromkeys(cell.backbone for cell in cells):
        found = tuple((c.objective, c.sampler, c.works) for c in cells if c.backbone == backbone)
        alike.setdefault(found, []).append(backbone)
    head = [
        "# What goes with what",
        "",
        "`armillary compatibility --markdown` wrote this page, and a test holds every cell to the code. A recipe that",
        "asks for what does not work is refused with the reason; `armillary compatibility --json` tells all of them.",
        "",
        "An objective offers views of the model it trains, a sampler needs a view, and where one is both they go",
        "together. `blockwise` needs its `block` where the model has no blocks of its own.",
    ]
    tables = [["", f"## {', '.join(f'`{name}`' for name in names)}", "", *table(key)] for key, names in alike.items()]
    return "\n".join([*head, *(line for lines in tables for line in lines)]) + "\n"


def table(cells: Iterable[tuple[str, str, bool]]) -> list[str]:
    """Rows are objectives, columns samplers. cells: (objective, sampler, works)."""
    works = {(objective, sampler): holds for objective, sampler, holds in cells}
    samplers = list(dict.fromkeys(sampler for _, sampler in works))
    choices = objectives()
    needs = [" or ".join(_views(registry.find("samplers", name))) for name in samplers]
    lines = [
        _line(["objective", "offers", *(f"`{name}`" for name in samplers)]),
        _line(["---", "---", *[":-:"] * len(samplers)]),
        _line(["", "*needs*", *(f"*{need}*" for need in needs)]),
    ]
    for label in dict.fromkeys(objective for objective, _ in works):
        goal = registry.make("objectives", choices[label].name, choices[label].fields)
        marks = ["✓" if works[label, sampler] else "–" for sampler in samplers]
        lines.append(_line([label, ", ".join(goal.views), *marks]))
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _views(sampler: Any) -> tuple[str, ...]:
    return getattr(sampler, "views", ())
