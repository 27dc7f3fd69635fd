"""Tiny networks, texts and draws: small enough to enumerate all there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from armillary.contracts import BOS, Batch, Layout
from armillary.model.network import LanguageNetwork
from armillary.nn.head import VocabularyHead
from armillary.registry import make

V, L = 3, 3
TINY = {
    "bijective": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8, "coupling": "affine"},
    "gpt": {"d_model": 8, "n_layers": 1, "n_heads": 2, "max_length": 12},
    "llama": {"d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 8},
    "perigee": {"model_dim": 8, "num_layers": 1, "num_heads": 2, "oscillator_count": 2, "window": 3, "max_radius": 2},
    "respsann": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 8, "positional_encoding": "alibi"},
    "waveresnet": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 8},
}
"""A new backbone joins here; test_pairs holds this to the registry."""


def network_for(backbone: str, objective: Any, n_vocab: int = V, std: float = 1.0) -> LanguageNetwork:
    """In float64, far from its initialisation, where mistakes hide."""
    torch.manual_seed(0)
    shape = TINY[backbone] | ({"knows_noise_level": True} if "noise_level" in objective.needs else {})
    network = LanguageNetwork(
        make("backbones", backbone, shape),
        n_vocab,
        n_extra=objective.n_extra_embeddings,
        is_told_targets="target_positions" in objective.needs,
        has_encoder="encoder" in objective.needs,
    )
    network = network.double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network


class Told:
    """A network that answers what a function of (tokens, noise level) says: logits (B, L, V). See contracts.Network."""

    def __init__(self, n_vocab: int, logits: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self.n_vocab, self.logits = n_vocab, logits
        self.head = VocabularyHead(torch.eye(n_vocab, dtype=torch.float64))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return iter(())

    def hidden(self, tokens: Tensor, layout: Layout, noise_level: Tensor | None = None) -> Tensor:
        return self.logits(tokens, noise_level)


class Overheard:
    """A network that keeps what it was shown."""

    def __init__(self, network: Any) -> None:
        self.network, self.n_vocab, self.head = network, network.n_vocab, network.head
        self.seen: list[tuple[Tensor, Layout, Tensor | None]] = []

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.network.parameters()

    def hidden(self, tokens: Tensor, layout: Layout, noise_level: Tensor | None = None) -> Tensor:
        self.seen.append((tokens, layout, noise_level))
        return self.network.hidden(tokens, layout, noise_level)


def batch_of(texts: Tensor, scored: Tensor | None = None) -> Batch:
    """Rows <bos> + text; every token of the text is scored unless `scored` (T,) says otherwise."""
    tokens = torch.nn.functional.pad(texts, (1, 0), value=BOS)
    row = torch.ones(texts.shape[1], dtype=torch.bool) if scored is None else scored
    return Batch(tokens, torch.nn.functional.pad(row, (1, 0)).expand(tokens.shape).contiguous())


def each_with_each(**draws: Tensor) -> dict[str, Tensor]:
    """Every combination of the rows of several draws."""
    lengths = [torch.arange(len(draw)) for draw in draws.values()]
    index = torch.cartesian_prod(*lengths).view(-1, len(lengths)).T
    return {name: draw[i] for (name, draw), i in zip(draws.items(), index, strict=True)}


def for_each_text(draws: dict[str, Tensor], n_texts: int) -> dict[str, Tensor]:
    return {name: torch.cat([draw] * n_texts) for name, draw in draws.items()}


def scores(objective: Any, network: Any, texts: Tensor, draws: dict[str, Tensor], scored: Tensor | None = None):
    """(X, N) nats of each text under each of N draws."""
    n = len(next(iter(draws.values())))
    batch = batch_of(texts.repeat_interleave(n, 0), scored)
    return objective.score(network, batch, for_each_text(draws, len(texts))).sum(1).view(len(texts), n)


def mean_loss(objective: Any, network: Any, texts: Tensor, draws: dict[str, Tensor]):
    """(differentiable total, nats) of the loss over all texts, averaged over draws."""
    n = len(next(iter(draws.values())))
    loss = objective.loss(network, batch_of(texts.repeat_interleave(n, 0)), for_each_text(draws, len(texts)))
    assert int(loss.n_tokens) == n * texts.numel()
    return loss.total / n, loss.nats / n


def counts(n: int) -> Tensor:
    """The levels that stand for k = 1 .. n."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def log_p_table(network: Any, states: Tensor, noise_level: float | None = None) -> Tensor:
    """(Z, L, V): log_p at every position of every state."""
    return _table(network, states, noise_level, normalised=True)


def logit_table(network: Any, states: Tensor, noise_level: float | None = None) -> Tensor:
    return _table(network, states, noise_level, normalised=False)


def _table(network: Any, states: Tensor, noise_level: float | None, *, normalised: bool) -> Tensor:
    level = None if noise_level is None else torch.full((len(states), 1), noise_level, dtype=torch.float64)
    rows = network.hidden(states, Layout("full"), level).flatten(0, 1)
    return network.head.reduce(rows, lambda x: x, normalised=normalised).unflatten(0, states.shape)
