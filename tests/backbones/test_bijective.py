"""The map of the two streams: undone from its end alone, and with the log-determinant it reports."""

from __future__ import annotations

import pytest
import torch

from armillary.backbones import bijective
from armillary.contracts import Layout
from armillary.model.network import count_parameters, meta_network
from armillary.nn import reversible
from armillary.refusal import Refusal
from armillary.registry import find, make

D, L = 16, 8


def backbone(n_layers=2, **fields):
    """In evaluation mode, far from its initialisation: each block changes its streams by about as much as they are."""
    torch.manual_seed(0)
    shape = {"d_model": D, "n_layers": n_layers, "n_heads": 2} | fields
    found = make("backbones", "bijective", shape).build().eval().requires_grad_(False)
    for name, parameter in found.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return found


LAYOUTS = {
    "causal": Layout("causal"),
    "full": Layout("full", segments=torch.tensor([[0] * 3 + [1] * 4 + [-1]] * 2)),
    "blocks": Layout("blocks", block=2),
}
TOLERANCE = {  # relative; float32 of an affine coupling is reported, not promised (tried: 1.7e-4)
    ("additive", torch.float64): 1e-10,
    ("additive", torch.float32): 1e-4,
    ("affine", torch.float64): 1e-8,
    ("affine", torch.float32): 1e-2,
}


@pytest.mark.parametrize(("coupling", "dtype"), TOLERANCE, ids=str)
@pytest.mark.parametrize("depth", [1, 8, 32])
def test_the_end_alone_gives_the_beginning_back(coupling, dtype, depth):
    network = backbone(depth, coupling=coupling, knows_noise_level=True).to(dtype)
    x = torch.randn(2, 2, L, D, dtype=dtype)
    level = torch.tensor([[0.2], [0.9]], dtype=dtype)
    for layout in LAYOUTS.values() if depth == 8 else [LAYOUTS["causal"]]:
        a, b, _ = network.streams(*x, layout, level)
        assert min(float((a - x[0]).norm()), float((b - x[1]).norm())) > 0.1 * float(x[0].norm())
        fresh = make("backbones", "bijective", network.shape.model_dump()).build().to(dtype).eval()
        fresh.requires_grad_(False).load_state_dict(network.state_dict())
        network.streams(b, a, layout, level)  # whatever the first module may have kept is of other streams now
        back = torch.stack(fresh.inverse(a, b, layout, level))
        again = torch.stack(network.inverse(a, b, layout, level))
        error = float((back - x).abs().max() / x.abs().max())
        assert torch.equal(back, again) and error < TOLERANCE[coupling, dtype]
    assert network.reconstruction_error(*x, layout) < TOLERANCE[coupling, dtype]


def test_an_inverse_that_gives_back_what_it_kept_is_seen(monkeypatch):
    """As the prototype's did: planted."""
    kept, run = [], reversible.run

    def keeping(steps, a, b, *more, **how):
        kept.append((a, b))
        return run(steps, a, b, *more, **how)

    monkeypatch.setattr(bijective, "run", keeping)
    monkeypatch.setattr(bijective, "undo", lambda steps, a, b, c: kept[-1])
    with pytest.raises(AssertionError):
        test_the_end_alone_gives_the_beginning_back("additive", torch.float64, 1)


def test_what_is_dropped_at_random_cannot_be_undone():
    network = backbone(dropout=0.1).train()
    with pytest.raises(Refusal, match="evaluation mode"):
        network.inverse(*torch.randn(2, 1, L, D), Layout("full"))


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("direction", ["causal", "full"])
def test_the_log_determinant_is_that_of_the_jacobian_of_all_the_numbers(coupling, direction):
    network = backbone(3, d_model=4, coupling=coupling).double()
    ab, layout = torch.randn(2, 3, 4, dtype=torch.float64), Layout(direction)

    def ends(flat):
        a, b = flat.view(2, 1, 3, 4)
        return torch.stack(network.streams(a, b, layout)[:2]).flatten()

    jacobian = torch.autograd.functional.jacobian(ends, ab.flatten())
    sign, wanted = torch.linalg.slogdet(jacobian)
    found = network.log_det(ab[:1], ab[1:], layout)
    torch.testing.assert_close(found[0], wanted, atol=1e-9, rtol=0)
    assert sign == 1 and (abs(wanted) > 0.05) == (coupling == "affine")


def test_a_hybrid_says_what_it_is_and_is_not_undone():
    whole, hybrid = backbone(3), backbone(3, hybrid_layers=[0, 2])
    assert whole.is_bijective and not hybrid.is_bijective
    assert hybrid.describe() == {
        "is_bijective": False,
        "coupling": "additive",
        "bijective_blocks": [0, 2],
        "standard_blocks": [1],
    }
    x = torch.randn(2, L, D)
    for ask in (hybrid.inverse, hybrid.log_det):
        with pytest.raises(Refusal, match=r"only blocks \[0, 2\] of 3"):
            ask(x, x, Layout("causal"))
    a, b, _ = backbone(3, hybrid_layers=[0]).streams(x, x, Layout("causal"))
    assert torch.equal(a, b), "both streams go on from the output of a standard block"
    with pytest.raises(Refusal, match="must lie in 0 to 1"):
        make("backbones", "bijective", {"n_layers": 2, "hybrid_layers": [2]})


def test_an_additive_block_has_the_parameters_of_a_standard_one():
    sizes = {
        name: count_parameters(meta_network(find("backbones", backbone)(**fields), 100, tied=True))[0]
        for name, backbone, fields in [
            ("llama", "llama", {}),
            ("additive", "bijective", {}),
            ("hybrid", "bijective", {"hybrid_layers": (1,), "coupling": "additive"}),
            ("affine", "bijective", {"coupling": "affine"}),
        ]
    }
    assert sizes["llama"] == sizes["additive"] == sizes["hybrid"] < sizes["affine"]


def test_held_positions_are_read_as_they_are_and_the_map_is_one_of_the_others():
    network = backbone(3, d_model=4, coupling="affine").double()
    a, b = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    where, layout = torch.tensor([[False, True, True]]), Layout("full")
    *ends, stretched = network.streams(a, b, layout, where=where)
    assert all(torch.equal(end[:, 0], start[:, 0]) for end, start in zip(ends, (a, b), strict=True))
    for back, start in zip(network.inverse(*ends, layout, where=where), (a, b), strict=True):
        torch.testing.assert_close(back, start, atol=1e-12, rtol=0)

    def ends_of_others(flat):
        x, y = (torch.cat([s[:, :1], z], 1) for s, z in zip((a, b), flat.view(2, 1, 2, 4), strict=True))
        return torch.stack([end[:, 1:] for end in network.streams(x, y, layout, where=where)[:2]]).flatten()

    jacobian = torch.autograd.functional.jacobian(ends_of_others, torch.stack([a[:, 1:], b[:, 1:]]).flatten())
    torch.testing.assert_close(stretched.sum(), torch.linalg.slogdet(jacobian)[1], atol=1e-9, rtol=0)
    assert abs(stretched.sum()) > 0.05 and not stretched[0, 0]
