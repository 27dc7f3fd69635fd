"""What learns: a network, its objective, its optimizers and the average of its weights; and how far it has come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from armillary.contracts import Objective
from armillary.training.optimizers._named import Optimizers


@dataclass
class Learner:
    """network: a contracts.Network. step: optimizer steps done. n_tokens: scored tokens seen.

    skipped: steps whose update was not applied.
    """

    network: nn.Module
    objective: Objective
    optimizers: Optimizers
    average: Average | None
    scaler: torch.amp.GradScaler
    step: int = 0
    n_tokens: int = 0
    skipped: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def at_its_best(self) -> Iterator[nn.Module]:
        """The network in evaluation mode, with the averaged weights where they are kept."""
        was_training = self.network.training
        self.network.eval()
        try:
            with self.average.lent_to(self.network) if self.average else contextlib.nullcontext():
                yield self.network
        finally:
            self.network.train(was_training)


class Average:
    """Exponential moving average of the weights.

    Source: Polyak & Juditsky 1992; with the warm-up min(decay, (1 + step) / (10 + step)), so that a short run's average
    is not its initialisation.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """step: optimizer steps done, this one included."""
        keep = min(self.decay, (1 + step) / (10 + step))
        mine = list(self.weights.values())
        torch._foreach_lerp_(mine, [p.detach() for _, p in network.named_parameters()], 1 - keep)

    def load(self, weights: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextlib.contextmanager
    def lent_to(self, network: nn.Module) -> Iterator[None]:
        """The network holds the average inside the block, its own weights again after it."""
        self._swap(network)
        try:
            yield
        finally:
            self._swap(network)

    @torch.no_grad()
    def _swap(self, network: nn.Module) -> None:
        for name, p in network.named_parameters():
            own = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name].copy_(own)
