"""Linear biases of attention by distance: a sight whose mask is added to the scores.

Source: Press et al. 2021, arXiv 2108.12409; heads that are no power of two as in its authors' code.
Differs: |q - k|, so that it says the same where both sides are seen.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from armillary.nn.sight import Sight


def slopes(n_heads: int, device: torch.device | None = None) -> Float[Tensor, " H"]:
    """2^(-8 i / n), i = 1 .. n, for n a power of two; the others come from the odd ones of twice as many."""
    n = 2 ** math.floor(math.log2(n_heads))
    exponents = [8 * i / n for i in range(1, n + 1)] + [4 * i / n for i in range(1, 2 * n, 2)]
    return torch.tensor([2.0**-e for e in exponents[:n_heads]], device=device)


def with_distance(sight: Sight, n_heads: int, dtype: torch.dtype) -> Sight:
    """Distances are taken in fp32 and rounded once: bf16 cannot count beyond 256. dtype: that of the scores."""
    assert sight.slots is None or sight.layout.positions is None, "in a cache, a slot is a position"
    queries, keys = sight.positions, sight.positions
    if sight.slots is not None:
        keys = torch.arange(sight.n_seen, device=queries.device)[None]
    distance = (queries[:, :, None] - keys[:, None, :]).abs().float()
    bias = -slopes(n_heads, queries.device)[:, None, None] * distance[:, None]
    if sight.is_causal:
        n = queries.shape[1]
        bias = bias.masked_fill(torch.ones(n, n, dtype=torch.bool, device=queries.device).triu(1), -torch.inf)
    elif sight.mask is not None:
        bias = bias.masked_fill(~sight.mask, -torch.inf)
    return dataclasses.replace(sight, mask=bias.to(dtype))
