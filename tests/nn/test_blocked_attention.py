"""Attention over blocks of queries is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.contracts import Layout
from armillary.nn import blocked_attention
from armillary.nn.attention import Attention
from armillary.nn.sight import look

SHAPES = {"one block": 5, "a whole block": 128, "a block and a bit": 131, "many": 300}


def qkv(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 8, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


def with_gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("length", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sight", ["causal", "full", "mask", "mask by row"])
def test_values_and_gradients_are_those_of_torch(length: int, sight: str) -> None:
    q, k, v = qkv(length)
    mask = None
    if "mask" in sight:
        n_rows = 2 if sight == "mask by row" else 1
        mask = torch.rand(n_rows, 1, length, length, generator=torch.Generator().manual_seed(1)) < 0.5
        mask |= torch.eye(length, dtype=torch.bool)
    found = blocked_attention.attend(q, k, v, mask, is_causal=sight == "causal")
    known = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=sight == "causal")
    for one, other in zip(with_gradients(found, [q, k, v]), with_gradients(known, [q, k, v]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_dropout_has_the_gradient_of_what_it_computed() -> None:
    q, k, v = qkv(6)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return blocked_attention.attend(q, k, v, is_causal=True, dropout=0.4)

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_dropout_leaves_the_mean_alone() -> None:
    q, k, v = (x.detach() for x in qkv(8))
    torch.manual_seed(0)
    drawn = torch.stack([blocked_attention.attend(q, k, v, dropout=0.3) for _ in range(4000)])
    whole = blocked_attention.attend(q, k, v)
    error = (drawn.mean(0) - whole).abs() / (drawn.std(0) / 4000**0.5)
    assert drawn.std(0).min() > 0.01
    assert error.max() < 4.5


def test_training_and_inference_agree_with_grouped_heads() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, 2, bias=False, dropout=0.0).double()
    x = torch.randn(2, 150, 32, dtype=torch.float64)
    sight = look(Layout(), 150, x.device)
    with torch.no_grad():
        asked = attention(x, sight)
    torch.testing.assert_close(attention(x, sight), asked, rtol=1e-10, atol=1e-10)
