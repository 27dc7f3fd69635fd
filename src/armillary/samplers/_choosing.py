"""One token from log_p: repetition penalty, temperature, top-k, top-p, min-p, then an unbiased draw.

Source: Keskar et al. 2019, arXiv 1909.05858 (penalty); Fan et al. 2018, arXiv 1805.04833 (top-k); Holtzman et al. 2020,
arXiv 1904.09751 (top-p); Nguyen et al. 2024, arXiv 2407.01082 (min-p).
Differs: the penalty multiplies log_p, which is never positive; CTRL divides logits, whose zero is arbitrary.
The draw inverts the distribution function in float64: noise added in float32 (Gumbel-max) is biased in the tail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from armillary.corruption.categorical import draw
from armillary.refusal import Refusal
from armillary.registry import Part

FIRST_NUCLEUS = 256
"""Tokens ranked at first for top-p; eight times more as long as some row's nucleus does not fit."""


class Choosing(Part):
    """How one token is chosen. temperature 0 takes the likeliest; the filters apply in the order of the fields.

    top_p is a share of what top_k left; min_p is relative to the likeliest token. None leaves a filter out.
    """

    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)


def choose(
    log_p: Float[Tensor, "n V"],
    settings: Sequence[Choosing],
    generators: Sequence[torch.Generator],
    seen: Sequence[Collection[int]] = (),
    forbidden: Sequence[Collection[int]] = (),
) -> Int[Tensor, " n"]:
    """A token for each row, from its own settings and its own generator (one uniform draw; none when greedy).

    seen: ids of a row's prompt and output, for the repetition penalty. forbidden: ids a row never gets. A row's token
    does not depend on the other rows. Ties go to the lowest id. Raises Refusal where no allowed token has a
    probability.
    """
    if log_p.device.type == "mps":  # has no float64
        log_p = log_p.cpu()
    log_p = _without(_penalised(log_p, settings, seen), forbidden)
    if not bool(torch.isfinite(log_p.amax(1)).all()):
        raise Refusal("sampling: the model gives no allowed token a probability (NaN weights?); use another checkpoint")
    groups: dict[tuple[float | None, ...], list[int]] = {}
    for row, s in enumerate(settings):
        groups.setdefault((s.temperature, s.top_k, s.top_p, s.min_p), []).append(row)
    tokens = torch.empty(log_p.shape[0], dtype=torch.long, device=log_p.device)
    for rows in groups.values():
        part = log_p if len(groups) == 1 else log_p[rows]
        if settings[rows[0]].temperature == 0:
            tokens[rows] = part.argmax(1)
        else:
            u = torch.cat([torch.rand(1, dtype=torch.float64, generator=generators[row]) for row in rows])
            tokens[rows] = _draw(part, settings[rows[0]], u.to(part.device))
    return tokens


def _penalised(
    log_p: Float[Tensor, "n V"], settings: Sequence[Choosing], seen: Sequence[Collection[int]]
) -> Float[Tensor, "n V"]:
    penalties = [s.repetition_penalty or 1.0 for s in settings]
    if all(penalty == 1 for penalty in penalties):
        return log_p
    rows, ids = _pairs([ids if penalty != 1 else () for ids, penalty in zip(seen, penalties, strict=True)])
    log_p = log_p.clone()
    log_p[rows, ids] *= torch.tensor(penalties, dtype=log_p.dtype, device=log_p.device)[rows]
    return log_p


def _without(log_p: Float[Tensor, "n V"], forbidden: Sequence[Collection[int]]) -> Float[Tensor, "n V"]:
    rows, ids = _pairs(forbidden)
    if not rows:
        return log_p
    log_p = log_p.clone()
    log_p[rows, ids] = -torch.inf
    return log_p


def _pairs(sets: Sequence[Collection[int]]) -> tuple[list[int], list[int]]:
    rows = [row for row, ids in enumerate(sets) for _ in ids]
    return rows, [token for ids in sets for token in ids]


def _draw(log_p: Float[Tensor, "n V"], s: Choosing, u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    ids = None
    if s.top_k is not None and s.top_k < log_p.shape[1]:
        log_p, ids = _largest(log_p, s.top_k)
    weights = log_p.to(torch.float64, copy=True)
    weights.sub_(weights.amax(1, keepdim=True)).div_(s.temperature).exp_()  # the likeliest weighs 1
    if s.top_p is not None and s.top_p < 1:
        weights, places = _nucleus(weights, s.top_p)
        ids = places if ids is None else ids.gather(1, places)
    if s.min_p is not None:
        weights = weights.where(weights >= s.min_p, 0.0)
    place = draw(weights, u)
    return place if ids is None else ids.gather(1, place[:, None]).squeeze(1)


def _nucleus(weights: Float[Tensor, "n V"], p: float) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The smallest set whose mass is at least p of the whole, ranked; weights outside it are 0."""
    n_tokens = weights.shape[1]
    # cumsum, not sum: its order does not depend on how many rows there are
    least = p * weights.cumsum(1)[:, -1:]
    n_ranked = min(FIRST_NUCLEUS, n_tokens)
    while True:
        ranked, ids = _largest(weights, n_ranked)
        mass = ranked.cumsum(1)
        if n_ranked == n_tokens or bool((mass[:, -1:] >= least).all()):
            break
        n_ranked = min(8 * n_ranked, n_tokens)
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    return ranked.where(before < least, 0.0), ids


def _largest(x: Float[Tensor, "n V"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of each row, largest first, equal ones by id. (What topk does with equal ones is not defined.)"""
    values, ids = x.topk(min(k + 1, x.shape[1]))
    if x.shape[1] > k and bool((values[:, k - 1] == values[:, k]).any()):
        least = values[:, k - 1 : k]
        above, equal = x > least, x == least
        n_missing = k - above.sum(1, keepdim=True)
        ids = (above | (equal & (equal.cumsum(1) <= n_missing))).nonzero()[:, 1].view(-1, k)
    else:
        ids = ids[:, :k].sort(1).values
    values, order = x.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)
