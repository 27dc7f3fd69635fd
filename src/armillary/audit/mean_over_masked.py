"""The weighted loss of masked diffusion divided by the hidden tokens, in place of all tokens.

Source: Sahoo et al. 2024 (MDLM), arXiv 2406.07524, eq. 10.
"""

from __future__ import annotations

import math
import statistics

import torch

from armillary.audit._finding import Finding
from armillary.audit._worlds import Memoryless, batch_of
from armillary.objectives.masked_diffusion import MaskedDiffusion

LAW = torch.tensor([8, 4, 2, 1, 1], dtype=torch.float64) / 16
N_ROWS, N_TOKENS, N_REPLICATES = 256, 64, 16


def reproduce() -> Finding:
    """Tokens without memory: no context helps, so the bound of the true law is its entropy, whatever is hidden."""
    entropy = float(-(LAW * LAW.log()).sum())
    network, objective = Memoryless(LAW.log()), MaskedDiffusion(pairs=False)
    generator = torch.Generator().manual_seed(0)
    rights, wrongs = [], []
    for _ in range(N_REPLICATES):
        text = torch.multinomial(LAW, N_ROWS * N_TOKENS, replacement=True, generator=generator)
        draws = objective.draw(N_ROWS, N_TOKENS, generator)
        loss = objective.loss(network, batch_of(text.view(N_ROWS, N_TOKENS)), draws)
        n_hidden = (1 + (draws["level"] * N_TOKENS).long()).sum()
        rights.append(float(loss.nats / loss.n_tokens))
        wrongs.append(float(loss.nats / n_hidden))
    right, wrong = statistics.fmean(rights), statistics.fmean(wrongs)
    error = statistics.stdev(rights) / math.sqrt(N_REPLICATES)

    def holds(nats: float) -> bool:
        return abs(nats - entropy) < 5 * error

    return Finding(
        about=f"the bound divided by hidden tokens, of tokens with an entropy of {entropy:.4f} nats",
        wrong=wrong,
        right=right,
        unit="nats/token",
        error=error,
        is_caught=holds(right) and not holds(wrong),
        how_caught="the bound of the true law must be its entropy, within five standard errors",
        source="Sahoo et al. 2024, arXiv 2406.07524, eq. 10",
    )
