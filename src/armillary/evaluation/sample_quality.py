"""How good are texts that a model wrote: likely under another model, and as varied as real ones.

Either alone is easy to please: one sentence over and over is likely, noise is varied. So each figure belongs beside
the other two, and beside those of real text of the same length.
Source: generative perplexity and entropy of a sequence, Zheng et al. 2024, arXiv 2409.02908; distinct n-grams,
Li et al. 2016, arXiv 1510.03055.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from armillary.contracts import BOS, Batch, Network, Objective
from armillary.records import perplexity
from armillary.refusal import Refusal

LARGEST_N = 3

Tokens = Sequence[int]


@dataclass(frozen=True)
class Quality:
    """Of n_texts texts.

    tokens_per_text: the mean length; figures of texts of other lengths are not comparable. judge_perplexity: of a token
    of the judge; stderr_log_perplexity: of its logarithm, over texts, None of one text. entropy_nats: of the tokens of
    one text, the mean over texts. distinct: different n-grams over all n-grams of all texts, for n = 1 to LARGEST_N.
    """

    n_texts: int
    tokens_per_text: float
    judge_perplexity: float
    stderr_log_perplexity: float | None
    entropy_nats: float
    distinct: tuple[float, ...]


def quality(texts: Sequence[Tokens], judged: Sequence[tuple[float, int]]) -> Quality:
    """texts: tokens of the writer; judged: (nats, tokens) of each text, by `judge`. Texts without a token are left out,
    and yet counted in n_texts and in the mean length."""
    nats, counts = (np.array(column, dtype=float) for column in zip(*judged, strict=True))
    written = [text for text in texts if len(text)]
    if not written or not counts.sum():
        raise Refusal("sample quality: no text has a token; ask for more tokens, or train for longer")
    rate = nats.sum() / counts.sum()
    spread = np.sqrt(((nats - rate * counts) ** 2).sum() * len(texts) / max(len(texts) - 1, 1)) / counts.sum()
    return Quality(
        n_texts=len(texts),
        tokens_per_text=sum(map(len, texts)) / len(texts),
        judge_perplexity=perplexity(rate),
        stderr_log_perplexity=float(spread) if len(texts) > 1 else None,
        entropy_nats=float(np.mean([entropy(text) for text in written])),
        distinct=tuple(distinct(written, n) for n in range(1, LARGEST_N + 1)),
    )


def entropy(text: Tokens) -> float:
    """Nats: -Σ p log p over the frequencies of its tokens. At most log(length)."""
    n = len(text)
    return sum(-count / n * math.log(count / n) for count in Counter(text).values())


def distinct(texts: Sequence[Tokens], n: int) -> float:
    """0 where there is no n-gram."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def judge(network: Network, objective: Objective, rows: Sequence[Tokens], window: int) -> list[tuple[float, int]]:
    """(nats, tokens) of each text under a model with an exact likelihood. rows: the judge's tokens, without bos.

    A text longer than the window is read in windows that overlap by half. Run it under inference mode.
    Raises Refusal for a bound: a difference of bounds says nothing of texts.
    """
    if objective.kind != "exact":
        raise Refusal("--by: the judge needs an exact likelihood; give a run whose objective is autoregressive")
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    out = []
    for row in rows:
        tokens, nats, done = torch.tensor([BOS, *row]), 0.0, 0
        while done < len(row):
            end = min(len(row), done + (max(1, window // 2) if done else window))
            places = torch.arange(max(0, end - window), end + 1)
            batch = Batch(tokens[places][None], (places > done)[None]).to(device)
            draws = objective.draw(1, len(places) - 1, generator)
            nats += float(objective.score(network, batch, draws).double().sum())
            done = end
        out.append((nats, len(row)))
    return out
