"""What a sampler may ask of a model, and what a parallel sampler is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts.flow import Given, State


@runtime_checkable
class NextToken(Protocol):
    """The view a left-to-right sampler has of a model: log-probabilities of the next token, slot by slot."""

    @property
    def capacity(self) -> int:
        """Most tokens a slot can hold."""
        ...

    @property
    def n_slots(self) -> int: ...

    def start(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Float[Tensor, "n V"]:
        """Admits prompts of any lengths into empty slots."""
        ...

    def advance(self, slots: Sequence[int], tokens: Int[Tensor, " n"]) -> Float[Tensor, "n V"]:
        """One more token for each of these slots."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Empties slots whose text has ended."""
        ...


@runtime_checkable
class Denoise(Protocol):
    """The view of a model that restores corrupted positions, all of them in parallel."""

    @property
    def n_vocab(self) -> int: ...

    def alpha(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]: ...

    def time(self, alpha: Float[Tensor, " B"]) -> Float[Tensor, " B"]: ...

    def prior(self, u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Tokens at t = 1, from uniform numbers."""
        ...

    def undecided(self, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Positions that may still change."""
        ...

    def log_p0(
        self, tokens: Int[Tensor, "B L"], t: Float[Tensor, " B"], where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "n V"]:
        """Of the clean token at the n positions of `where`, in order; for a uniform corruption, given all others."""
        ...

    def reverse(
        self,
        tokens: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
        log_p0: Float[Tensor, "n V"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
        u: Float[Tensor, "B L 2"],
    ) -> Int[Tensor, "B L"]:
        """One step of the reverse process from t to s, at the positions of `where`."""
        ...


@runtime_checkable
class Blocks(Protocol):
    """The view of a model that writes block after block, all rows together. Of the block in hand it is a Denoise."""

    @property
    def block(self) -> int:
        """Positions of a block."""
        ...

    def open(self, n_rows: int, n_tokens: int) -> Denoise:
        """Empty rows of n_tokens; the view that restores their current block, at first the first.

        It is asked with all rows of that block, (B, b) tokens; rows without a position in `where` cost nothing.
        """
        ...

    def close_block(self, tokens: Int[Tensor, "B b"]) -> None:
        """The current block is finished: the next one sees these tokens. Only the last block may be shorter."""
        ...


@runtime_checkable
class AnyOrder(Protocol):
    """The view of a causal model that reads tokens in any order and is asked for any position.

    order: the positions of a row as they are read; the k-th of them is slot k. tokens are by position, and hold any
    id where nothing is known yet, V too. Answers are by slot, row after row.
    """

    @property
    def n_vocab(self) -> int: ...

    def draft(
        self, tokens: Int[Tensor, "B L"], order: Int[Tensor, "B L"], n_known: Int[Tensor, " B"]
    ) -> Float[Tensor, "n V"]:
        """log_p of each slot from n_known on, given the n_known slots before it alone, as if it came next."""
        ...

    def verify(
        self, tokens: Int[Tensor, "B L"], order: Int[Tensor, "B L"], where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "n V"]:
        """log_p of the n slots of `where`, each given all slots before it, in one causal pass."""
        ...


@runtime_checkable
class Latent(Protocol):
    """The view of a flow over latents: a text is one draw of them, decoded token by token."""

    @property
    def n_numbers(self) -> int:
        """Of a token's latent."""
        ...

    def log_p(self, noise: Float[Tensor, "B L N"], given: Given) -> Float[Tensor, "n V"]:
        """Of each token that is not given, from standard normal noise."""
        ...


@runtime_checkable
class ParallelSampler(Protocol):
    """A file of samplers/ for the views that are not left to right. The last state is the result.

    Two uniform numbers or more for each position and step come from the row's own generator, so that a row's text does
    not depend on the rows beside it.
    """

    views: ClassVar[tuple[str, ...]]

    def run(self, view: Any, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]: ...
