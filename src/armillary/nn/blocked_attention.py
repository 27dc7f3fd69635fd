"""Attention for training on a CPU: whole matrix products over blocks of queries, probabilities kept for the backward.

Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; blocks of queries as in Rabe & Staats 2021, arXiv 2112.05682.
Differs: torch's fused CPU kernel computes the scores twice and reads them in small tiles; here a causal block of
queries meets only the keys before its end, and the probabilities (rows · heads · L² / 2 of them) wait for the backward
pass. In bf16 the scores themselves are bf16, where the fused kernel holds them in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 128
"""Queries of a block: 64 to 256 are within a tenth of each other from L = 128 to 4,096."""
LONGEST = 2048
"""Beyond it the kept probabilities outweigh everything else that a block of the network keeps."""


def is_faster(q: Float[Tensor, "B H L E"], dropout: float) -> bool:
    """Than torch's kernel: in fp32 that is as fast, unless there is dropout, which it has no code for on a CPU."""
    is_training_on_cpu = torch.is_grad_enabled() and q.device.type == "cpu"
    return is_training_on_cpu and q.shape[2] <= LONGEST and (q.dtype != torch.float32 or dropout > 0)


def attend(
    q: Float[Tensor, "B H L E"],
    k: Float[Tensor, "B H S E"],
    v: Float[Tensor, "B H S E"],
    mask: Bool[Tensor, "#B 1 L S"] | Float[Tensor, "#B H L S"] | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B H L E"]:
    """As scaled_dot_product_attention of equal heads. With a mask, is_causal says that it hides all that is later."""
    return _Blocked.apply(q, k, v, mask, is_causal, dropout)  # type: ignore[return-value]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout: float
    ) -> Tensor:
        n_rows, _, length, width = q.shape
        ctx.n_rows, ctx.is_causal, ctx.dropout, ctx.scale = n_rows, is_causal, dropout, width**-0.5
        kept = []
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
            out = torch.empty_like(queries)
            for start, end, last in _blocks(length, k.shape[2], is_causal):
                scores = torch.bmm(queries[:, start:end], keys[:, :last].transpose(1, 2)).mul_(ctx.scale)
                if mask is not None:
                    _hide(scores.unflatten(0, (n_rows, -1)), mask[:, :, start:end, :last])
                elif is_causal:
                    scores[:, :, start:].masked_fill_(_is_later(end - start, q.device), -torch.inf)
                p = torch.softmax(scores, dim=-1)
                kept.append(p)
                if dropout:
                    is_left = torch.rand_like(p, dtype=torch.float32) >= dropout
                    kept.append(is_left)
                    p = (p * is_left).div_(1 - dropout)
                out[:, start:end] = torch.bmm(p, values[:, :last])
        ctx.save_for_backward(queries, keys, values, *kept)
        return out.unflatten(0, (n_rows, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, *kept = ctx.saved_tensors
        d_out = grads[0].flatten(0, 1)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, end, last in _blocks(q.shape[1], k.shape[1], ctx.is_causal):
            p, d_o = kept.pop(0), d_out[:, start:end]
            d_p = torch.bmm(d_o, v[:, :last].transpose(1, 2))
            p_used = p
            if ctx.dropout:
                is_left = kept.pop(0)
                p_used = (p * is_left).div_(1 - ctx.dropout)
                d_p = d_p.mul_(is_left).div_(1 - ctx.dropout)
            d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :last]).mul_(ctx.scale)
            d_k[:, :last].add_(torch.bmm(d_scores.transpose(1, 2), q[:, start:end]), alpha=ctx.scale)
            d_v[:, :last].add_(torch.bmm(p_used.transpose(1, 2), d_o))
        d_q, d_k, d_v = (x.unflatten(0, (ctx.n_rows, -1)) for x in (d_q, d_k, d_v))
        return d_q, d_k, d_v, None, None, None


def _blocks(length: int, n_keys: int, is_causal: bool) -> list[tuple[int, int, int]]:
    """(first query, end of queries, end of keys) of each block."""
    ends = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    return [(start, end, end if is_causal else n_keys) for start, end in ends]


def _hide(scores: Float[Tensor, "B H n S"], mask: Tensor) -> None:
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -torch.inf)
    else:
        scores.add_(mask)


def _is_later(n: int, device: torch.device) -> Bool[Tensor, "n n"]:
    return torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)
