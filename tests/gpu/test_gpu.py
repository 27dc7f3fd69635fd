"""What a CUDA device must do as the CPU does it; skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch

from armillary.assemble import build, compatibility, sampling
from armillary.benches._checks import CHECKS, ONCE, Case, apart
from armillary.benches._decoding import cached, recomputed, widest_tie
from armillary.benches._shaped import Shaped
from armillary.contracts import Layout
from armillary.model.next_token import CachedNextToken
from armillary.registry import names
from armillary.tokens.tokenizers.character import Character

pytestmark = pytest.mark.gpu
L, N_NEW = 32, 8
BACKBONES = names("backbones")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def case(base, device) -> Case:
    shape = Shaped(base=(base,), d_model=32, n_layers=2, n_heads=2, n_vocab=96, device=device.type, precision="fp32")
    return Case(shape, base, L, n_rows=4)


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ONCE])
@pytest.mark.parametrize("base", BACKBONES)
def test_every_check_of_the_bench_holds_for_every_backbone(base, check, device):
    CHECKS[check](case(base, device))


@pytest.mark.parametrize(
    "layout", [Layout("causal"), Layout("full"), Layout("blocks", block=4)], ids=lambda x: x.direction
)
@pytest.mark.parametrize("base", BACKBONES)
def test_log_p_is_that_of_the_cpu(base, layout, device):
    one = case(base, device)
    network = one.shape.network(one.shape.parts(base, 2 * L)).cpu()
    for parameter in network.parameters():  # far from the initialisation, where mistakes hide
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.cat([one.tokens[:, 1:]] * (2 if layout.direction == "blocks" else 1), 1)
    right = network(tokens, layout)
    there = copy.deepcopy(network).to(device)(tokens.to(device), layout).cpu()
    torch.testing.assert_close(there, right, atol=2e-3, rtol=1e-3)
    with torch.autocast(device.type, torch.bfloat16):
        rough = copy.deepcopy(network).to(device)(tokens.to(device), layout).float().cpu()
    assert apart(rough.exp(), right.exp()) < 0.2


@pytest.mark.parametrize("base", BACKBONES)
def test_compiled_decoding_and_bf16_keep_the_cache_true(base, device):
    one = case(base, device)
    network = one.shape.network(one.shape.parts(base, L + N_NEW))
    prompts = one.tokens[:, :L]
    right = recomputed(network, prompts, N_NEW)
    view = CachedNextToken(network, len(prompts), L + N_NEW, compiled=True)
    assert widest_tie(network, prompts, right, cached(view, prompts, N_NEW)) < 1e-4
    rough = network.bfloat16()
    found = cached(CachedNextToken(rough, len(prompts), L + N_NEW), prompts, N_NEW)
    assert widest_tie(rough, prompts, recomputed(rough, prompts, N_NEW), found) < 0.1


@pytest.mark.parametrize("base", BACKBONES)
def test_a_compiled_loss_is_the_eager_one(base, device):
    one = case(base, device)
    learner = one.learner(device)
    right, wanted = one.gradients(learner)
    learner.network.backbone.compile(dynamic=False)
    loss, found = one.gradients(learner)
    assert loss == pytest.approx(right, abs=1e-4) and apart(found, wanted) < 1e-3


@pytest.mark.parametrize("label", sorted(compatibility.objectives()))
def test_the_usual_sampler_of_every_objective_draws(label, device):
    choice = compatibility.objectives()[label]
    tokenizer = Character().train(["the quick brown fox jumps over the lazy dog " * 4])
    one = case("llama", device)
    base = one.parts.recipe.model_dump(mode="json") | {"objective": choice.model_dump(), "sampling": {}}
    objective = build.parts_of.registry.make("objectives", choice.name, choice.fields)
    base["model"]["backbone"] |= compatibility.fitting("llama", objective)
    parts = build.parts_of.resolve(base)
    network = build.network(parts, tokenizer.n_vocab).eval().requires_grad_(False)
    fields = {"temperature": 0} if "next_token" in objective.views else {}
    manner = sampling.settings(parts, tokenizer, ["the "], fields, N_NEW)
    there = sampling.continuations(copy.deepcopy(network).to(device), tokenizer, ["the ", "fox"], manner, seed=1)
    here = sampling.continuations(network, tokenizer, ["the ", "fox"], manner, seed=1)
    assert all(c.tokens and min(c.tokens) > 3 for c in there if c.finish == "length")
    assert fields == {} or [c.tokens for c in there] == [c.tokens for c in here]
