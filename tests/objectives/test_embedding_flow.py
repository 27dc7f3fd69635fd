"""The bound of a flow over latents is one, and the law it bounds is the law that is sampled."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import scores

from armillary.assemble import compatibility
from armillary.contracts import Given, Latent
from armillary.model.latent import LatentView
from armillary.model.network import LanguageNetwork
from armillary.registry import make

V, L, N = 3, 2, 4000
TEXTS = torch.cartesian_prod(*[torch.arange(V)] * L)


@pytest.fixture(scope="module")
def flow():
    """Few numbers a token, and an encoder near the prior: else importance sampling would need millions of draws."""
    torch.manual_seed(3)
    shape = {"d_model": 2, "n_layers": 2, "n_heads": 1, "d_ff": 4, "coupling": "affine"}
    network = LanguageNetwork(make("backbones", "bijective", shape), V, has_encoder=True).double().eval()
    for name, parameter in network.requires_grad_(False).named_parameters():
        if not name.startswith("encoder"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=1.0 if name == "embedding.weight" else 0.4)
    torch.nn.init.normal_(network.encoder.weight[:4], std=0.3)
    network.encoder.bias[4:] = 0.2
    return make("objectives", "embedding_flow", {}), network


@pytest.fixture(scope="module")
def weights(flow):
    """(X, N): p(x, z) / q(z|x) of many latents drawn for each text; their mean is p(x)."""
    objective, network = flow
    return (-scores(objective, network, TEXTS, objective.draw(N, L, torch.Generator().manual_seed(5)))).exp()


def test_importance_weights_sum_to_one_over_all_texts_and_the_bound_lies_below(weights):
    p, stderr = weights.mean(1), weights.std(1) / math.sqrt(N)
    assert abs(float(p.sum()) - 1) < 3 * float(stderr.square().sum().sqrt()) < 0.15
    bound = weights.log().mean(1)
    assert bool((bound < p.log()).all()) and float(bound.exp().sum()) < 1
    assert float((p / p.mean() - 1).abs().max()) > 0.2, "some texts are likelier than others"


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_sampler_draws_from_the_law_that_is_bounded(flow, weights, prompt):
    """prompt: how many tokens are given; the flow of the others is then another one, given them."""
    objective, network = flow
    view = LatentView(network)
    assert isinstance(view, Latent)
    is_given = (torch.arange(L) < prompt).expand(N, L)
    given = Given(torch.ones(N, L, dtype=torch.long), is_given)
    (state,) = make("samplers", "latent", {}).run(view, given, [torch.Generator().manual_seed(i) for i in range(N)])
    assert bool((state.tokens[:, :prompt] == 1).all())
    drawn = torch.bincount(state.tokens @ torch.tensor([V, 1]), minlength=V**L).double() / N
    p, spread = weights.mean(1), weights.var(1) / N
    if prompt:
        texts, scored = TEXTS[TEXTS[:, 0] == 1], torch.tensor([False, True])
        draws = objective.draw(N, L, torch.Generator().manual_seed(6))
        some = (-scores(objective, network, texts, draws, scored)).exp()
        p, spread = torch.zeros(V**L).double(), torch.zeros(V**L).double()
        p[V : 2 * V], spread[V : 2 * V] = some.mean(1), some.var(1) / N
    error = (drawn * (1 - drawn) / N + spread).sqrt().clamp(min=1e-9)
    assert float(((drawn - p) / error).abs().max()) < 4


def test_it_wants_a_backbone_that_is_a_density():
    goal = ("embedding_flow", make("objectives", "embedding_flow", {}))

    def fault(name, **fields):
        return compatibility.network_fault((name, make("backbones", name, fields)), goal)

    assert fault("bijective", coupling="affine") is None
    for shape in ({"coupling": "additive"}, {"coupling": "affine", "hybrid_layers": [0]}):
        assert "coupling: affine" in fault("bijective", **shape)
    assert "use backbone bijective" in fault("llama")
