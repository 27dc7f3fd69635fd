"""The table of what goes with what is held to the code: every cell is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armillary import registry
from armillary.assemble import build, compatibility, parts, sampling
from armillary.contracts import BOS, EOS, PAD, UNK
from armillary.refusal import Refusal
from armillary.tokens.tokenizers.character import Character

TEXT = "the quick brown fox jumps over the lazy dog"
SMALL = {
    "bijective": {"d_model": 16, "n_layers": 1, "n_heads": 2},
    "gpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_length": 24},
    "llama": {"d_model": 16, "n_layers": 1, "n_heads": 2},
    "perigee": {"model_dim": 16, "num_layers": 1, "num_heads": 2, "oscillator_count": 2, "max_radius": 4},
    "respsann": {"d_model": 16, "n_layers": 1, "n_heads": 2},
    "waveresnet": {"d_model": 16, "n_layers": 1, "n_heads": 2},
}
SPECIAL = {PAD, BOS, EOS, UNK}
CELLS = compatibility.cube()
GOALS = compatibility.objectives()


@pytest.fixture(scope="module")
def tokenizer():
    return Character(markers=("<|user|>",)).train([TEXT])


def recipe(cell: compatibility.Cell, sampler: dict | None, **backbone) -> dict:
    goal = GOALS[cell.objective]
    part = registry.make("objectives", goal.name, goal.fields)
    fields = {**SMALL[cell.backbone], **compatibility.fitting(cell.backbone, part), **backbone}
    return {
        "name": "cell",
        "corpora": {"main": {"source": {"name": "files", "path": "none.txt"}}},
        "tokenizer": {"name": "character"},
        "packing": {"window": 16},
        "model": {"tied": False, "backbone": {"name": cell.backbone, **fields}},
        "objective": {"name": goal.name, **goal.fields},
        "training": {
            "steps": 9,
            "batch_rows": 2,
            "optimizer": {"name": "adamw"},
            "schedule": {"name": "cosine", "warmup": 1},
        },
        "sampling": {"max_new_tokens": 7} | ({"sampler": sampler} if sampler is not None else {}),
    }


def chosen(cell: compatibility.Cell) -> dict:
    goal = registry.make("objectives", GOALS[cell.objective].name, GOALS[cell.objective].fields)
    return {"name": cell.sampler, **compatibility.fitting_sampler(cell.sampler, goal)}


def tempt(network, tokenizer) -> None:
    """One of four special tokens is all but certain everywhere, unless it is forbidden."""
    with torch.no_grad():
        weight = network.output_head.weight
        for place, pair in enumerate([(PAD, BOS), (UNK, tokenizer.markers["<|user|>"])]):
            for token, sign in zip(pair, (50, -50), strict=True):
                weight[token] = sign * torch.eye(weight.shape[1])[place]


def drawn(raw: dict, tokenizer, prompts: list[str]):
    found = parts.resolve(raw)
    network = build.network(found, tokenizer.n_vocab).eval()
    tempt(network, tokenizer)
    manner = sampling.settings(found, tokenizer, prompts, {})
    return sampling.continuations(network, tokenizer, prompts, manner, seed=3)


def test_the_table_has_every_part_of_the_three_rooms():
    assert {cell.backbone for cell in CELLS} == set(registry.names("backbones")) == set(SMALL)
    assert {cell.sampler for cell in CELLS} == set(registry.names("samplers"))
    assert {GOALS[cell.objective].name for cell in CELLS} == set(registry.names("objectives"))
    assert len(CELLS) == len(SMALL) * len(GOALS) * len(registry.names("samplers"))


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.backbone}-{c.objective}-{c.sampler}".replace(" ", "_"))
def test_a_cell_works_or_is_refused_with_its_reason(cell, tokenizer):
    raw = recipe(cell, chosen(cell))
    if not cell.works:
        with pytest.raises(Refusal) as refused:
            parts.resolve(raw)
        assert str(refused.value) == f"recipe cell: {cell.reason}" and "\n" not in cell.reason
        return
    for found in drawn(raw, tokenizer, ["the ", "quick br", "the "]):
        assert 0 < found.n_tokens <= 7
        assert not SPECIAL & set(found.tokens) and max(found.tokens, default=4) < tokenizer.markers["<|user|>"]


@pytest.mark.parametrize("label", GOALS)
def test_an_objective_has_a_usual_sampler_that_works(label, tokenizer):
    cell = next(cell for cell in CELLS if cell.objective == label)
    raw = recipe(cell, None)
    name = parts.resolve(raw).recipe.sampling.sampler.name
    assert next(c.works for c in CELLS if (c.objective, c.sampler) == (label, name))
    assert len(drawn(raw, tokenizer, [""])) == 1


def test_the_noise_level_is_known_where_it_is_told_and_only_there():
    told = next(c for c in CELLS if c.objective == "uniform_diffusion" and c.works)
    with pytest.raises(Refusal, match=r"set model\.backbone\.knows_noise_level=true"):
        parts.resolve(recipe(told, None, knows_noise_level=False))
    silent = next(c for c in CELLS if c.objective == "masked_diffusion" and c.works)
    with pytest.raises(Refusal, match=r"set model\.backbone\.knows_noise_level=false"):
        parts.resolve(recipe(silent, None, knows_noise_level=True))


def test_misfits_are_refused_before_any_work():
    blocks = next(c for c in CELLS if c.objective == "block_diffusion" and c.sampler == "blockwise")
    with pytest.raises(Refusal, match="learns blocks of 16"):
        parts.resolve(recipe(blocks, {"name": "blockwise", "block": 4}))
    masked = next(c for c in CELLS if c.objective == "masked_diffusion" and c.sampler == "blockwise")
    with pytest.raises(Refusal, match=r"set sampling\.sampler\.block"):
        parts.resolve(recipe(masked, {"name": "blockwise"}))
    ordered = next(c for c in CELLS if (c.backbone, c.objective) == ("gpt", "any_order"))
    with pytest.raises(Refusal, match=r"set model\.backbone\.max_length=17"):
        parts.resolve(recipe(ordered, None, max_length=16))
    with pytest.raises(Refusal, match="use ancestral"):
        parts.resolve(recipe(masked, {"name": "left_to_right"}))
    compiled = recipe(masked, {"name": "ancestral"})
    compiled["sampling"]["compile"] = True
    with pytest.raises(Refusal, match=r"sampling\.compile"):
        parts.resolve(compiled)


def test_the_page_is_what_the_command_writes():
    page = Path(__file__).parents[2] / "docs" / "compatibility.md"
    assert page.read_text(encoding="utf-8") == compatibility.markdown()
