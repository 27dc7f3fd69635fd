"""What the samplers over a Denoise view share: how rows start, their random numbers, and what the network is asked.

Source: no evaluation for a row that did not change, Sahoo et al. 2024, arXiv 2406.07524.
Differs: nothing is kept for later. A step of an absorbing process says which positions it writes before it says what,
and only those are asked for; a row that stays as it is costs nothing, even where the network knows the noise level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from armillary.contracts import Denoise, Given, State
from armillary.corruption.categorical import draw
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.samplers._guidance import guided


class Parallel(Part):
    """guidance: how far away from what the model would say without the given tokens; 0 leaves it out and costs nothing.

    temperature: of each token's law, after guidance; 0 takes the likeliest token.
    """

    guidance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)


class Rows:
    """Rows on their way from the prior to text. Open positions start from the prior, given ones never change.

    tokens: replaced by each step, never written into, so that states may be kept. prior: what rows look like where
    nothing is known; an unconditional pass sees it at the given positions.
    """

    def __init__(self, view: Denoise, given: Given, generators: Sequence[torch.Generator], settings: Parallel) -> None:
        self.view, self.given, self.generators, self.settings = view, given, generators, settings
        if len(generators) != given.tokens.shape[0]:
            raise ValueError(f"{len(generators)} generators for {given.tokens.shape[0]} rows")
        self.open = ~given.is_given
        self.prior = view.prior(self.uniform(torch.ones_like(self.open[:, 0]), self.n_positions))
        self.tokens = torch.where(self.open, self.prior, given.tokens)
        self._n_asked = 0

    @property
    def n_positions(self) -> int:
        return self.given.tokens.shape[1]

    @property
    def undecided(self) -> Bool[Tensor, "B L"]:
        """Open positions that may still change."""
        return self.open & self.view.undecided(self.tokens)

    @property
    def are_absorbing(self) -> bool:
        """Whether a position that holds a token is decided."""
        return not bool(self.view.undecided(torch.zeros_like(self.tokens[:, :1])).any())

    @property
    def state(self) -> State:
        return State(self.tokens, self._n_asked / max(1, self.tokens.shape[0]))

    def n_steps(self, steps: int | None) -> Int[Tensor, " B"]:
        """Of each row; None is one for each of its open positions."""
        n_open = self.open.sum(1)
        return (n_open if steps is None else torch.full_like(n_open, steps)).clamp(min=1)

    def uniform(self, active: Bool[Tensor, " B"], *shape: int) -> Float[Tensor, "B ..."]:
        """Numbers in [0, 1) for the active rows, each row's from its own generator; the others' are left alone.

        So what a generator has given depends on its row only, and it can go on to the row's next block.
        """
        u = torch.zeros(len(self.generators), *shape, dtype=torch.float64)
        rows = active.nonzero()[:, 0].tolist()
        if rows:
            u[rows] = uniform([self.generators[row] for row in rows], shape, u.device)
        return u.to(self.open.device)

    def log_p0(self, where: Bool[Tensor, "B L"], t: Float[Tensor, " B"]) -> Float[Tensor, "n V"]:
        """Of the clean token at the positions of `where`, guided, without temperature. Other rows cost nothing."""
        log_p = self._ask(self.tokens, where, t)
        is_given = self.given.is_given
        has_given = where & is_given.any(1, keepdim=True)  # where nothing is given, both laws are the same
        if self.settings.guidance == 0 or not bool(has_given.any()):
            return log_p
        # Hidden given positions are asked for too: a network that knows the noise level takes the others for clean.
        hidden = has_given | (is_given & has_given.any(1, keepdim=True))
        alone = self._ask(torch.where(is_given, self.prior, self.tokens), hidden, t)[has_given[hidden]]
        rows = has_given[where]
        out = log_p.clone()
        out[rows] = guided(log_p[rows], alone, self.settings.guidance)
        return out

    def draw(self, log_p: Float[Tensor, "n V"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Tokens at the settings' temperature."""
        return draw(tempered(log_p, self.settings.temperature).double().exp(), u)

    def write(self, where: Bool[Tensor, "B L"], tokens: Int[Tensor, " n"]) -> None:
        self.tokens = self.tokens.masked_scatter(where, tokens)

    def _ask(
        self, tokens: Int[Tensor, "B L"], where: Bool[Tensor, "B L"], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "n V"]:
        self._n_asked += int(where.any(1).sum())
        return possible(self.view.log_p0(tokens, t, where).to(tokens.device))


def possible(log_p: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """log_p itself. Raises Refusal where a row of it has no token that can be drawn."""
    if not bool(torch.isfinite(log_p.amax(1)).all()):
        raise Refusal("sampling: the model gives no token a probability (NaN weights?); use another checkpoint")
    return log_p


def uniform(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "B ..."]:
    """Numbers in [0, 1), float64, of each row's own generator."""
    return torch.stack([torch.rand(shape, dtype=torch.float64, generator=g) for g in generators]).to(device)


def tempered(log_p: Float[Tensor, "n V"], temperature: float) -> Float[Tensor, "n V"]:
    """log_p ** (1 / temperature), normalised; at 0 the likeliest token alone, the lowest id of equal ones."""
    if temperature == 1:
        return log_p
    if temperature == 0:
        return torch.full_like(log_p, -torch.inf).scatter(1, log_p.argmax(1, keepdim=True), 0.0)
    return torch.log_softmax(log_p / temperature, dim=1)


def times(n_steps: Int[Tensor, " B"], step: int) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(t, s) of a step of each row, out of 1, (N - 1) / N, .., 0; both 0 for rows that have ended."""
    left = (n_steps - step).clamp(min=0)
    return left.double() / n_steps, (left - 1).clamp(min=0).double() / n_steps
