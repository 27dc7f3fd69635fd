"""The position-wise half of a block: a GELU network, or SwiGLU.

Source: Hendrycks & Gimpel 2016, arXiv 1606.08415 (GELU); Shazeer 2020, arXiv 2002.05202 (SwiGLU).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from armillary.nn.linear import Linear


class GeluNetwork(nn.Module):
    def __init__(self, width: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        self.approximate: Literal["none", "tanh"] = approximate

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden, bias=False)
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L O"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))
