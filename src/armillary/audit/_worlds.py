"""Worlds whose answers are known: a few short texts with their probabilities, and networks that know them.

The networks see what an objective's network sees (contracts.Network) and use the head of every other model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armillary.contracts import Batch, Layout
from armillary.nn.head import VocabularyHead


@dataclass(frozen=True)
class Texts:
    """Every text of L tokens, with its probability."""

    n_vocab: int
    tokens: Int[Tensor, "N L"]
    p: Float[Tensor, " N"]

    @property
    def n_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def entropy(self) -> float:
        """Nats of a text."""
        return float(-(self.p * self.p.log()).sum())


def any_texts(n_vocab: int, n_tokens: int, seed: int) -> Texts:
    """Probabilities that follow no pattern, so that every token depends on every other."""
    tokens = _every(n_vocab, n_tokens)
    generator = torch.Generator().manual_seed(seed)
    return Texts(n_vocab, tokens, torch.softmax(2 * torch.randn(len(tokens), generator=generator).double(), 0))


def steady_texts(n_vocab: int, n_tokens: int, stay: float) -> Texts:
    """A token is the one before it with probability `stay`, else any other."""
    tokens = _every(n_vocab, n_tokens)
    n_kept = (tokens[:, 1:] == tokens[:, :-1]).sum(1)
    log_p = n_kept * math.log(stay) + (n_tokens - 1 - n_kept) * math.log((1 - stay) / (n_vocab - 1))
    return Texts(n_vocab, tokens, torch.softmax(log_p.double(), 0))


def _every(n_vocab: int, n_tokens: int) -> Int[Tensor, "N L"]:
    return torch.tensor(list(itertools.product(range(n_vocab), repeat=n_tokens)))


def batch_of(tokens: Int[Tensor, "B L"]) -> Batch:
    """Rows as a loader gives them: a token in front that is never scored."""
    scored = torch.ones(tokens.shape[0], tokens.shape[1] + 1, dtype=torch.bool)
    scored[:, 0] = False
    return Batch(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1), scored)


@dataclass(frozen=True)
class Memoryless:
    """Gives every position the same law, whatever stands around it. log_p: float64."""

    law: Float[Tensor, " V"]

    @property
    def n_vocab(self) -> int:
        return len(self.law)

    @property
    def head(self) -> VocabularyHead:
        return VocabularyHead(self.law[:, None])

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        yield torch.nn.Parameter(self.law, requires_grad=False)

    def hidden(
        self, tokens: Int[Tensor, "B L"], layout: Layout, noise_level: Float[Tensor, " B #L"] | None = None
    ) -> Float[Tensor, "B L 1"]:
        return torch.ones(*tokens.shape, 1, dtype=self.law.dtype)


Fits = Callable[[Int[Tensor, "B 1 L"], Texts, "Tensor | None"], Tensor]
"""(corrupted rows, texts, noise level) → (B, N, L): how likely each text is seen like that, position by position."""


def through_masks(rows: Int[Tensor, "B 1 L"], texts: Texts, noise_level: Tensor | None) -> Float[Tensor, "B N L"]:
    """MASK hides any token; how many are hidden says nothing of the text."""
    return ((rows == texts.tokens) | (rows == texts.n_vocab)).double()


def through_noise(rows: Int[Tensor, "B 1 L"], texts: Texts, noise_level: Tensor | None) -> Float[Tensor, "B N L"]:
    """A token stays with probability 1 - t, else it becomes any token of the vocabulary."""
    assert noise_level is not None
    t = noise_level[:, None].double()
    return torch.where(rows == texts.tokens, 1 - t + t / texts.n_vocab, t / texts.n_vocab)


@dataclass(frozen=True)
class Oracle:
    """Restores corrupted texts as well as can be done: each token's posterior, by Bayes' rule over all texts."""

    texts: Texts
    fits: Fits

    @property
    def n_vocab(self) -> int:
        return self.texts.n_vocab

    @property
    def head(self) -> VocabularyHead:
        return VocabularyHead(torch.eye(self.n_vocab, dtype=torch.float64))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        yield torch.nn.Parameter(self.texts.p, requires_grad=False)

    def hidden(
        self, tokens: Int[Tensor, "B L"], layout: Layout, noise_level: Float[Tensor, " B #L"] | None = None
    ) -> Float[Tensor, "B L V"]:
        weights = self.fits(tokens[:, None], self.texts, noise_level).prod(2) * self.texts.p
        holds = torch.nn.functional.one_hot(self.texts.tokens, self.n_vocab).double()
        joint = torch.einsum("bn,nlv->blv", weights, holds)
        return (joint / joint.sum(2, keepdim=True)).log()


def every_mask(texts: Texts) -> tuple[Batch, dict[str, Tensor], Float[Tensor, " B"]]:
    """(rows, draws, probabilities): each text under every order and every count of hidden tokens that can be drawn."""
    n = texts.n_tokens
    orders = torch.tensor(list(itertools.permutations(range(n))))
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    text, order, level = (
        x.flatten() for x in torch.meshgrid(*map(torch.arange, (len(texts.p), len(orders), n)), indexing="ij")
    )
    draws = {"order": orders[order], "level": levels[level]}
    return batch_of(texts.tokens[text]), draws, texts.p[text] / (len(orders) * n)


@dataclass(frozen=True)
class Urn:
    """A token is drawn from an urn and put back with another of its kind; at first there are `each` of every kind.

    What is seen, in whatever places, tells all that can be known of the others.
    """

    n_vocab: int
    each: float = 1.0

    @property
    def head(self) -> VocabularyHead:
        return VocabularyHead(torch.eye(self.n_vocab, dtype=torch.float64))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        yield torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def hidden(
        self, tokens: Int[Tensor, "B L"], layout: Layout, noise_level: Float[Tensor, " B #L"] | None = None
    ) -> Float[Tensor, "B L V"]:
        """MASK, id V, is not seen."""
        counts = (
            torch.nn.functional.one_hot(tokens, self.n_vocab + 1)[..., : self.n_vocab].sum(1, keepdim=True).double()
        )
        p = (counts + self.each) / (counts.sum(2, keepdim=True) + self.n_vocab * self.each)
        return p.log().expand(-1, tokens.shape[1], -1)

    def nats(self, tokens: Int[Tensor, " n"]) -> float:
        """-log p of a text, in whatever order it is read."""
        counts = torch.bincount(tokens, minlength=self.n_vocab).double()
        own = (torch.lgamma(counts + self.each) - math.lgamma(self.each)).sum()
        whole = self.n_vocab * self.each
        return math.lgamma(len(tokens) + whole) - math.lgamma(whole) - float(own)
