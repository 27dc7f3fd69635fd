"""Blocks from left to right, the positions of each restored by another sampler.

Source: Arriola et al. 2025 (BD3-LM), arXiv 2503.09573, algorithm 2; of a masked model (semi-autoregressive decoding):
Nie et al. 2025 (LLaDA), arXiv 2502.09992.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from armillary import registry
from armillary.contracts import Blocks, Denoise, Given, ParallelSampler, State
from armillary.recipe import Choice
from armillary.refusal import Refusal
from armillary.registry import Compound


class Blockwise(Compound):
    """sampler: what restores a block. block: its length, for a model that has no blocks of its own.

    A model with blocks of its own has not seen what is given in a later block until that block comes; a masked one
    sees it from the start. n_evaluations counts the pass that closes a block where there is one.
    """

    views: ClassVar[tuple[str, ...]] = ("blocks", "absorbing")

    sampler: Choice = Choice(name="confident")
    block: int | None = Field(default=None, ge=1)

    @property
    def inside(self) -> ParallelSampler:
        return registry.make("samplers", self.sampler.name, self.sampler.fields, self._folders)

    @model_validator(mode="after")
    def a_block_is_restored_in_parallel(self) -> Blockwise:
        views = getattr(registry.find("samplers", self.sampler.name, self._folders), "views", ())
        if "absorbing" not in views or "blocks" in views:
            raise ValueError(f"sampler '{self.sampler.name}' does not restore masked positions; take 'ancestral'")
        if getattr(self.inside, "guidance", 0):  # wrong fields are refused now, not while it runs
            raise ValueError("guidance: a prompt in finished blocks cannot be hidden again; leave it out")
        return self

    def run(self, view: Blocks | Denoise, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        n_rows, n_tokens = given.tokens.shape
        blocks, n_closing = self._blocks_of(view, given)
        current = blocks.open(n_rows, n_tokens)
        tokens = torch.where(given.is_given, given.tokens, current.prior(torch.zeros_like(given.tokens).double()))
        inside, n_done = self.inside, 0.0
        for start in range(0, n_tokens, blocks.block):
            part = slice(start, start + blocks.block)
            n_here = 0.0
            for state in inside.run(current, Given(given.tokens[:, part], given.is_given[:, part]), generators):
                tokens[:, part], n_here = state.tokens, state.n_evaluations
                yield State(tokens.clone(), n_done + n_here)
            n_done += n_here
            if start + blocks.block < n_tokens:
                blocks.close_block(tokens[:, part])
                n_done += n_closing

    def _blocks_of(self, view: Blocks | Denoise, given: Given) -> tuple[Blocks, int]:
        """(the view as one that has blocks, evaluations that closing a block costs)."""
        if not isinstance(view, Blocks):
            if self.block is None:
                raise Refusal("blockwise: this model has no blocks of its own; set the sampler's block to their length")
            return _Cut(view, given, self.block), 0
        if self.block not in (None, view.block):
            raise Refusal(f"blockwise: block is {self.block}, and the model's blocks hold {view.block}; leave it out")
        return view, 1


class _Cut:
    """A view of whole rows, cut into blocks: what follows the block in hand is masked, but for what is given there."""

    def __init__(self, view: Denoise, given: Given, block: int) -> None:
        self.view, self.given, self.block = view, given, block
        self.n_vocab, self.alpha, self.time = view.n_vocab, view.alpha, view.time
        self.prior, self.undecided, self.reverse = view.prior, view.undecided, view.reverse

    def open(self, n_rows: int, n_tokens: int) -> Denoise:
        self._start = 0
        u = torch.zeros(n_rows, n_tokens, dtype=torch.float64, device=self.given.tokens.device)
        self._tokens = torch.where(self.given.is_given, self.given.tokens, self.view.prior(u))
        return self

    def close_block(self, tokens: Int[Tensor, "B b"]) -> None:
        self._tokens = self._with(self._tokens, tokens)
        self._start += self.block

    def log_p0(
        self, tokens: Int[Tensor, "B b"], t: Float[Tensor, " B"], where: Bool[Tensor, "B b"]
    ) -> Float[Tensor, "n V"]:
        asked = torch.zeros_like(self._tokens, dtype=torch.bool)
        return self.view.log_p0(self._with(self._tokens, tokens), t, self._with(asked, where))

    def _with(self, row: Tensor, part: Tensor) -> Tensor:
        out = row.clone()
        out[:, self._start : self._start + part.shape[1]] = part
        return out
