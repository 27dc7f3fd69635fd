"""The sine activation is its closed form, value and gradients, and keeps one tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.nn import sine
from armillary.nn.sine import Sine, SineNetwork, SineParams
from armillary.refusal import Refusal
from armillary.registry import check, make

WIDTH = 5
VECTORS = ("amplitude", "frequency", "damping", "phase")


def made(dtype=torch.float64, width=WIDTH, **params) -> Sine:
    torch.manual_seed(0)
    module = Sine(width, SineParams(phase_init=0.3, **params)).to(dtype)
    for name in VECTORS:
        torch.nn.init.normal_(getattr(module, name), std=0.7)
    return module


def closed_form(module: Sine, z: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """y, and ∂y by z and by the four raw vectors, written out in float64."""
    z = z.double()
    raw = {name: getattr(module, name).detach().double() for name in VECTORS}
    a, d = F.softplus(raw["amplitude"]), F.softplus(raw["damping"])
    f = F.softplus(raw["frequency"]) + 1e-6
    e, s, c = torch.exp(-d * z.abs()), torch.sin(f * z + raw["phase"]), torch.cos(f * z + raw["phase"])
    slope = {name: torch.sigmoid(value) for name, value in raw.items()}
    gradients = {
        "z": a * e * (f * c - d * z.sign() * s),
        "amplitude": e * s * slope["amplitude"],
        "frequency": a * e * z * c * slope["frequency"],
        "damping": -z.abs() * a * e * s * slope["damping"],
        "phase": a * e * c,
    }
    return a * e * s, gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 10, 1 << 16])
def test_value_and_gradients_are_the_closed_form(dtype, at_once, monkeypatch):
    monkeypatch.setattr(sine, "AT_ONCE", at_once)
    module = made(torch.float64 if dtype == torch.float64 else torch.float32)
    draw = torch.Generator().manual_seed(1)
    z = (3 * torch.randn(2, 7, WIDTH, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    weights = torch.randn(2, 7, WIDTH, generator=draw, dtype=torch.float64).to(dtype)
    y = module(z)
    y.backward(weights)
    known, by = closed_form(module, z.detach())
    error = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    assert y.dtype == z.grad.dtype == dtype
    torch.testing.assert_close(y.double(), known, rtol=0, atol=error)
    torch.testing.assert_close(z.grad.double(), weights.double() * by.pop("z"), rtol=0, atol=4 * error)
    for name, gradient in by.items():  # summed in fp32 whatever z is, from the very z that is there
        found = getattr(module, name).grad.double()
        torch.testing.assert_close(found, (weights.double() * gradient).sum((0, 1)), rtol=0, atol=min(10 * error, 1e-4))


@pytest.mark.parametrize("phase", [None, 0.3])
def test_gradcheck(phase):
    torch.manual_seed(0)
    module = Sine(WIDTH, SineParams(phase_init=phase, freq_init_std=0.3)).double()
    vectors = [p for p in (getattr(module, name) for name in VECTORS) if p is not None]
    z = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, *_: module(z), (z, *vectors))


def test_it_starts_as_it_was_told():
    module = Sine(4000, SineParams(amp_init=2.0, freq_init=3.0, damp_init=0.01, freq_init_std=0.5)).double()
    assert module.phase is None
    for name, value in {"amplitude": 2.0, "damping": 0.01}.items():
        torch.testing.assert_close(
            F.softplus(getattr(module, name)), torch.full((4000,), value).double(), rtol=1e-5, atol=0
        )
    frequency = F.softplus(module.frequency)
    assert abs(frequency.mean() - 3) < 0.05 and abs(frequency.std() - 0.5) < 0.05
    assert F.softplus(Sine(4000, SineParams(freq_init_std=2.0)).frequency).min() >= 0.0099


@pytest.mark.parametrize("trainable", [True, False, ("amplitude",), ("frequency", "phase"), ("damping",)])
def test_a_frozen_subset_stays_frozen(trainable):
    params = SineParams(phase_init=0.2, trainable=trainable)
    module = SineNetwork(WIDTH, 6, params)
    before = {name: getattr(module.sine, name).detach().clone() for name in VECTORS}
    optimizer = make("training/optimizers", "adamw", {"learning_rate": 0.1, "weight_decay": 0.5}).build(
        module.named_parameters()
    )
    for _ in range(2):
        module(torch.randn(1, 3, WIDTH)).square().sum().backward()
        optimizer.step()
    moved = {name for name in VECTORS if not torch.equal(getattr(module.sine, name), before[name])}
    assert moved == (set(VECTORS) if trainable is True else set(trainable or ()))


def test_the_vectors_learn_at_their_own_rate_and_do_not_decay():
    for kind in ("adamw", "muon"):
        module = SineNetwork(WIDTH, 6, SineParams(learning_rate_factor=0.25))
        optimizer = make("training/optimizers", kind, {"learning_rate": 0.1, "weight_decay": 0.5}).build(
            module.named_parameters()
        )
        optimizer.set_scale(0.5)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {rates[id(p)] for p in module.sine.parameters()} == {0.1 * 0.25 * 0.5}
        assert {rates[id(p)] for p in (*module.up.parameters(), *module.down.parameters())} == {0.1 * 0.5}
        before = [p.detach().clone() for p in module.sine.parameters()]
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, module.sine.parameters(), strict=True))


def kept_bytes(fn, *inputs) -> int:
    """Of what autograd keeps for the backward pass, each storage once, parameters left out."""
    kept = {}

    def pack(x):
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = fn(*inputs)
    assert out.requires_grad
    return sum(kept.values())


def test_it_keeps_its_input_alone_where_the_formula_keeps_six_times_as_much():
    width, rows = 64, 512
    network = SineNetwork(width, 4 * width, SineParams())
    x = torch.randn(1, rows, width)

    def naive(z):
        s = network.sine
        return (
            F.softplus(s.amplitude)
            * torch.exp(-F.softplus(s.damping) * z.abs())
            * torch.sin(F.softplus(s.frequency) * z)
        )

    def whole(activation):
        with torch.autocast("cpu", torch.bfloat16):
            return kept_bytes(lambda x: network.down(activation(network.up(x))), x)

    hidden = rows * 4 * width * 2  # z in bf16
    slack = 8 * 4 * 4 * width + 4 * rows * width + 2 * 8 * width * width  # vectors, x, the matrices in bf16
    assert whole(network.sine) <= 2 * hidden + slack  # z, and what the second matrix reads
    assert whole(naive) > 8 * hidden
    z = torch.randn(rows, 4 * width, dtype=torch.bfloat16, requires_grad=True)
    assert kept_bytes(network.sine, z) <= z.nbytes + 8 * 4 * 4 * width < kept_bytes(naive, z) / 5


def test_what_has_no_meaning_is_refused():
    for fields, word in (
        ({"trainable": ["phase"]}, "set phase_init"),
        ({"trainable": False, "learning_rate_factor": 2.0}, "learning_rate_factor"),
        ({"trainable": ["decay"]}, "'amplitude', 'frequency', 'damping'"),
        ({"amp_init": 0.0}, "amp_init"),
        ({"freq_std": 0.1}, "freq_init_std"),
    ):
        with pytest.raises(Refusal, match=word):
            check(SineParams, fields, "sine_params")
