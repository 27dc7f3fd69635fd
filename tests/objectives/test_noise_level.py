"""Conditioning on the noise level: nothing at first, something once learnt, and cheap."""

from __future__ import annotations

import pytest
import torch
from tiny import TINY

from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork, count_parameters, meta_network
from armillary.registry import make, names

V = 7
TOKENS = torch.tensor([[3, 1, 4, 0, 5], [2, 6, 1, 1, 3]])
FULL = Layout("full")
every_backbone = pytest.mark.parametrize("backbone", names("backbones"))


def new(backbone, knows=True):
    torch.manual_seed(0)
    shape = TINY[backbone] | {"knows_noise_level": knows}
    return LanguageNetwork(make("backbones", backbone, shape), V).double().eval()


def learnt(backbone):
    """The tables off zero, all else as it was initialised."""
    network = new(backbone)
    tables = [p for name, p in network.named_parameters() if name.endswith("table")]
    assert tables and not any(table.any() for table in tables)
    for table in tables:
        torch.nn.init.normal_(table)
    for name, p in network.named_parameters():
        if "noise_level" in name:
            torch.nn.init.normal_(p, std=0.5)
    return network


@torch.no_grad()
def at(network, level, layout=FULL):
    level = torch.as_tensor(level, dtype=torch.float64)
    return network.hidden(TOKENS, layout, level.expand(2, 1) if level.dim() == 0 else level)


@every_backbone
def test_at_first_it_changes_nothing(backbone):
    network, plain = new(backbone), new(backbone, knows=False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    with torch.no_grad():
        expected = plain.hidden(TOKENS, Layout("full"))
    for level in (0.0, 0.3, 1.0):
        assert torch.equal(at(network, level), expected)


@every_backbone
def test_once_learnt_the_answer_depends_on_it(backbone):
    network = learnt(backbone)
    answers = [at(network, level) for level in (0.0, 1e-3, 0.5, 1.0)]
    for i, a in enumerate(answers):
        for b in answers[i + 1 :]:
            assert float((a - b).abs().max()) > 1e-3


@every_backbone
def test_every_row_and_every_token_may_have_its_own(backbone):
    network = learnt(backbone)
    rows = at(network, [[0.2], [0.8]])
    assert torch.equal(rows[:1], at(network, 0.2)[:1]) and torch.equal(rows[1:], at(network, 0.8)[1:])
    level = torch.full((2, 5), 0.2, dtype=torch.float64)
    torch.testing.assert_close(at(network, level), at(network, 0.2), atol=1e-12, rtol=0)
    level[:, 3] = 0.9
    gap = (at(network, level, Layout("causal")) - at(network, 0.2, Layout("causal"))).abs().amax((0, 2))
    assert float(gap[:3].max()) < 1e-12 and float(gap[3:].min()) > 1e-4


@every_backbone
@torch.no_grad()
def test_without_a_level_it_is_as_if_it_were_not_conditioned(backbone):
    """An autoregressive term of a mixture shares a network that is told the level."""
    network, plain = learnt(backbone), new(backbone, knows=False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    assert torch.equal(network.hidden(TOKENS, Layout("causal")), plain.hidden(TOKENS, Layout("causal")))


@every_backbone
def test_float64_levels_keep_their_precision(backbone):
    """A step of 1e-9 at 1,000 radians: float32 would answer the same."""
    network = learnt(backbone)
    assert not torch.equal(at(network, 0.5), at(network, 0.5 + 1e-9))


@every_backbone
def test_it_costs_less_than_a_hundredth_of_the_parameters(backbone):
    shape = {"d_model": 256, "n_layers": 6, "n_heads": 4}
    if backbone == "perigee":
        shape = {"model_dim": 256, "num_layers": 6, "num_heads": 4}
    plain, knowing = (
        meta_network(make("backbones", backbone, shape | {"knows_noise_level": knows}), 8192, tied=True)
        for knows in (False, True)
    )
    assert 1.0 < count_parameters(knowing)[0] / count_parameters(plain)[0] < 1.01
