"""One draw from tokens and MASK together, by noise in float32: rare tokens can hardly win, and MASK wins for them.

Source: Zheng et al. 2024, arXiv 2409.02908, section 4 (noise of 32 bits makes texts less diverse).
Differs: the law of what is drawn is derived for each token and for the race of exponentials, which is the same argmax.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armillary.audit._finding import Finding
from armillary.corruption.absorbing import Absorbing

N_VOCAB, N_STEPS = 50_257, 1_024
N_RACES, N_POSITIONS = 2**23, 2**22
GRID = 2.0**-24
"""torch.rand gives the multiples of it below 1, each with equal probability, in float32."""
REACH = 32
"""MASK's exponential number is beyond it once in e^32 races."""
P_VALUE = 1e-4


def reproduce() -> Finding:
    """The first of 1,024 steps, from tokens whose probability falls as 1 / rank."""
    p = zipf(N_VOCAB)
    generator = torch.Generator().manual_seed(0)
    law = effective_mass(p, 1 / N_STEPS)
    one_stage = race(p, 1 / N_STEPS, N_RACES, generator)
    two_stage = _reversed(p, N_POSITIONS, generator)
    surprise = -p.log()[two_stage]
    right, error = float(surprise.mean()), float(surprise.std()) / math.sqrt(len(two_stage))
    wrong = float(-(law / law.sum()).log()[one_stage].mean())

    def holds(tokens: Int[Tensor, " n"], n_draws: int) -> bool:
        return p_value(tokens, n_draws, p, 1 / N_STEPS) > P_VALUE

    return Finding(
        about=f"entropy of what one of {N_STEPS:,} steps reveals at V = {N_VOCAB:,}; by the formula it falls from "
        f"{_entropy(p):.2f} to {_entropy(law):.2f}, and {1 - N_STEPS * float(law.sum()):.0%} is not revealed at all",
        wrong=wrong,
        right=right,
        unit="nats",
        error=error,
        is_caught=holds(two_stage, N_POSITIONS) and not holds(one_stage, N_RACES),
        how_caught="χ² of the revealed tokens by rank, and of how many are revealed",
        source="Zheng et al. 2024, arXiv 2409.02908, section 4",
    )


def zipf(n_vocab: int) -> Float[Tensor, " V"]:
    p = 1 / torch.arange(1, n_vocab + 1, dtype=torch.float64)
    return p / p.sum()


def effective_mass(p: Float[Tensor, " V"], unmask: float) -> Float[Tensor, " V"]:
    """How often each token wins in float32: q a / (e^a - 1), a = 2^-24 / q, in place of q = unmask p.

    It wins where its number is below q times MASK's, and its number is a multiple of 2^-24, the first one not 0.
    """
    return GRID / torch.expm1(GRID / (unmask * p))


def race(p: Float[Tensor, " V"], unmask: float, n_races: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """The tokens that win where each one's q / -log u is held against MASK's (1 - q) / -log u, u of torch.rand.

    Only a u within REACH q of 1 can win. So of the n_races * V numbers those few are drawn, and no others.
    """
    q = unmask * p
    n_places = torch.ceil(REACH * q / GRID)
    n_near = torch.poisson(n_races * n_places * GRID, generator=generator).long()
    tokens = torch.arange(len(p)).repeat_interleave(n_near)
    place = 1 + torch.floor(torch.rand(len(tokens), dtype=torch.float64, generator=generator) * n_places[tokens])
    u = (1 - place * GRID).float()
    clock = -torch.rand(n_races, generator=generator).log()
    number = torch.randint(n_races, (len(tokens),), generator=generator)
    score = q.float()[tokens] / -u.log()
    wins = score > torch.tensor(1 - unmask) / clock[number]
    tokens, number, score = tokens[wins], number[wins], score[wins]
    best = torch.zeros(n_races).scatter_reduce(0, number, score, "amax")
    return tokens[score == best[number]]


def _reversed(p: Float[Tensor, " V"], n_positions: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """The tokens that the package's own step reveals."""
    corruption, shape = Absorbing(len(p)), (64, 2048)
    hidden = torch.full(shape, corruption.mask)
    log_p0 = p.log().expand(hidden.numel(), -1)  # not stored: all positions have the same law
    t = torch.ones(shape[0], dtype=torch.float64)
    found = []
    for _ in range(n_positions // hidden.numel()):
        u = torch.rand(*shape, 2, dtype=torch.float64, generator=generator)
        out = corruption.reverse(hidden, torch.ones(shape, dtype=torch.bool), log_p0, t, t - 1 / N_STEPS, u)
        found.append(out[out != corruption.mask])
    return torch.cat(found)


def p_value(tokens: Int[Tensor, " n"], n_draws: int, p: Float[Tensor, " V"], unmask: float) -> float:
    """χ² over classes of ranks that double, and the positions that stay hidden."""
    rank = torch.arange(1, len(p) + 1)
    of_rank = torch.log2(rank.double()).floor().long()
    expected = n_draws * unmask * torch.zeros(int(of_rank[-1]) + 1).double().index_add(0, of_rank, p)
    counts = torch.bincount(of_rank[tokens], minlength=len(expected)).double()
    expected = torch.cat([expected, n_draws - expected.sum()[None]])
    counts = torch.cat([counts, n_draws - counts.sum()[None]])
    statistic = ((counts - expected) ** 2 / expected).sum()
    n_free = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(n_free, statistic / 2))


def _entropy(mass: Float[Tensor, " V"]) -> float:
    p = mass / mass.sum()
    return float(-torch.xlogy(p, p).sum())
