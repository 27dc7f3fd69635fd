"""A linear layer that knows the smallest case: one row, in a compiled step of decoding, on a CPU.

There the library's matrix product re-orders the weights at every call; a plain sum of products becomes one pass over
them, fused with what is around it, and adds up in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def working_type(x: Tensor) -> torch.dtype:
    """What a linear layer gives for x: autocast's type, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def is_single_row_step(x: Float[Tensor, "... D"]) -> bool:
    is_inference = torch.compiler.is_compiling() and not torch.is_grad_enabled()
    return is_inference and x.device.type == "cpu" and x.numel() == x.shape[-1]


def linear(x: Float[Tensor, "... D"], weight: Float[Tensor, "N D"], bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, (..., N)."""
    if not is_single_row_step(x):
        return F.linear(x, weight, bias)
    accumulator = torch.promote_types(x.dtype, torch.float32)
    out = (weight.to(accumulator) * x.reshape(1, -1).to(accumulator)).sum(-1)
    if bias is not None:
        out = out + bias
    return out.to(x.dtype).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    def forward(self, input: Float[Tensor, "... D"]) -> Float[Tensor, "... N"]:
        return linear(input, self.weight, self.bias)
