"""Pairs of a set of hidden tokens and its complement, where the empty complement counts as half a pair of 0 nats.

Source: Ou et al. 2024, arXiv 2406.03736, for the bound over counts of hidden tokens.
"""

from __future__ import annotations

import torch

from armillary.audit._finding import Finding
from armillary.audit._worlds import Oracle, any_texts, every_mask, through_masks
from armillary.objectives.masked_diffusion import MaskedDiffusion


def reproduce() -> Finding:
    """All texts, all orders and all counts: nothing is left to chance."""
    texts = any_texts(3, 4, seed=0)
    oracle = Oracle(texts, through_masks)
    batch, draws, weight = every_mask(texts)
    right = float((weight * MaskedDiffusion().score(oracle, batch, draws).sum(1)).sum())
    single = weight * MaskedDiffusion(pairs=False).score(oracle, batch, draws).sum(1)
    n_hidden = 1 + (draws["level"] * texts.n_tokens).long()
    # Over all orders the complement of k hidden tokens is n - k hidden ones: of n, it is none.
    of_count = torch.stack([single[n_hidden == k].sum() for k in range(1, texts.n_tokens + 1)])
    wrong = float((of_count.sum() + of_count[:-1].sum()) / 2)

    def holds(nats: float) -> bool:
        return abs(nats - texts.entropy) < 1e-9

    return Finding(
        about=f"bound of a perfect denoiser on texts of {texts.n_tokens} tokens with an entropy of "
        f"{texts.entropy:.4f} nats",
        wrong=wrong,
        right=right,
        unit="nats/text",
        is_caught=holds(right) and not holds(wrong),
        how_caught="the bound of a perfect denoiser must be the entropy, by enumeration",
        source="Ou et al. 2024, arXiv 2406.03736",
    )
