"""The view of a denoising model that parallel samplers have: see contracts.Denoise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Layout, Network
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.uniform import Uniform


@runtime_checkable
class Denoiser(Protocol):
    """What DenoiseView asks of an objective."""

    def corruption(self, n_vocab: int) -> Absorbing | Uniform: ...

    def log_p0(
        self,
        network: Network,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        t: Float[Tensor, " B"],
        where: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "n V"]: ...


class CorruptionView(ABC):
    """All of a Denoise but where its log_p0 comes from: `_log_p0` is asked for the rows that have a position in
    `where`, and for no other."""

    def __init__(self, corruption: Absorbing | Uniform, forbidden: Collection[int]) -> None:
        self.n_vocab = corruption.n_vocab
        self.corruption, self.forbidden = corruption, frozenset(forbidden)

    def alpha(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return self.corruption.schedule.alpha(t)

    def time(self, alpha: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return self.corruption.schedule.time(alpha)

    def prior(self, u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """A uniform prior holds forbidden ids too: the last step, to s = 0, leaves none of them."""
        return self.corruption.prior(u)

    def undecided(self, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        return self.corruption.undecided(tokens)

    @torch.inference_mode()
    def log_p0(
        self, tokens: Int[Tensor, "B L"], t: Float[Tensor, " B"], where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "n V"]:
        rows = where.any(1).nonzero()[:, 0]
        if rows.numel() == 0:
            return torch.empty(0, self.n_vocab, device=tokens.device)
        return without(self._log_p0(rows, tokens[rows], t[rows], where[rows]), self.forbidden)

    def reverse(
        self,
        tokens: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
        log_p0: Float[Tensor, "n V"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
        u: Float[Tensor, "B L 2"],
    ) -> Int[Tensor, "B L"]:
        return self.corruption.reverse(tokens, where, log_p0, t, s, u)

    @abstractmethod
    def _log_p0(
        self, rows: Int[Tensor, " b"], tokens: Int[Tensor, "b L"], t: Float[Tensor, " b"], where: Bool[Tensor, "b L"]
    ) -> Float[Tensor, "n V"]:
        """rows: which of the batch these are."""


class DenoiseView(CorruptionView):
    """Every position sees every other. forbidden: ids that are never written; what is left is normalised again."""

    def __init__(self, network: Network, objective: Denoiser, forbidden: Collection[int] = frozenset()) -> None:
        super().__init__(objective.corruption(network.n_vocab), forbidden)
        self.network, self.objective = network, objective

    def _log_p0(
        self, rows: Int[Tensor, " b"], tokens: Int[Tensor, "b L"], t: Float[Tensor, " b"], where: Bool[Tensor, "b L"]
    ) -> Float[Tensor, "n V"]:
        return self.objective.log_p0(self.network, tokens, Layout("full"), t, where)


def without(log_p: Float[Tensor, "n V"], forbidden: Collection[int]) -> Float[Tensor, "n V"]:
    """log_p given that the token is none of these."""
    if not forbidden:
        return log_p
    ids = torch.tensor(sorted(forbidden), device=log_p.device)
    return torch.log_softmax(log_p.index_fill(1, ids, -torch.inf), dim=1)
