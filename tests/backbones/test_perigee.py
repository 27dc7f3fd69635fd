"""Perigee: what moves what, where it starts, that it can learn by heart, and what it says of itself."""

from __future__ import annotations

import math

import pytest
import torch

from armillary import recipe
from armillary.assemble import parts
from armillary.contracts import Batch, Layout
from armillary.model.network import LanguageNetwork
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.refusal import Refusal
from armillary.registry import make

V, L = 30, 40
SHAPE = {"model_dim": 16, "num_layers": 2, "num_heads": 2, "oscillator_count": 4, "mamba_repeat": 2, "max_radius": 3}


def network_for(std=None, n_extra=0, **fields) -> LanguageNetwork:
    torch.manual_seed(0)
    network = LanguageNetwork(make("backbones", "perigee", SHAPE | fields), V, n_extra=n_extra)
    if std is not None:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return network


def moved_by(network, place, direction):
    """How far each position's log_p moves when the token of one place changes."""
    tokens = torch.randint(V, (1, L), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, place] = (changed[0, place] + 1) % V
    with torch.no_grad():
        a, b = (network(x, Layout(direction)) for x in (tokens, changed))
    return (a - b).abs().amax((0, 2))


@pytest.mark.parametrize("fields", [{}, {"gate": "token", "angles": "uniform"}, {"filter": "doubling"}])
def test_a_token_moves_both_sides_and_only_the_window_where_the_bank_is_silent(fields):
    network = network_for(0.4, radius_growth=0.5, window=1, radius_factor=1.5, **fields).double()
    radii = network.backbone.describe()["attention_radius_of_each_layer"]
    assert radii == [2, 3]
    assert moved_by(network, 20, "full").min() > 1e-9
    assert moved_by(network, 20, "causal")[:20].max() == 0 < moved_by(network, 20, "causal")[20:].min()
    for name, parameter in network.named_parameters():
        if name.endswith("bank.write.weight"):
            torch.nn.init.zeros_(parameter)
    moved = moved_by(network, 20, "full")
    reach = sum(radii)
    assert moved[20 - reach : 21 + reach].min() > 0
    assert moved[: 20 - reach].max() == moved[21 + reach :].max() == 0


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_the_rows_of_a_batch_do_not_meet(direction):
    network = network_for(0.4).double()
    tokens = torch.randint(V, (8, L), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = network(tokens, Layout(direction))
        torch.testing.assert_close(network(tokens[order], Layout(direction)), found[order], atol=1e-12, rtol=0)
        alone = torch.cat([network(row[None], Layout(direction)) for row in tokens])
    torch.testing.assert_close(alone, found, atol=1e-12, rtol=0)


def test_every_way_to_filter_gives_the_same_network():
    tokens = torch.randint(V, (2, L), generator=torch.Generator().manual_seed(1))
    found = []
    for method in ("chunked", "doubling", "fft"):
        network = network_for(0.4, filter=method).double()
        network.zero_grad()
        log_p = network(tokens, Layout("full"))
        log_p[..., 3].sum().backward()
        found.append([log_p.detach(), *(p.grad for p in network.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def loss_of(network, batch, seed=0):
    objective = MaskedDiffusion()
    draws = objective.draw(*batch.scored[:, 1:].shape, torch.Generator().manual_seed(seed))
    found = objective.loss(network, batch, draws)
    return found.total / found.n_tokens


def batch_of(n_rows):
    tokens = torch.randint(4, V, (n_rows, 17), generator=torch.Generator().manual_seed(3))
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize("fields", [{}, {"num_layers": 6, "model_dim": 64}, {"gate": "token", "window": 9}])
def test_it_starts_near_the_uniform_law(fields):
    network = network_for(n_extra=1, **fields)
    assert float(loss_of(network, batch_of(16)).detach()) == pytest.approx(math.log(V), abs=0.1)
    backbone = network.backbone
    for matrix in (backbone.blocks[0].mixers[0].out, backbone.blocks[0].attention.o, backbone.blocks[0].mlp.down):
        depth = backbone.shape.num_layers
        assert float(matrix.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.2)


def test_one_batch_can_be_learnt_by_heart():
    network, batch = network_for(n_extra=1, num_layers=1, model_dim=32), batch_of(2)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(90):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 90)
        optimizer.zero_grad()
        loss = loss_of(network, batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_it_says_what_its_oscillators_are():
    """Their a and g, discretised again, have the poles that the network uses."""
    backbone = network_for(num_layers=3, slows_with_depth=True).backbone
    found = backbone.oscillators()
    assert len(found) == 3 * 2 * 4 == backbone.describe()["n_oscillators"]
    assert [max(o["theta"] for o in found if o["layer"] == k) for k in range(3)] == sorted(
        (max(o["theta"] for o in found if o["layer"] == k) for k in range(3)), reverse=True
    )
    for o in found:
        s = 1 + o["g"]
        assert 1 / math.sqrt(s) == pytest.approx(o["alpha"])
        assert o["alpha"] ** o["half_life_tokens"] == pytest.approx(0.5)
        assert (1 + s - o["a"]) / (2 * math.sqrt(s)) == pytest.approx(math.cos(o["theta"]))
        assert (o["g"] - o["a"]) ** 2 < 4 * o["a"]
        assert o["period_tokens"] * o["theta"] == pytest.approx(2 * math.pi)


def test_the_radius_is_that_of_the_recipes_window():
    assert parts.resolve(recipe.raw("perigee")).backbone.radius(0) == 46
    assert parts.resolve(recipe.raw("perigee-smoke")).backbone.radius(0) == 32
    short = parts.resolve(recipe.raw("perigee", ["packing.window=64"]))
    assert short.backbone.radius(3) == 32 and short.recipe.model.backbone.fields["window"] == 64
    with pytest.raises(Refusal, match=r"packing\.window is 128, and model\.backbone\.window 64"):
        parts.resolve(recipe.raw("perigee", ["model.backbone.window=64"]))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(Refusal, match="model_dim 16 must be an even multiple of num_heads 3"):
        make("backbones", "perigee", SHAPE | {"num_heads": 3})


def test_half_precision_leaves_the_poles_alone():
    network = make("backbones", "perigee", {"model_dim": 16, "num_layers": 1, "num_heads": 2}).build()
    before = network.oscillators()
    network.bfloat16()
    assert network.oscillators() == before and network.blocks[0].mlp.up.weight.dtype == torch.bfloat16


def silu(x):
    return x * torch.sigmoid(x)


def normed(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def under(prefix, w):
    return {name.removeprefix(prefix): p for name, p in w.items() if name.startswith(prefix)}


class Formula:
    """The specification's equations, by loops over positions and with complex numbers; of one row."""

    def __init__(self, network, direction):
        self.w = dict(network.backbone.named_parameters())
        self.shape, self.direction = network.backbone.shape, direction

    def of(self, x):
        for layer in range(self.shape.num_layers):
            w = under(f"blocks.{layer}.", self.w)
            start = normed(x, w["mixing_norm.weight"])
            h = start
            for k in range(self.shape.mamba_repeat):
                h = h + self.mixer(under(f"mixers.{k}.", w), h)
            gate = w["gate"] if "gate" in w else start @ w["gate.weight"].T + w["gate.bias"]
            gate = torch.sigmoid(gate)
            x = x + gate * (h - start) + (1 - gate) * self.attention(w, start, self.shape.radius(layer))
            y = normed(x, w["mlp_norm.weight"])
            x = x + (silu(y @ w["mlp.gate.weight"].T) * (y @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T
        return normed(x, self.w["norm.weight"])

    def mixer(self, w, h):
        return (
            normed(self.bank(w, h @ w["into.weight"].T) + h @ w["skip.weight"].T, w["norm.weight"]) @ w["out.weight"].T
        )

    def bank(self, w, u):
        alpha = torch.exp(-torch.log1p(w["bank.damping"].exp()))
        pole = torch.polar(alpha, w["bank.log_angle"].exp())
        read = torch.sigmoid(u @ w["bank.read_gate.weight"].T + w["bank.read_gate.bias"]) * (
            u @ w["bank.read.weight"].T
        )
        pushed = (1 - alpha**2).sqrt() * torch.view_as_complex(read.reshape(len(u), -1, 2))
        states = self.run(pushed, pole)
        if self.direction == "full":
            states = states + self.run(pushed.flip(0), pole).flip(0) - pushed  # the diagonal once
        seen = torch.view_as_real(states).flatten(1) @ w["bank.write.weight"].T
        gate = torch.sigmoid(u @ w["bank.write_gate.weight"].T + w["bank.write_gate.bias"])
        return gate * seen + w["bank.through"] * u + w["bank.bias"]

    @staticmethod
    def run(pushed, pole):
        state, states = torch.zeros_like(pushed[0]), []
        for one in pushed:
            state = pole * state + one
            states.append(state)
        return torch.stack(states)

    def attention(self, w, h, radius):
        heads, size = self.shape.num_heads, h.shape[1] // self.shape.num_heads
        turn = torch.tensor([self.shape.rope_theta ** (-2 * i / size) for i in range(size // 2)], dtype=h.dtype)

        def turned(x, place):
            first, second = x.chunk(2, -1)
            cos, sin = (place * turn).cos(), (place * turn).sin()
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        q, k, v = ((h @ w[f"attention.{name}.weight"].T).unflatten(-1, (heads, size)) for name in "qkv")
        out = torch.zeros_like(v)
        for t in range(len(h)):
            last = t if self.direction == "causal" else min(len(h) - 1, t + radius)
            near = range(max(0, t - radius), last + 1)
            score = torch.stack([(turned(q[t], t) * turned(k[s], s)).sum(-1) for s in near]) / math.sqrt(size)
            out[t] = (score.softmax(0)[..., None] * torch.stack([v[s] for s in near])).sum(0)
        return out.flatten(1) @ w["attention.o.weight"].T


@pytest.mark.parametrize("direction", ["causal", "full"])
@pytest.mark.parametrize("gate", ["channel", "token"])
def test_it_is_the_equations_of_its_specification(gate, direction):
    network = network_for(0.4, gate=gate, mamba_repeat=2).double()
    x = torch.randn(1, 12, SHAPE["model_dim"], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network.backbone(x, Layout(direction))[0]
        torch.testing.assert_close(found, Formula(network, direction).of(x[0]), atol=1e-5, rtol=1e-5)
