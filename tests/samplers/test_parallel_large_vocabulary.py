"""Two stages at a large vocabulary: where one stage in float32 loses rare tokens, they keep their mass.

Source: Zheng et al. 2024, arXiv 2409.02908, section 5 (noise of 24 bits lowers the temperature in effect).
"""

from __future__ import annotations

import math

import torch
from parallel_oracle import Oracle, last, p_value

from armillary.contracts import Given
from armillary.corruption.absorbing import Absorbing
from armillary.samplers.ancestral import Ancestral

V, N_STEPS = 50_257, 1024
ZIPF = 1 / torch.arange(1, V + 1, dtype=torch.float64)
ZIPF /= ZIPF.sum()
CLASS_ENDS = torch.tensor([1, 10, 100, 1000, 10_000])
"""Tokens by rank."""
CLASSES = torch.bucketize(torch.arange(V), CLASS_ENDS, right=True)
CLASS_LAW = torch.zeros(6, dtype=torch.float64).index_add_(0, CLASSES, ZIPF)


class ZipfView(Oracle):
    """One law for every position, whatever stands beside it."""

    def __init__(self):
        super().__init__(Absorbing(V), ZIPF)

    def log_p0(self, tokens, t, where):
        return ZIPF.log().float().expand(int(where.sum()), V)


def one_stage(n_draws, unmask, n_bits, generator):
    """Tokens of the draws that MASK does not win, by Gumbel-argmax over [p * unmask, 1 - unmask].

    As in older samplers: noise -log u of each entry, u a uniform number of n_bits, and the least noise / weight wins.
    Noise is drawn only where it can win: MASK's is at most n_bits log 2, so that of a token must be below its weight
    times that. All other entries lose whatever they are.
    """
    dtype = torch.float32 if n_bits == 24 else torch.float64
    weight = ZIPF * unmask
    n_winning = (weight / (1 - unmask) * n_bits * math.log(2) * 2**n_bits).floor()  # of 2 ** n_bits values of u
    n_of = torch.binomial(torch.full((V,), float(n_draws), dtype=torch.float64), n_winning / 2**n_bits, generator)
    token = torch.arange(V).repeat_interleave(n_of.long())
    rand = torch.rand(2, len(token), dtype=torch.float64, generator=generator)
    row = (rand[0] * n_draws).long()
    step = (rand[1] * n_winning[token]).floor() + 1
    u = (1 - step / 2**n_bits).to(dtype)
    score = -u.log() / weight[token].to(dtype)
    of_mask = torch.rand(n_draws, dtype=dtype, generator=generator).clamp(min=2.0**-n_bits)
    of_mask = -of_mask.log() / (1 - unmask)
    least = torch.full((n_draws,), torch.inf, dtype=dtype).scatter_reduce(0, row, score, "amin")
    return token[(score < of_mask[row]) & (score == least[row])]


def test_one_stage_in_float32_loses_rare_tokens():
    n_draws, unmask = 2_000_000, 1 / N_STEPS
    lost, p = {}, {}
    for n_bits in (24, 50):
        tokens = one_stage(n_draws, unmask, n_bits, torch.Generator().manual_seed(0))
        lost[n_bits] = 1 - len(tokens) / (n_draws * unmask)
        p[n_bits] = p_value(CLASSES[tokens][:, None], CLASS_LAW, 6)
    assert lost[24] > 0.25 and p[24] < 1e-9
    assert abs(lost[50]) < 0.08 and p[50] > 1e-3  # the same code, with enough bits


def test_two_stages_keep_them():
    given = Given(torch.zeros(1, 500, dtype=torch.long), torch.zeros(1, 500, dtype=torch.bool))
    state = last(Ancestral(steps=N_STEPS).run(ZipfView(), given, [torch.Generator().manual_seed(1)]))
    assert int(state.tokens.max()) < V
    assert p_value(CLASSES[state.tokens[0]][:, None], CLASS_LAW, 6) > 1e-3
