"""The recipes that carry an older system's name have its shape and its budget, as its specification lists them."""

from __future__ import annotations

import functools

import pytest

from armillary import recipe
from armillary.assemble import parts

ADAMW = {"training.optimizer.name": "adamw"}
PERIGEE = {
    "model.backbone.num_layers": (4, 2),
    "model.backbone.model_dim": (128, 64),
    "model.backbone.oscillator_count": (16, 8),
    "model.backbone.num_heads": (8, 4),
    "model.backbone.mamba_repeat": (2, 1),
    "model.backbone.radius_factor": (4.0, 4.0),
    "model.backbone.min_radius": (1, 1),
    "model.backbone.max_radius": (64, 32),
    "model.backbone.radius_growth": (0, 0),
    "packing.window": (128, 64),
    "packing.stride": (64, 64),
    "packing.max_rows": (4096, 64),
    "tokenizer.name": ("word", "word"),
    "tokenizer.vocabulary": (50_000, 50_000),
    "training.batch_rows": (8, 4),
    "training.steps": (4096 // 8, 64 // 4),  # one epoch
    "training.optimizer.learning_rate": (2e-4, 5e-4),
    "training.log_every": (25, 25),
    "training.validate_every": (512, 16),  # once an epoch, the whole split
    "training.validation_rows": (None, None),
    "sampling.sampler.steps": (6, 6),
    "seed": (424242, 1337),
}
BUDGETS = {
    "perigee": ADAMW | {key: full for key, (full, _) in PERIGEE.items()},
    "perigee-smoke": ADAMW | {key: smoke for key, (_, smoke) in PERIGEE.items()},
    "bijective": ADAMW
    | {
        "model.backbone.d_model": 256,
        "model.backbone.n_layers": 4,
        "model.backbone.n_heads": 8,
        "packing.window": 128,
        "training.optimizer.learning_rate": 1e-4,
        "training.optimizer.weight_decay": 0.01,
        "training.clip": 1.0,
        "training.batch_rows": 4,
        "evaluation.batch_rows": 8,
        "objective.terms.denoising.weight": 1.0,
        "objective.terms.flow.weight": 0.1,
    },
    "psann-waveresnet-cpu": {"model.backbone.d_model": 256, "model.backbone.n_layers": 4},
    "psann-waveresnet-small": {"model.backbone.d_model": 512, "model.backbone.n_layers": 8},
}


@pytest.mark.parametrize("name", sorted(BUDGETS))
def test_a_recipe_keeps_the_original_values(name):
    whole = parts.resolve(recipe.raw(name)).recipe.model_dump(mode="json")
    assert {key: functools.reduce(dict.__getitem__, key.split("."), whole) for key in BUDGETS[name]} == BUDGETS[name]
