"""From selected hidden rows to the vocabulary, a chunk at a time: the (B, L, V) tensor never exists.

Differs: from the usual loss by computing its gradient in the forward pass, where the logits of a chunk still are
(Wijmans et al. 2024, arXiv 2411.09009, have the fused GPU form): nothing of size V is kept for the backward pass and
the logits are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from armillary.nn.linear import linear

CHUNK = 1024
"""Rows whose logits are held at once: fewer pay for adding up the weight's gradient, more for memory."""


@dataclass(frozen=True)
class VocabularyHead:
    """See contracts.Head. weight: (V, D), a view of the tied embedding or a matrix of its own."""

    weight: Float[Tensor, "V D"]

    def log_p(self, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """fp32 (float64 for a float64 model)."""
        return _log_p(rows, self.weight)

    def nll(self, rows: Float[Tensor, "n D"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.reduce(rows, _pick, targets)

    def weighted_nll(
        self,
        rows: Float[Tensor, "n D"],
        targets: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
        total, nats = _WeightedNll.apply(rows, self.weight, targets, weights, label_smoothing)  # type: ignore[misc]
        return total, nats

    def reduce(
        self, rows: Float[Tensor, "n D"], fn: Callable[..., Tensor], *extras: Tensor, normalised: bool = True
    ) -> Tensor:
        def run(rows: Tensor, weight: Tensor, *extras: Tensor) -> Tensor:
            return fn((_log_p if normalised else _logits)(rows, weight), *extras)

        pieces = []
        for start in range(0, max(1, rows.shape[0]), CHUNK):
            part = slice(start, start + CHUNK)
            args = (rows[part], self.weight, *(extra[part] for extra in extras))
            keeps_gradient = torch.is_grad_enabled() and (rows.requires_grad or self.weight.requires_grad)
            pieces.append(checkpoint(run, *args, use_reentrant=False) if keeps_gradient else run(*args))
        return torch.cat(pieces)


def _logits(rows: Float[Tensor, "n D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "n V"]:
    rows = rows.to(_compute_dtype(rows, weight))
    logits = linear(rows, weight.to(rows.dtype))
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_p(rows: Float[Tensor, "n D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "n V"]:
    return torch.log_softmax(_logits(rows, weight), dim=-1)


def _pick(log_p: Float[Tensor, "n V"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return -log_p.gather(1, targets[:, None]).squeeze(1)


def _compute_dtype(rows: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(rows.device.type):
        return torch.get_autocast_dtype(rows.device.type)
    return weight.dtype


class _WeightedNll(torch.autograd.Function):
    """Σ_i w_i [(1 - ε) nll_i + ε mean_v(-log p_iv)]; its gradient needs only the scalar that arrives from above."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(rows, weight)
        total_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        keeps = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(rows.device.type, enabled=False):
            w = weight.to(dtype)
            d_rows = torch.empty_like(rows) if keeps else None
            d_weight = torch.zeros_like(weight, dtype=total_dtype) if keeps else None
            nats = torch.empty(rows.shape[0], device=rows.device, dtype=total_dtype)
            losses = torch.empty_like(nats)
            for start in range(0, rows.shape[0], CHUNK):
                part = slice(start, start + CHUNK)
                r, y = rows[part].to(dtype), targets[part]
                # log_softmax is one pass where logsumexp, subtraction and exp are a dozen over memory.
                log_p = torch.log_softmax((r @ w.T).to(total_dtype), dim=-1)
                nats[part] = -log_p.gather(1, y[:, None]).squeeze(1)
                losses[part] = nats[part]
                if label_smoothing:
                    losses[part] = (1 - label_smoothing) * nats[part] - label_smoothing * log_p.mean(-1)
                if d_rows is None or d_weight is None:
                    continue
                d_logits = log_p.exp_()
                if label_smoothing:
                    d_logits.sub_(label_smoothing / weight.shape[0])
                d_logits.scatter_add_(1, y[:, None], torch.full_like(d_logits[:, :1], label_smoothing - 1))
                if weights is not None:
                    d_logits.mul_(weights[part, None])
                g = d_logits.to(dtype)
                d_rows[part] = (g @ w).to(rows.dtype)
                d_weight += g.T @ r
            total = losses.sum() if weights is None else (losses * weights).sum()
        if d_rows is not None and d_weight is not None:
            ctx.save_for_backward(d_rows, d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nats)
        return total, nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_rows, d_weight = ctx.saved_tensors
        return d_rows * grads[0], d_weight * grads[0], None, None, None
