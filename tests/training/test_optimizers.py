"""Optimizers: equal to torch's, decay where it belongs, and state that survives a stop to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from armillary import registry
from armillary.refusal import Refusal
from armillary.training import precision
from armillary.training.optimizers.muon import is_hidden_matrix

KINDS = ["adamw", "muon"]


class Small(nn.Module):
    """With every kind of parameter that a language model has."""

    def __init__(self, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.position_embedding = nn.Embedding(5, 8)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.output_head = nn.Linear(8, 11, bias=False)
        self.unused = nn.Linear(2, 2)
        self.down.weight.requires_grad_(not frozen)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position_embedding.weight
        return self.output_head(self.norm(x + self.down(torch.relu(self.up(x)))))


def made(kind, network, **fields):
    return registry.make("training/optimizers", kind, fields).build(network.named_parameters())


def train(network, optimizer, steps, first=0):
    for step in range(first, first + steps):
        tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.set_scale(1 / (1 + step))
        optimizer.step()


def test_adamw_is_torchs_step_by_step():
    ours, theirs = Small(), Small()
    optimizer = made("adamw", ours, learning_rate=3e-3, weight_decay=0.2)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2, foreach=False)
    for step in range(6):
        train(ours, optimizer, 1, step)
        tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(step))
        reference.zero_grad()
        nn.functional.cross_entropy(theirs(tokens).flatten(0, 1), tokens.flatten()).backward()
        for group in reference.param_groups:
            group["lr"] = 3e-3 / (1 + step)
        reference.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_decay_on_matrices_only(kind):
    network = Small()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = made(kind, network, learning_rate=0.5, weight_decay=0.1)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        expected = before[name] * (0.95 if p.dim() >= 2 else 1.0)
        torch.testing.assert_close(p.detach(), expected, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_changes_nothing(kind):
    unbroken, stopped = Small(), Small()
    train(unbroken, made(kind, unbroken), 7)
    first = made(kind, stopped)
    train(stopped, first, 4)
    kept = {name: tensor.clone() for name, tensor in first.state_tensors().items()}
    again = made(kind, stopped)
    again.load_state_tensors(kept)
    for name, tensor in again.state_tensors().items():
        assert torch.equal(tensor, kept[name]) and tensor.dtype == kept[name].dtype
        assert tensor.data_ptr() != kept[name].data_ptr()
    train(stopped, again, 3, first=4)
    for a, b in zip(unbroken.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(kept["embedding.weight.exp_avg"], again.state_tensors()["embedding.weight.exp_avg"])


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_complete_before_the_first_step(kind):
    """And for parameters that never had a gradient: loading zeros is starting fresh."""
    network, other = Small(), Small()
    optimizer, fresh = made(kind, network), made(kind, other)
    state = optimizer.state_tensors()
    assert all(not tensor.any() for tensor in state.values())
    optimizer.load_state_tensors(state)
    train(network, optimizer, 3)
    train(other, fresh, 3)
    assert set(optimizer.state_tensors()) == set(fresh.state_tensors()) == set(state)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_names_of_state():
    frozen = Small(frozen=True)
    adamw, muon = made("adamw", frozen).state_tensors(), made("muon", frozen).state_tensors()
    for name, _ in frozen.named_parameters():
        kept = {key.removeprefix(f"{name}.") for key in adamw if key.startswith(f"{name}.")}
        assert kept == ({"step", "exp_avg", "exp_avg_sq"} if name != "down.weight" else set())
        kept = {key.removeprefix(f"{name}.") for key in muon if key.startswith(f"{name}.")}
        if name in ("up.weight", "unused.weight"):
            assert kept == {"momentum_buffer"}
        else:
            assert kept == ({"step", "exp_avg", "exp_avg_sq"} if name != "down.weight" else set())
    assert adamw["up.weight.step"].shape == () and adamw["up.weight.exp_avg"].shape == (24, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_another_network_is_refused(kind):
    network = Small()
    optimizer = made(kind, network)
    train(network, optimizer, 2)
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    key = "norm.weight.exp_avg"
    with pytest.raises(Refusal, match=rf"^optimizer state: '{key}' is missing; .*$"):
        optimizer.load_state_tensors({name: tensor + 1 for name, tensor in state.items() if name != key})
    with pytest.raises(Refusal, match=rf"^optimizer state: '{key}' has shape \(3,\), this network needs \(8,\); .*$"):
        optimizer.load_state_tensors({name: tensor + 1 for name, tensor in state.items()} | {key: torch.zeros(3)})
    with pytest.raises(Refusal, match=rf"'norm.weight.exp_awg' belongs to no parameter; did you mean '{key}'"):
        optimizer.load_state_tensors(
            {name: tensor + 1 for name, tensor in state.items()} | {"norm.weight.exp_awg": torch.zeros(8)}
        )
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, state[name])  # a refusal has changed nothing


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_gradients(kind):
    network = Small()
    fields = {"adamw_learning_rate": 0.01} if kind == "muon" else {}
    optimizer = made(kind, network, learning_rate=0.02, **fields)
    for factor in (0.5, 0.25):  # of the peak, not of the last one
        optimizer.set_scale(factor)
        assert optimizer.learning_rate == 0.02 * factor
    assert {group["lr"] for group in optimizer.param_groups} == ({0.005, 0.0025} if fields else {0.005})
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in network.parameters()
    )
    network(torch.zeros(3, 5, dtype=torch.long)).sum().backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())


def test_muon_takes_the_hidden_matrices_and_makes_them_orthogonal():
    network = Small()
    hidden = {name for name, p in network.named_parameters() if is_hidden_matrix(name, p)}
    assert hidden == {"up.weight", "down.weight", "unused.weight"}
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.logspace(-1.5, 1, 8))
    before = network.up.weight.detach().clone()
    network.up.weight.grad = gradient
    made("muon", network, learning_rate=0.1, weight_decay=0.0).step()
    update = (before - network.up.weight.detach()) / (0.1 * 0.2 * 24**0.5)
    assert torch.linalg.cond(gradient) > 100
    spectrum = torch.linalg.svdvals(update)
    assert spectrum.min() > 0.5 and spectrum.max() < 1.3  # five rounds of Newton–Schulz come that near to 1
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.linalg.matrix_norm(u @ v - update, 2) < 0.5  # towards the polar factor, not any orthogonal matrix


@pytest.mark.parametrize("fields", [{}, {"nesterov": False, "adjust": "original", "momentum": 0.5, "ns_steps": 3}])
def test_where_there_is_no_bf16_muon_is_torchs_in_fp32(fields, monkeypatch):
    """Torch casts to bf16 in one place; with that cast undone the two are one function."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    ours, theirs = Small(), Small()
    optimizer = made("muon", ours, learning_rate=3e-2, weight_decay=0.2, **fields)
    assert [type(one).__name__ for one in optimizer._optimizers] == ["Fp32Muon", "AdamW"]
    train(ours, optimizer, 6)
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    reference = made("muon", theirs, learning_rate=3e-2, weight_decay=0.2, **fields)
    assert [type(one).__name__ for one in reference._optimizers] == ["Muon", "AdamW"]
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    train(theirs, reference, 6)
    moved = (ours.up.weight - Small().up.weight).abs().max()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-5 * float(moved.detach()), rtol=1e-5)
    for name, value in optimizer.state_tensors().items():
        torch.testing.assert_close(value, reference.state_tensors()[name], atol=1e-6, rtol=1e-5)


