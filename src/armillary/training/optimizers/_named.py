"""One or several torch optimizers as one, with a scaled learning rate and state keyed by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from armillary.refusal import Refusal, nearest

STATE_OF: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}
"""What each kind keeps for a parameter. A fresh state is all zeros, `step` a scalar, the others like the parameter."""

Named = list[tuple[str, nn.Parameter]]
Beta = Annotated[float, Field(ge=0, lt=1)]
"""Decay of a running mean."""


def trainable(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Named:
    """Those that learn; frozen ones (under LoRA) have no state and no decay."""
    return [(name, p) for name, p in named_parameters if p.requires_grad]


def adamw_groups(named: Named, weight_decay: float, learning_rate: float) -> list[dict[str, Any]]:
    """Decay on matrices only: parameters with two dimensions or more, embeddings among them, as in GPT-2 practice.

    Biases and the scales of norms are not decayed. A parameter may say how much faster it learns than the others.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for _, p in sorted(named, key=lambda item: item[1].dim() < 2):
        groups.setdefault((p.dim() >= 2, getattr(p, "learning_rate_factor", 1.0)), []).append(p)
    return [
        {"params": found, "weight_decay": weight_decay if is_matrix else 0.0, "lr": learning_rate * factor}
        for (is_matrix, factor), found in groups.items()
    ]


class Optimizers:
    """What the training loop holds. `param_groups` are those of all, in order, so that a GradScaler can unscale."""

    def __init__(self, named: Named, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._names = {p: name for name, p in named}
        self._peaks = [group["lr"] for group in self.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @property
    def learning_rate(self) -> float:
        """Of the first group, as it is now."""
        return float(self.param_groups[0]["lr"])

    def set_scale(self, factor: float) -> None:
        """Every learning rate becomes its peak times `factor`."""
        for group, peak in zip(self.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_tensors(self) -> dict[str, Tensor]:
        """The live state, such as "backbone.blocks.0.attention.q.weight.exp_avg"; to keep it, save or clone it.

        Complete at any time: a parameter that has not been stepped yet has zeros, which is how each kind starts.
        """
        out = {}
        for optimizer, p in self._parameters():
            state = optimizer.state.get(p, {})
            for key in _kept(optimizer):
                out[f"{self._names[p]}.{key}"] = state[key] if key in state else _zeros(p, key)
        return out

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a copy of what `state_tensors` gave. Raises Refusal, and changes nothing, where names or shapes differ.

        Learning rates are not state: the schedule sets them from the step.
        """
        expected = self.state_tensors()
        for name, ours in expected.items():
            if name not in tensors:
                raise Refusal(f"optimizer state: '{name}' is missing; resume with the recipe of the checkpoint")
            if tensors[name].shape != ours.shape:
                shapes = f"{tuple(tensors[name].shape)}, this network needs {tuple(ours.shape)}"
                raise Refusal(f"optimizer state: '{name}' has shape {shapes}; resume with the recipe of the checkpoint")
        if extra := sorted(set(tensors) - set(expected)):
            raise Refusal(f"optimizer state: '{extra[0]}' belongs to no parameter; {nearest(extra[0], expected)}")
        for optimizer, p in self._parameters():
            optimizer.state[p] = {
                key: _zeros(p, key).copy_(tensors[f"{self._names[p]}.{key}"]) for key in _kept(optimizer)
            }

    def _parameters(self) -> list[tuple[torch.optim.Optimizer, nn.Parameter]]:
        return [(o, p) for o in self._optimizers for group in o.param_groups for p in group["params"]]


def _kept(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return next(keys for kind, keys in STATE_OF.items() if isinstance(optimizer, kind))


def _zeros(p: nn.Parameter, key: str) -> Tensor:
    # The step counter of a fused AdamW is float32, on the parameter's device.
    return torch.zeros((), device=p.device) if key == "step" else torch.zeros_like(p, requires_grad=False)
