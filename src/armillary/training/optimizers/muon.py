"""Muon for the hidden matrices, AdamW for embeddings, head, biases and norms.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982 (one learning rate
and one decay for both, the update scaled by 0.2 sqrt(max(rows, columns))).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.training import precision
from armillary.training.optimizers._named import Beta, Named, Optimizers, adamw_groups, trainable


class Muon(Part):
    """learning_rate and weight_decay are both optimizers'; adamw_learning_rate sets the second one's apart.

    adjust: "match_rms_adamw" gives updates the size of AdamW's, so its learning rate carries over; "original" scales
    by sqrt(max(1, rows / columns)) and wants about 0.02, with an adamw_learning_rate of its own. ns_steps: rounds of
    Newton–Schulz, in bfloat16 where the hardware has it, else in fp32. On a CPU with bf16 they cost 4 ms for 256 × 256
    and 14 ms for 1024 × 256 on one thread, so about 0.25 s a step for a GPT of 6 layers and width 256, where AdamW
    takes 12 ms.
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
        kind = torch.optim.Muon if precision.has_bf16(hidden[0][1].device) else Fp32Muon
        muon = kind(
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


class Fp32Muon(torch.optim.Muon):
    """Torch's, whose Newton–Schulz is always in bfloat16, with that in fp32."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learning_rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = p.shape
                is_original = group["adjust_lr_fn"] == "original"
                scale = math.sqrt(max(1, rows / columns)) if is_original else 0.2 * math.sqrt(max(rows, columns))
                p.mul_(1 - learning_rate * group["weight_decay"]).add_(update, alpha=-learning_rate * scale)


def orthogonalized(
    matrix: Float[Tensor, "N M"], coefficients: tuple[float, float, float], n_steps: int, eps: float
) -> Float[Tensor, "N M"]:
    """Its singular values brought near 1 by so many rounds of a quintic, in the type of the matrix."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def is_hidden_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Two dimensions, and the module that holds it is called neither an embedding nor a head."""
    owner = name.split(".")[-2] if "." in name else name
    return parameter.dim() == 2 and "embedding" not in owner and "head" not in owner
