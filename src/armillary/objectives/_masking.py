"""Which positions an absorbing objective hides in a step, and what each of them weighs: shared by three objectives.

Source: Sahoo et al. 2024, arXiv 2406.07524, eq. 10, for the integral over t; Ou et al. 2024, arXiv 2406.03736, for its
form without t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import BOS, Batch, Layout, Network
from armillary.corruption.schedules import Schedule

MOST_LEFT = 1e-6
"""alpha(1) up to which an absorbing schedule counts as ended: geometric leaves e^-20."""


@dataclass(frozen=True)
class Masking:
    """hidden: positions the network does not see. weight: of the nats of each, zero where nothing is hidden.

    With pairs there are 2 B rows: those with a set hidden, then the same rows with the others.
    """

    hidden: Bool[Tensor, "R T"]
    weight: Float[Tensor, "R T"]


def undecided(batch: Batch) -> Bool[Tensor, "B T"]:
    """What an objective that looks ahead must restore: the scored tokens, and the bos behind a scored eos.

    Were that bos given, it would tell where the document before it ends, and eos would be free.
    """
    tokens, scored = batch.tokens, batch.scored
    bos = (tokens[:, 1:] == BOS) & scored[:, :-1]
    if batch.segments is not None:  # nobody sees across documents
        bos = bos & (batch.segments[:, 1:] == batch.segments[:, :-1])
    return scored[:, 1:] | bos


def layout_of(batch: Batch) -> Layout:
    """The tokens of [1:], all of which see each other within their segment."""

    segments, positions = batch.segments, batch.positions
    if positions is not None:
        # The document a row begins with is seen from its second token on, and that is its place 0: a row as long as
        # the learned positions would end one place beyond them.
        positions = (positions - 1 if segments is None else positions - (segments == segments[:, :1]).long())[:, 1:]
    return Layout("full", segments=None if segments is None else segments[:, 1:], positions=positions)


def twice(layout: Layout) -> Layout:
    """The layout of the rows and of the same rows again."""

    def double(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x, x])

    return Layout(layout.direction, double(layout.segments), double(layout.positions), block=layout.block)


def stratified(n: int, generator: torch.Generator, n_each: int | None = None) -> Float[Tensor, "..."]:
    """n numbers in [0, 1), one in each n-th of it, in random order; n_each: that many independent columns."""
    shape = (n,) if n_each is None else (n, n_each)
    strata = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(0)
    inside = torch.rand(shape, generator=generator, dtype=torch.float64)
    return ((strata + inside) / n).float().clamp(max=1 - 2**-24)


def fine(n_rows: int, n_tokens: int, generator: torch.Generator) -> Float[Tensor, "B T"]:
    """Uniform numbers in float64: little noise looks at the last thousandth of them, where float32 has 16,777 values,
    and a token out of V is chosen there."""
    return torch.rand(n_rows, n_tokens, generator=generator, dtype=torch.float64)


def levels(where: Bool[Tensor, "B T"], t: Float[Tensor, "B 1"]) -> Float[Tensor, "B T"]:
    """The noise level of each position: t where it is corrupted, 0 where it is given clean."""
    return torch.where(where, t, torch.zeros_like(t))


def excess(w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """e^w - 1 - w, which is never negative, also where its terms cancel."""
    small = w * w / 2 * (1 + w / 3)
    return torch.where(w.abs() < 1e-3, small, torch.expm1(w) - w)


def alpha_and_slope(schedule: Schedule, t: Float[Tensor, "B 1"]) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """In float64, alpha kept off 0 and 1, where ratios of noise have no logarithm."""
    return schedule.alpha(t.double()).clamp(1e-12, 1 - 1e-12), schedule.slope(t.double())


def random_order(n_rows: int, n_tokens: int, generator: torch.Generator) -> Int[Tensor, "B T"]:
    """Each row a permutation of 0 .. n_tokens - 1: the rank of each position."""
    return torch.rand(n_rows, n_tokens, generator=generator, dtype=torch.float64).argsort(1)


def weighted_nats(
    network: Network, rows: Float[Tensor, "R T D"], tokens: Int[Tensor, "R T"], weight: Float[Tensor, "R T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "R T"]]:
    """(what is differentiated, the weighted nats of each position, detached)."""
    where = weight > 0
    weights = weight[where].to(torch.promote_types(rows.dtype, torch.float32))
    total, nats = network.head.weighted_nll(rows[where], tokens[where], weights)
    out = torch.zeros(where.shape, dtype=nats.dtype, device=nats.device)
    out[where] = nats * weights
    return total, out


def by_count(open_: Bool[Tensor, "B T"], order: Int[Tensor, "B T"], level: Float[Tensor, " B"], pairs: bool) -> Masking:
    """k ~ U{1 .. n} of a row's n open positions, weight n / k: no t, no end point, no blow-up.

    Pairs: a set and its complement, half of each; k = n stands alone with its full weight.
    """
    n = open_.sum(1, keepdim=True)
    k = (1 + (level[:, None] * n).long()).clamp(max=n.clamp(min=1))
    # The rank of a position among the open ones of its row: closed ones come last.
    key = torch.where(open_, order, torch.iinfo(order.dtype).max)
    rank = key.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    hidden = open_ & (rank < k)
    whole = n.to(level.dtype)
    if not pairs:
        return Masking(hidden, hidden * (whole / k))
    others = open_ & ~hidden
    half = torch.where(k < n, whole / 2, whole)
    weight = torch.cat([hidden * (half / k), others * (whole / 2 / (n - k).clamp(min=1))])
    return Masking(torch.cat([hidden, others]), weight)


def by_time(
    open_: Bool[Tensor, "B T"], u: Float[Tensor, "B T"], t: Float[Tensor, " B"], schedule: Schedule, pairs: bool
) -> Masking:
    """Every open position hidden with probability 1 - alpha(t), weight -alpha' / (1 - alpha).

    Pairs: u and 1 - u, at the same t.
    """
    t = t.double()[:, None].clamp(min=1e-6)
    alpha, slope = schedule.alpha(t), schedule.slope(t)
    hidden = torch.cat([open_ & (u >= alpha), open_ & (1 - u >= alpha)]) if pairs else open_ & (u >= alpha)
    weight = -slope / (1 - alpha).clamp(min=1e-12)
    return Masking(hidden, hidden * (torch.cat([weight, weight]) / 2 if pairs else weight))
