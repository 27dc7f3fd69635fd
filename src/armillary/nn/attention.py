"""Multi-head attention over a sight: full or causal, with or without a cache, grouped heads or not.

Source: Vaswani et al. 2017, arXiv 1706.03762; grouped queries: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from armillary.nn.cache import AttentionState
from armillary.nn.rotary import Rotation, rotate
from armillary.nn.sight import Sight


class Attention(nn.Module):
    """q, k, v, o are separate matrices, so that an adapter can name each one."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int | None = None, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        self.head_dim = width // n_heads
        self.dropout = dropout
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, self.n_kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(width, self.n_kv_heads * self.head_dim, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        rotation: Rotation | None = None,
        state: AttentionState | None = None,
    ) -> Float[Tensor, "B L D"]:
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if state is not None:
            assert sight.slots is not None
            k, v = state.exchange(k, v, sight.rows, sight.slots, sight.n_seen)
            k, v = k.to(q.dtype), v.to(q.dtype)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=sight.mask,
            is_causal=sight.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return self.o(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "B L HE"]) -> Float[Tensor, "B H L E"]:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
