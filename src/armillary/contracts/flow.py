"""What flows between rooms: layouts, batches, losses, texts on their way.

Units are nats. t = 0 is clean, t = 1 fully corrupted. `log_p` is normalised, `logits` are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PAD, BOS, EOS, UNK = 0, 1, 2, 3
"""Ids every tokenizer gives its four special tokens. Text never encodes to them."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Layout:
    """Who may see whom, given to every mixer at every call and never fixed at construction.

    direction: "causal" (a position sees itself and earlier ones), "full" (all), or "blocks" (the input is
    [noisy ; clean], 2 L wide, cut in blocks of `block` positions; arXiv 2503.09573).
    segments: which document a position belongs to, -1 for padding; positions see only their own segment.
    None says that each row is one segment without padding, and lets attention take its fastest path.
    positions: the place of each token in its document, for positional encodings; None says 0 .. L-1.
    target_positions: the position each one predicts, in any-order runs only (arXiv 2404.09562).
    """

    direction: Literal["causal", "full", "blocks"] = "causal"
    segments: Int[Tensor, "B L"] | None = None
    positions: Int[Tensor, "B L"] | None = None
    target_positions: Int[Tensor, "B L"] | None = None
    block: int | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of T+1 tokens. Autoregressive: inputs [:-1], targets [1:]; every other objective takes tokens [1:].

    segments: document number within the row, -1 for padding; None where rows are whole and documents may see
    each other. scored: which tokens count in the loss (the first of a row never does).
    """

    tokens: Int[Tensor, "B T1"]
    scored: Bool[Tensor, "B T1"]
    segments: Int[Tensor, "B T1"] | None = None
    positions: Int[Tensor, "B T1"] | None = None

    def rows(self, which: slice | Tensor) -> Batch:
        """Some of the rows: a micro-batch, a rank's share, or those of these numbers."""
        return self._each(lambda x: x[which])

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        told = (None if x is None else change(x) for x in (self.segments, self.positions))
        return Batch(change(self.tokens), change(self.scored), *told)


@dataclass(frozen=True)
class Loss:
    """Sums, never means: the loop divides by the scored tokens of the whole step, over micro-batches and ranks.

    total: what is differentiated (label smoothing, weights and auxiliary terms included).
    nats: the likelihood or bound itself, detached, nothing but the likelihood. parts: named components, detached sums.
    """

    total: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    n_tokens: Int[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a sampler must leave as it is: a prompt, a suffix, holes between. tokens count only where is_given."""

    tokens: Int[Tensor, "B L"]
    is_given: Bool[Tensor, "B L"]


@dataclass(frozen=True)
class State:
    """Texts on their way. n_evaluations: rows that the network was asked for so far, over the rows there are."""

    tokens: Int[Tensor, "B L"]
    n_evaluations: float
