"""The chunked head against the plain formula, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.nn import head as head_module
from armillary.nn.head import VocabularyHead

N, V, D = 70, 13, 5


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK", 16)  # several chunks, the last one shorter
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(N, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(V, (N,), generator=g)
    weights = torch.rand(N, generator=g, dtype=torch.float64)
    return rows, weight, targets, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_weighted_nll(world, smoothing, is_weighted):
    rows, weight, targets, weights = world
    w = weights if is_weighted else torch.ones(N, dtype=torch.float64)
    plain = F.cross_entropy(rows @ weight.T, targets, reduction="none", label_smoothing=smoothing) * w
    expected = torch.autograd.grad(2.5 * plain.sum(), (rows, weight))
    total, nats = VocabularyHead(weight).weighted_nll(rows, targets, weights if is_weighted else None, smoothing)
    got = torch.autograd.grad(2.5 * total, (rows, weight))
    torch.testing.assert_close(total, plain.sum())
    torch.testing.assert_close(nats, F.cross_entropy(rows @ weight.T, targets, reduction="none"))
    assert not nats.requires_grad
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_nll_log_p_and_reduce(world):
    rows, weight, targets, weights = world
    head = VocabularyHead(weight)
    log_p = F.log_softmax(rows @ weight.T, -1)
    torch.testing.assert_close(head.log_p(rows), log_p)
    torch.testing.assert_close(head.nll(rows, targets), F.nll_loss(log_p, targets, reduction="none"))
    entropy = head.reduce(rows, lambda lp, w: -(lp.exp() * lp).sum(-1) * w, weights)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1) * weights)
    expected = torch.autograd.grad((-(log_p.exp() * log_p).sum(-1) * weights).sum(), (rows, weight))
    for a, b in zip(torch.autograd.grad(entropy.sum(), (rows, weight)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_no_rows():
    weight = torch.randn(V, D, requires_grad=True)
    head = VocabularyHead(weight)
    rows, targets = torch.zeros(0, D, requires_grad=True), torch.zeros(0, dtype=torch.long)
    assert head.nll(rows, targets).shape == (0,)
    total, _ = head.weighted_nll(rows, targets)
    total.backward()
    assert weight.grad is not None and not weight.grad.any()


def test_autocast_computes_in_bf16_and_keeps_fp32_results(world):
    rows, weight, targets, _ = (x.detach().float() if x.is_floating_point() else x for x in world)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, nats = VocabularyHead(weight).weighted_nll(rows, targets)
    total.backward()
    assert total.dtype == nats.dtype == weight.grad.dtype == torch.float32
    exact = F.cross_entropy(rows @ weight.T, targets, reduction="none")
    torch.testing.assert_close(nats, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(nats, exact)
