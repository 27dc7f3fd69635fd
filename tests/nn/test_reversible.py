"""The backward pass that inverts: the gradients of ordinary autograd, and memory that does not grow with depth."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from armillary.contracts import Layout
from armillary.registry import make

D, L = 8, 6


def backbone(n_layers=3, std=0.4, **fields):
    torch.manual_seed(0)
    shape = {"d_model": D, "n_layers": n_layers, "n_heads": 2, "d_ff": 8} | fields
    found = make("backbones", "bijective", shape).build().train()
    for parameter in found.parameters():  # far from the initialisation, where mistakes hide
        torch.nn.init.normal_(parameter, std=std)
    return found


def gradients(network, x, *, recomputes, arithmetic=None):
    """Of streams, log-determinant, condition and input; ends; where the generator is left before the backward pass."""
    network.blocks.recomputes = recomputes
    network.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    with torch.autocast("cpu", arithmetic, enabled=arithmetic is not None):
        a, b, log_det = network.streams(x, 2 * x, Layout("causal"), torch.linspace(0, 1, 2, dtype=x.dtype)[:, None])
    state = torch.get_rng_state()
    ((a * b).sum() + (a * a * log_det[..., None]).sum()).backward()
    assert torch.equal(state, torch.get_rng_state()), "the replay leaves the generator alone"
    return [end.detach() for end in (a, b, log_det)], [x.grad, *(p.grad for p in network.parameters())]


def assert_close(found, wanted, rtol):
    for one, other in zip(found, wanted, strict=True):
        if other is None:  # the last norm, which reads neither stream here
            assert one is None
        else:
            assert float((one - other).norm()) <= rtol * float(other.norm())


CASES = [{"coupling": "additive"}, {"coupling": "affine"}, {"coupling": "affine", "hybrid_layers": [0, 2]}]


@pytest.mark.parametrize("fields", CASES, ids=["additive", "affine", "hybrid"])
def test_gradients_are_those_of_ordinary_autograd_with_dropout_on(fields):
    network = backbone(dropout=0.3, knows_noise_level=True, **fields).double()
    x = torch.randn(2, L, D, dtype=torch.float64)
    ends, wanted = gradients(network, x, recomputes=False)
    same, found = gradients(network, x, recomputes=True)
    assert sum(g is None for g in wanted) == 1
    assert_close(same, ends, 1e-12)
    assert_close(found, wanted, 1e-6)
    assert wanted[0] is not None and float(wanted[0].norm()) > 1


def test_streams_stay_in_fp32_under_autocast_and_gradients_agree():
    network, x = backbone(), torch.randn(2, L, D)
    ends, wanted = gradients(network, x, recomputes=False, arithmetic=torch.bfloat16)
    same, found = gradients(network, x, recomputes=True, arithmetic=torch.bfloat16)
    assert all(end.dtype == torch.float32 for end in (*ends, *same))
    assert_close(same, ends, 1e-6)
    assert_close(found, wanted, 0.02)
    exact = gradients(network, x, recomputes=True)[0]
    assert not torch.equal(exact[0], same[0]), "autocast was on in the function"


def test_every_parameter_tells_its_hooks_and_frozen_ones_are_left_alone():
    network, told = backbone(), []
    frozen = network.blocks[1].feed.norm.weight.requires_grad_(False)
    for name, p in network.named_parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda _, name=name: told.append(name))
    gradients(network, torch.randn(2, L, D), recomputes=True)
    wanted = {n for n, p in network.named_parameters() if p.requires_grad and n != "norm.weight"}
    assert set(told) == wanted and len(told) == len(wanted) and frozen.grad is None


def saved_bytes(n_layers, *, recomputes):
    """Of activations, which is what is no parameter. What the backward pass computes again for a step is not kept."""
    network, seen = backbone(n_layers, std=0.1), {}
    network.blocks.recomputes = recomputes
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(torch.randn(2, L, D), Layout("full")).sum().backward()
    return sum(n for n, _ in seen.values())


def test_memory_is_flat_in_depth():
    first, *others = [saved_bytes(n, recomputes=True) for n in (4, 16, 64)]
    assert first > 0 and all(abs(n - first) < 0.1 * first for n in others)
    assert saved_bytes(16, recomputes=False) > 3 * saved_bytes(4, recomputes=False) > 3 * first


def alive_bytes():
    """Of all tensors that Python can reach, whoever holds them and hides them from hooks."""
    gc.collect()
    alive = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in alive}.values())


def held_bytes(n_layers):
    network, x = backbone(n_layers, std=0.1), torch.randn(2, L, D)
    network.blocks.recomputes = True
    before = alive_bytes()
    end = network(x, Layout("full"))
    held = alive_bytes() - before
    end.sum().backward()
    return held


def test_nothing_is_held_between_the_passes_that_grows_with_depth():
    held = [held_bytes(n_layers) for n_layers in (4, 16, 64)]
    assert 0 < max(held) < 1.1 * min(held), held


@pytest.mark.parametrize("ends", [True, False], ids=["with_its_backward_pass", "without"])
@pytest.mark.parametrize("fields", CASES, ids=["additive", "affine", "hybrid"])
def test_nothing_of_a_step_outlives_it(fields, ends):
    """Tensors in a cycle with the graph that made them are out of the garbage collector's sight: a run would grow."""
    network, seen = backbone(**fields), []
    network.blocks.recomputes = True
    for block in network.blocks:
        for conditioner in (block.attend, block.feed):
            conditioner.norm.register_forward_hook(lambda *told: seen.append(weakref.ref(told[-1])))
    loss = network(torch.randn(2, L, D), Layout("causal")).sum()
    if ends:
        loss.backward()
    del loss
    gc.collect()
    assert len(seen) == (12 if ends else 6)
    assert not [ref for ref in seen if ref() is not None]


def test_an_error_in_the_backward_pass_is_not_swallowed():
    network = backbone()
    network.blocks.recomputes = True
    out = network(torch.randn(2, L, D), Layout("full")).sum()
    network.blocks[1].feed.layer.up.forward = lambda x: (_ for _ in ()).throw(ArithmeticError("planted"))
    with pytest.raises(ArithmeticError, match="planted"):
        out.backward()


COMPILED = """
import torch
from armillary.contracts import Layout
from armillary.registry import make

torch.manual_seed(0)
network = make("backbones", "bijective", {"d_model": 8, "n_layers": 9, "n_heads": 2, "d_ff": 8}).build().train()
network.blocks.recomputes = True
x, graphs, grads = torch.randn(2, 6, 8), [], []

def kept(graph, inputs):
    graphs.append(graph)
    return graph.forward

from armillary.nn import reversible
reversible.compiler = lambda ask: torch.compile(ask, backend=kept, dynamic=False)
for compiled in (False, True):
    network.zero_grad()
    if compiled:
        network.compile(backend=kept, dynamic=False)
    network(x, Layout("causal")).square().sum().backward()
    grads.append([p.grad.clone() for p in network.parameters()])
for eager, compiled in zip(*grads, strict=True):
    torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-6)
assert 3 < len(graphs) < 9, f"{len(graphs)} graphs: attention and feed-forward once each, whatever the depth"
"""


@pytest.mark.slow
def test_compiled_conditioners_give_the_same_gradients_and_are_compiled_once():
    """In a process of its own: the shape checks of the other tests cannot be compiled."""
    found = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
