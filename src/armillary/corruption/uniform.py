"""Uniform corruption: a position is as it was, or any token of the vocabulary with equal probability.

Source: Austin et al. 2021, arXiv 2107.03006, section 3; Schiff et al. 2024, arXiv 2412.10193, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.corruption.categorical import draw
from armillary.corruption.schedules import LogLinear, Schedule, end


@dataclass(frozen=True)
class Uniform:
    n_vocab: int
    schedule: Schedule = field(default_factory=LogLinear)

    name = "uniform"

    @property
    def n_states(self) -> int:
        return self.n_vocab

    def corrupt(
        self, tokens: Int[Tensor, "B L"], t: Float[Tensor, " B #L"], u: Float[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """Tokens at noise level t. One uniform number says whether a token stays and, if not, what comes instead."""
        alpha = self.schedule.alpha(t.double()).expand(u.shape)
        instead = ((u.double() - alpha) / (1 - alpha).clamp(min=1e-300) * self.n_vocab).long()
        return torch.where(u < alpha, tokens, instead.clamp(0, self.n_vocab - 1))

    def prior(self, u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return (u.double() * self.n_vocab).long().clamp(max=self.n_vocab - 1)

    def prior_nats(self) -> float:
        """KL of q(z_1 | x) from the prior, of one position: what a bound owes where a schedule ends early."""
        alpha, n = end(self.schedule), self.n_vocab
        own, others = (1 + (n - 1) * alpha) / n, (n - 1) * (1 - alpha) / n
        return own * math.log1p((n - 1) * alpha) + others * math.log1p(-alpha)

    def undecided(self, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Every position may still change."""
        return torch.ones_like(tokens, dtype=torch.bool)

    def posterior(
        self, tokens: Int[Tensor, " n"], p0: Float[Tensor, "n V"], t: Float[Tensor, " #n"], s: Float[Tensor, " #n"]
    ) -> Float[Tensor, "n V"]:
        """q(z_s | z_t), the clean token having probability p0 given all *other* positions: one step of `reverse`."""
        alpha_t, alpha_s = self.schedule.alpha(t.double())[:, None], self.schedule.alpha(s.double())[:, None]
        stays = (alpha_t / alpha_s).expand(tokens.shape[0], 1)
        moves = ((1 - stays) / self.n_vocab).expand(p0.shape).scatter_add(1, tokens[:, None], stays)
        weights = moves * (alpha_s * p0.double() + (1 - alpha_s) / self.n_vocab)
        return (weights / weights.sum(1, keepdim=True)).to(p0.dtype)

    def reverse(
        self,
        tokens: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
        log_p0: Float[Tensor, "n V"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
        u: Float[Tensor, "B L 2"],
    ) -> Int[Tensor, "B L"]:
        """One step from t to s at the positions of `where`; log_p0: of those n positions, given all others."""
        rows = where.nonzero()[:, 0]
        p = self.posterior(tokens[where], log_p0.double().exp(), t[rows], s[rows])
        out = tokens.clone()
        out[where] = draw(p, u[..., 1][where])
        return out
