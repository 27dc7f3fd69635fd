"""A layer beside the residual stream, normalised before, and modulated where the network knows the noise level.

Source: adaptive layer norm, Peebles & Xie 2022, arXiv 2212.09748, section 3.2.
Differs: one network t → c serves all blocks, and each block multiplies c by a table of its own, zero at first, so that
conditioning costs less than a hundredth of the parameters; scale and gate enter as 1 + value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from armillary.nn.linear import Linear

N_FREQUENCIES = 16
Shift = tuple[Float[Tensor, " B #L D"], Float[Tensor, " B #L D"], Float[Tensor, " B #L D"]]
"""shift, scale, gate of one layer."""


def residual(
    x: Float[Tensor, "B L D"],
    layer: Callable[[Tensor], Tensor],
    norm: nn.Module,
    drop: nn.Module,
    by: Shift | None = None,
) -> Float[Tensor, "B L D"]:
    """x + layer(norm(x)); with `by`, x + (1 + gate) layer((1 + scale) norm(x) + shift)."""
    if by is None:
        return x + drop(layer(norm(x)))
    shift, scale, gate = by
    return x + (1 + gate) * drop(layer((1 + scale) * norm(x) + shift))


class NoiseLevel(nn.Module):
    """t in [0, 1] → c of width D, through a hidden layer of D / 8. None where t is not told, or is_known says that it
    means nothing here."""

    def __init__(self, width: int, is_known: bool) -> None:
        super().__init__()
        hidden = max(4, width // 8)
        self.up = Linear(2 * N_FREQUENCIES, hidden) if is_known else None
        self.down = Linear(hidden, width) if is_known else None

    def forward(self, t: Float[Tensor, " B #L"] | None) -> Float[Tensor, " B #L D"] | None:
        if self.up is None or self.down is None or t is None:
            return None
        # From one turn over all of [0, 1] to 1,000 radians: fine enough for a thousand sampling steps.
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        exponents = torch.linspace(math.log(math.pi), math.log(1000), N_FREQUENCIES, device=t.device, dtype=t.dtype)
        angles = t[..., None] * exponents.exp()
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.up.weight.dtype)
        return self.down(torch.nn.functional.silu(self.up(features)))


class Modulation(nn.Module):
    """c → (shift, scale, gate) of each of a block's layers; nothing where c is not known."""

    def __init__(self, width: int, is_known: bool, n_layers: int = 2) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.table = nn.Parameter(torch.zeros(3 * n_layers, width)) if is_known else None

    def forward(self, c: Float[Tensor, " B #L D"] | None) -> tuple[Shift | None, ...]:
        if self.table is None or c is None:
            return (None,) * self.n_layers
        rows = (c[..., None, :] * self.table).unbind(-2)
        return tuple(zip(rows[::3], rows[1::3], rows[2::3], strict=True))
