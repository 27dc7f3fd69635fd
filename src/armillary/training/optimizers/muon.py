"""Muon for the hidden matrices, AdamW for embeddings, head, biases and norms.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982 (one learning rate
and one decay for both, the update scaled by 0.2 sqrt(max(rows, columns))).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field

from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.training.optimizers._named import Beta, Named, Optimizers, adamw_groups, trainable


class Muon(Part):
    """learning_rate and weight_decay are both optimizers'; adamw_learning_rate sets the second one's apart.

    adjust: "match_rms_adamw" gives updates the size of AdamW's, so its learning rate carries over; "original" scales
    by sqrt(max(1, rows / columns)) and wants about 0.02, with an adamw_learning_rate of its own. ns_steps: rounds of
    Newton–Schulz, in bfloat16; on a CPU they cost 4 ms for 256 × 256 and 14 ms for 1024 × 256 on one thread, so about
    0.25 s a step for a GPT of 6 layers and width 256, where AdamW takes 12 ms.
    """

    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False)
    adamw_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, lt=100)
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Optimizers:
        """Raises Refusal where the network has no hidden matrix."""
        named = trainable(named_parameters)
        hidden = [(name, p) for name, p in named if is_hidden_matrix(name, p)]
        if not hidden:
            raise Refusal("optimizer: muon finds no hidden matrix in this network; use adamw")
        muon = torch.optim.Muon(
            [p for _, p in hidden],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust,
        )
        return Optimizers(named, [muon, *self._adamw([(n, p) for n, p in named if not is_hidden_matrix(n, p)])])

    def _adamw(self, rest: Named) -> list[torch.optim.Optimizer]:
        if not rest:
            return []
        rate = self.adamw_learning_rate or self.learning_rate
        groups = adamw_groups(rest, self.weight_decay, rate)
        return [torch.optim.AdamW(groups, lr=rate, betas=self.betas, eps=self.eps, fused=True)]


def is_hidden_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Two dimensions, and the module that holds it is called neither an embedding nor a head."""
    owner = name.split(".")[-2] if "." in name else name
    return parameter.dim() == 2 and "embedding" not in owner and "head" not in owner
