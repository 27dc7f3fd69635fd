"""Absorbing corruption: a position is as it was, or MASK (id V, an input and never an output).

Source: Austin et al. 2021, arXiv 2107.03006, section 3; Sahoo et al. 2024, arXiv 2406.07524, eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.corruption.categorical import draw
from armillary.corruption.schedules import LogLinear, Schedule


@dataclass(frozen=True)
class Absorbing:
    n_vocab: int
    schedule: Schedule = field(default_factory=LogLinear)

    name = "absorbing"

    @property
    def mask(self) -> int:
        return self.n_vocab

    @property
    def n_states(self) -> int:
        return self.n_vocab + 1

    def corrupt(
        self, tokens: Int[Tensor, "B L"], t: Float[Tensor, " B #L"], u: Float[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """Tokens at noise level t, from uniform numbers."""
        return torch.where(u < self.schedule.alpha(t), tokens, self.mask)

    def prior(self, u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Tokens at t = 1."""
        return torch.full(u.shape, self.mask, dtype=torch.long, device=u.device)

    def undecided(self, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        return tokens == self.mask

    def posterior(
        self, tokens: Int[Tensor, " n"], p0: Float[Tensor, "n V"], t: Float[Tensor, " #n"], s: Float[Tensor, " #n"]
    ) -> Float[Tensor, "n V1"]:
        """q(z_s | z_t) with the clean token drawn from p0: the law of one step of `reverse`. MASK is the last state."""
        unmask = self._unmask(t, s)[:, None].to(p0.dtype).expand(tokens.shape[0], 1)
        moving = torch.cat([unmask * p0, 1 - unmask], dim=1)
        staying = torch.nn.functional.one_hot(tokens, self.n_states).to(p0.dtype)
        return torch.where((tokens == self.mask)[:, None], moving, staying)

    def reverse(
        self,
        tokens: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
        log_p0: Float[Tensor, "n V"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
        u: Float[Tensor, "B L 2"],
    ) -> Int[Tensor, "B L"]:
        """One step from t to s, in two stages: which positions of `where` are revealed, then what they hold.

        log_p0: of the n positions of `where`, in order; u: two uniform numbers a position.
        """
        is_revealed = where & self.undecided(tokens) & (u[..., 0] < self._unmask(t, s)[:, None])
        out = tokens.clone()
        out[is_revealed] = draw(log_p0[is_revealed[where]].double().exp(), u[..., 1][is_revealed])
        return out

    def _unmask(self, t: Float[Tensor, "..."], s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        alpha_t, alpha_s = self.schedule.alpha(t.double()), self.schedule.alpha(s.double())
        return (alpha_s - alpha_t) / (1 - alpha_t)
