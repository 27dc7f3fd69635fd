"""Rotary position encoding.

Source: Su et al. 2021, arXiv 2104.09864, eq. 34 (the two halves of a head as the two coordinates of each plane).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rotation = tuple[Float[Tensor, "#B 1 L E"], Float[Tensor, "#B 1 L E"]]


def rotation(positions: Int[Tensor, "#B L"], head_dim: int, theta: float) -> Rotation:
    """Cosines and sines of every position, in fp32: computed once a batch and shared by all layers."""
    planes = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-planes / head_dim)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B H L E"], by: Rotation) -> Float[Tensor, "B H L E"]:
    cos, sin = by[0].to(x.dtype), by[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
