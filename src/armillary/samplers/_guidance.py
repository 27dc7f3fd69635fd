"""Classifier-free guidance: away from what the model would say without the given tokens.

Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6; for discrete tokens: Schiff et al. 2024, arXiv 2412.10193.
Differs: it guides the law of the clean token, before the step of the corruption; theirs guides that of the next state.
So the rate at which positions are revealed stays as it is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = -1e4
"""Instead of log 0 on the unconditional side, where a token that nothing forbids would get all of the mass, twice."""


def guided(log_p: Float[Tensor, "n V"], log_p_alone: Float[Tensor, "n V"], weight: float) -> Float[Tensor, "n V"]:
    """(1 + weight) log p(· | given) - weight log p(·), normalised. What has no probability when given gets none."""
    pushed = log_p + weight * (log_p - log_p_alone.clamp(min=LEAST))
    return torch.log_softmax(pushed.where(log_p > -torch.inf, -torch.inf), dim=1)
