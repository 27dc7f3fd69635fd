"""Parts of a recipe beyond what the verbs show: parts inside parts from a folder, and what a device cannot do."""

from __future__ import annotations

import pytest
import torch

from armillary import journey
from armillary.assemble import build, parts
from armillary.recipe import override, raw
from armillary.refusal import Refusal

OBJECTIVE = '''"""The autoregressive loss, twice."""

from armillary.objectives.autoregressive import Autoregressive


class Doubled(Autoregressive):
    factor: float = 2.0
'''
SAMPLER = '''"""Ancestral under another name."""

from armillary.samplers.ancestral import Ancestral


class Patient(Ancestral):
    patience: int = 1
'''


def resolved(*overrides: str) -> parts.Parts:
    return parts.resolve(override(raw("mdlm-smoke"), list(overrides)))


def test_a_part_inside_a_part_may_lie_in_the_recipes_folder(tmp_path):
    for room, text in (("objectives/doubled", OBJECTIVE), ("samplers/patient", SAMPLER)):
        path = tmp_path / f"{room}.py"
        path.parent.mkdir()
        path.write_text(text)
    found = resolved(
        f"parts=[{tmp_path}]",
        "objective={name: mixture, terms: {masks: {weight: 1, objective: {name: masked_diffusion}},"
        " mine: {weight: 0.5, objective: {name: doubled, factor: 3}}}}",
        "sampling.sampler={name: blockwise, block: 4, sampler: {name: patient, patience: 2}}",
    )
    assert found.objective.objectives["mine"].factor == 3 and found.sampler.inside.patience == 2
    with pytest.raises(Refusal, match="no part is called 'doubled'"):
        resolved("objective={name: mixture, terms: {mine: {weight: 1, objective: {name: doubled}}}}")


def test_what_computes_in_float64_is_refused_on_mps_before_it_starts():
    uniform = resolved("objective.name=uniform_diffusion", "model.backbone.knows_noise_level=true")
    with pytest.raises(Refusal, match=r"set training\.device=cpu"):
        build.learner(uniform, 300, torch.device("mps"))


def test_pairs_are_refused_where_nothing_is_masked():
    uniform = ["objective.name=score_entropy", "objective.process=uniform", "model.backbone.knows_noise_level=true"]
    assert not resolved(*uniform).objective.pairs
    with pytest.raises(Refusal, match="no complement"):
        resolved(*uniform, "objective.pairs=true")


@pytest.mark.parametrize("steps", [1, 3, 25, 99, 295])
def test_the_demo_fits_a_machine_of_any_speed(steps):
    """25 steps had no room for a warm-up of 20 and a decay of 15, and the demo was refused."""
    found = parts.resolve(raw("demo"))
    changes = journey._changes(steps, found)
    planned = parts.resolve(override(raw("demo"), changes))
    assert planned.recipe.training.steps == 5 * max(1, steps // 5)
    assert planned.schedule.warmup == min(20, max(1, steps // 5))
