"""Multi-head attention over a sight: full or causal, with or without a cache, grouped heads or not.

Source: Vaswani et al. 2017, arXiv 1706.03762; grouped queries: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from armillary.nn import blocked_attention
from armillary.nn.cache import AttentionState
from armillary.nn.linear import Linear, is_single_row_step
from armillary.nn.rotary import Rotation, rotate
from armillary.nn.sight import Sight


class Attention(nn.Module):
    """q, k, v, o are separate matrices, so that an adapter can name each one."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int | None = None, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        self.head_dim = width // n_heads
        self.dropout = dropout
        self.q = Linear(width, width, bias=bias)
        self.k = Linear(width, self.n_kv_heads * self.head_dim, bias=bias)
        self.v = Linear(width, self.n_kv_heads * self.head_dim, bias=bias)
        self.o = Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        rotation: Rotation | None = None,
        state: AttentionState | None = None,
    ) -> Float[Tensor, "B L O"]:
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if state is not None:
            assert sight.slots is not None
            k, v = state.exchange(k, v, sight.rows, sight.slots, sight.n_seen)
            k, v = k.to(q.dtype), v.to(q.dtype)
        return self.o(self._attend(q, k, v, sight).transpose(1, 2).flatten(2))

    def allocate(self, n_rows: int, capacity: int, of: type[AttentionState] = AttentionState, **kind: Any) -> Any:
        """An empty state of that type. kind: device and dtype."""
        return of.allocate((n_rows, self.n_kv_heads, capacity, self.head_dim), **kind)

    def _attend(
        self, q: Float[Tensor, "B H L E"], k: Float[Tensor, "B K S E"], v: Float[Tensor, "B K S E"], sight: Sight
    ) -> Float[Tensor, "B H L E"]:
        if is_single_row_step(q.transpose(1, 2).flatten(2)):
            return _attend_from_one(q, k, v, sight.mask)
        dropout = self.dropout if self.training else 0.0
        groups = self.n_heads // self.n_kv_heads
        if blocked_attention.is_faster(q, dropout):
            if groups > 1:
                k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            return blocked_attention.attend(q, k, v, sight.mask, sight.is_causal, dropout)
        is_causal = sight.is_causal and sight.mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=sight.mask, is_causal=is_causal, dropout_p=dropout, enable_gqa=groups > 1
        )

    def _heads(self, x: Float[Tensor, "B L HE"]) -> Float[Tensor, "B H L E"]:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


def _attend_from_one(
    q: Float[Tensor, "1 H 1 E"], k: Float[Tensor, "1 K S E"], v: Float[Tensor, "1 K S E"], mask: Tensor | None
) -> Float[Tensor, "1 H 1 E"]:
    """One query as sums of products, in fp32: a compiled step makes two passes over keys and values of it."""
    groups = q.shape[1] // k.shape[1]
    queries = q.unflatten(1, (-1, groups)).float() * q.shape[-1] ** -0.5
    scores = (queries * k[:, :, None].float()).sum(-1)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, None, 0], -torch.inf)
    elif mask is not None:
        scores = scores + mask.reshape(scores.shape)
    p = torch.softmax(scores, dim=-1)
    return (p[..., None] * v[:, :, None].float()).sum(-2, keepdim=True).flatten(1, 2).to(q.dtype)
