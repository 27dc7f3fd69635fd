"""Uniform diffusion with the posterior of a token given all tokens, where the bound wants the one given all others.

Source: arXiv 2605.22765; the bound: Schiff et al. 2024 (UDLM), arXiv 2412.10193, eq. 19.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from armillary.audit._finding import Finding
from armillary.audit._worlds import Oracle, Texts, any_texts, batch_of, through_noise
from armillary.contracts import Layout
from armillary.objectives.uniform_diffusion import UniformDiffusion

N_TIMES = 48


def reproduce() -> Finding:
    """All texts, all corruptions of them, and quadrature over t: nothing is left to chance."""
    texts = any_texts(3, 2, seed=0)
    oracle = Oracle(texts, through_noise)
    clean, noisy, t, weight = _everything(texts)
    kept = 1 - t[:, None]
    # A number that makes the corruption give just this noisy token.
    u = torch.where(noisy == clean, kept / 2, kept + (1 - kept) * (noisy + 0.5) / texts.n_vocab)
    nats = UniformDiffusion().score(oracle, batch_of(clean), {"level": t, "u": u})
    right = float((weight * nats.sum(1)).sum())
    wrong = float((weight * _with_plain_posterior(oracle, clean, noisy, t)).sum())

    def holds(nats: float) -> bool:
        return abs(nats - texts.entropy) < 0.01

    return Finding(
        about=f"bound of a perfect denoiser on texts of {texts.n_tokens} tokens with an entropy of "
        f"{texts.entropy:.4f} nats",
        wrong=wrong,
        right=right,
        unit="nats/text",
        is_caught=holds(right) and not holds(wrong),
        how_caught="the bound of a perfect denoiser must be the entropy, by enumeration",
        source="arXiv 2605.22765; Schiff et al. 2024, arXiv 2412.10193, eq. 19",
    )


def _everything(texts: Texts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(clean texts, noisy texts, t, probability times the weight of the quadrature), a row each."""
    nodes, weights = np.polynomial.legendre.leggauss(N_TIMES)
    root = torch.from_numpy((nodes + 1) / 2)  # t = root ** 3 makes the logarithm at t = 0 smooth
    times = (root**3).clamp(1e-5, 1 - 1e-5)
    steps = torch.from_numpy(weights / 2) * 3 * root**2
    n = len(texts.p)
    rows = torch.tensor(list(itertools.product(range(n), range(n), range(N_TIMES))))
    clean, noisy, t = texts.tokens[rows[:, 0]], texts.tokens[rows[:, 1]], times[rows[:, 2]]
    moved = (t / texts.n_vocab)[:, None]
    seen = torch.where(noisy == clean, 1 - t[:, None] + moved, moved).prod(1)
    return clean, noisy, t, texts.p[rows[:, 0]] * seen * steps[rows[:, 2]]


def _with_plain_posterior(oracle: Oracle, clean: Tensor, noisy: Tensor, t: Tensor) -> Float[Tensor, " B"]:
    """Eq. 19 with p(x | all positions) put in as it is."""
    n_vocab, alpha = oracle.n_vocab, 1 - t[:, None, None]
    p = oracle.hidden(noisy, Layout("full"), t[:, None]).exp()
    truth = n_vocab * alpha * torch.nn.functional.one_hot(clean, n_vocab) + 1 - alpha
    guess = n_vocab * alpha * p + 1 - alpha
    u, v = truth / truth.gather(2, noisy[..., None]), guess / guess.gather(2, noisy[..., None])
    return ((u * (u / v).log() - u + v) / (n_vocab * alpha)).sum((1, 2))
