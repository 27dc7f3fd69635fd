"""Sinusoidal codes of positions.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoids(positions: Int[Tensor, "B L"], width: int) -> Float[Tensor, "B L D"]:
    """Sines in the first half, cosines in the second, wavelengths from 2π to 20,000 π; fp32. width: even or odd."""
    half = (width + 1) // 2
    rates = torch.exp(-math.log(10_000) / half * torch.arange(half, device=positions.device))
    angles = positions[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