def test_muon_original_scale():
    network, other = Small(), Small()
    for kind, n in (("original", network), ("match_rms_adamw", other)):
        n.up.weight.grad = torch.ones(24, 8)
        made("muon", n, adjust=kind, weight_decay=0.0).step()
    start = Small().up.weight
    torch.testing.assert_close((network.up.weight - start) / 3**0.5, (other.up.weight - start) / (0.2 * 24**0.5))


def test_refusals_of_fields_and_networks():
    with pytest.raises(Refusal, match=r"muon finds no hidden matrix"):
        made("muon", nn.LayerNorm(4))
    for kind, fields in (("adamw", {"betas": [0.9, 1.0]}), ("muon", {"betas": [-0.1, 0.9]})):
        with pytest.raises(Refusal, match=f"^training/optimizers/{kind}: 'betas"):
            made(kind, Small(), **fields)
    with pytest.raises(Refusal, match="'learning_rate'"):
        made("adamw", Small(), learning_rate=0)


def test_every_field_reaches_torch():
    fields = {"learning_rate": 0.1, "weight_decay": 0.2, "momentum": 0.3, "nesterov": False, "ns_steps": 4}
    muon, adamw, *_ = made("muon", Small(), betas=(0.5, 0.6), eps=1e-5, **fields).param_groups
    assert {"learning_rate": muon["lr"]} | {name: muon[name] for name in list(fields)[1:]} == fields
    for group in (adamw, made("adamw", Small(), betas=(0.5, 0.6), eps=1e-5).param_groups[0]):
        assert group["betas"] == (0.5, 0.6) and group["eps"] == 1e-5
