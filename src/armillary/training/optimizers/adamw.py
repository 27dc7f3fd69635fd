"""AdamW with decay on matrices only.

Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field

from armillary.registry import Part
from armillary.training.optimizers._named import Beta, Optimizers, adamw_groups, trainable


class AdamW(Part):
    """learning_rate is the peak: the schedule scales it. Which parameters decay: see `adamw_groups`."""

    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Optimizers:
        named = trainable(named_parameters)
        groups = adamw_groups(named, self.weight_decay, self.learning_rate)
        # 6.8M parameters, 2 CPU threads: fused 12 ms a step, foreach 47 ms, neither 60 ms.
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)
        return Optimizers(named, [optimizer])
