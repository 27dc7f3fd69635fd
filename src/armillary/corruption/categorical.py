"""One draw from each row of weights, by inverting the distribution function in float64.

Noise added in float32 (Gumbel-max) loses the tail: its uniform numbers have 24 bits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw(weights: Float[Tensor, "n V"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """weights: at least 0, in any scale, not all 0. u: uniform in [0, 1). A weight of 0 is never drawn."""
    mass = weights.double().cumsum(1)
    # u < 1 keeps the target below the last entry; the first entry above it has a weight that is not zero.
    target = (u.double() * mass[:, -1]).clamp(max=torch.finfo(torch.float64).max)
    return torch.searchsorted(mass, target[:, None], right=True).squeeze(1)
