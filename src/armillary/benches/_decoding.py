"""Greedy decoding with a cache, and without one: every token then reads the whole text before it again."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import CachedNextToken


@torch.inference_mode()
def cached(view: CachedNextToken, prompts: Int[Tensor, "B P"], n_new: int) -> Int[Tensor, "B N"]:
    """The view has as many slots as there are rows."""
    slots = list(range(len(prompts)))
    drawn = [view.start(slots, prompts.tolist()).argmax(1)]
    while len(drawn) < n_new:
        drawn.append(view.advance(slots, drawn[-1]).argmax(1))
    return torch.stack(drawn, 1).cpu()


@torch.inference_mode()
def recomputed(network: LanguageNetwork, prompts: Int[Tensor, "B P"], n_new: int) -> Int[Tensor, "B N"]:
    rows = prompts.to(network.embedding.weight.device)
    for _ in range(n_new):
        last = network.hidden(rows, Layout("causal"))[:, -1]
        rows = torch.cat([rows, network.head.log_p(last).argmax(1, keepdim=True)], 1)
    return rows[:, -n_new:].cpu()


@torch.inference_mode()
def widest_tie(
    network: LanguageNetwork, prompts: Int[Tensor, "B P"], one: Int[Tensor, "B N"], other: Int[Tensor, "B N"]
) -> float:
    """Nats between the two likeliest tokens where a row's two texts first part, at most over rows; 0 where none do."""
    gaps = [0.0]
    for prompt, a, b in zip(prompts, one, other, strict=True):
        parted = (a != b).nonzero()
        if len(parted):
            read = torch.cat([prompt, a[: int(parted[0])]]).to(network.embedding.weight.device)
            best = network(read[None], Layout("causal"))[0, -1].topk(2).values
            gaps.append(float(best[0] - best[1]))
    return max(gaps)
