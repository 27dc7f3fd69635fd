"""Texts continued by a network: prompts in, continuations out, through the recipe's sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from armillary import registry
from armillary.assemble.build import OpenModel
from armillary.assemble.parts import Parts
from armillary.contracts import BOS, Tokenizer
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import CachedNextToken
from armillary.randomness import key
from armillary.refusal import Refusal
from armillary.samplers.left_to_right import Continuation, LeftToRight


def settings(
    parts: Parts,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    fields: Mapping[str, Any],
    max_new_tokens: int | None = None,
) -> LeftToRight:
    """The recipe's sampler with these fields set. max_new_tokens None: the recipe's, or what the context still holds.

    Raises Refusal where a prompt, or a prompt and what was asked for, does not fit a context of learned positions.
    """
    part = parts.sampler
    longest = max(len(tokenizer.encode(prompt)) + 1 for prompt in prompts)
    limit = parts.backbone.max_length
    room = limit - longest if limit is not None else None
    if room is not None and room < 1:
        raise Refusal(f"the prompt is {longest} tokens, the model's context {limit}; shorten the prompt")
    if room is not None and max_new_tokens is not None and max_new_tokens > room:
        raise Refusal(
            f"--max-new-tokens {max_new_tokens}: the model's context is {limit} tokens and the prompt takes {longest}; "
            f"ask for at most {room}"
        )
    wanted = max_new_tokens if max_new_tokens is not None else part.max_new_tokens
    n_new = wanted if room is None else min(wanted, room)
    whole = {**part.model_dump(), **fields, "max_new_tokens": n_new}
    return registry.check(type(part), whole, "sample")


def continuations(
    network: LanguageNetwork,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampler: LeftToRight,
    seed: int = 0,
    *,
    compiled: bool = False,
) -> list[Continuation]:
    """One continuation a prompt; row i draws from (seed, i), whatever the others are."""
    rows = [[BOS, *tokenizer.encode(prompt)] for prompt in prompts]
    capacity = max(len(row) for row in rows) + sampler.max_new_tokens
    view = CachedNextToken(network, len(rows), capacity, compiled=compiled)
    return sampler.generate(view, rows, [key(seed, "sample", i) for i in range(len(rows))], tokenizer)


def from_model(model: OpenModel, prompts: Sequence[str], sampler: LeftToRight, seed: int = 0) -> list[Continuation]:
    """`continuations` in the precision the recipe names, compiled where it says so."""
    how = model.parts.recipe.sampling
    network = model.network.bfloat16() if how.precision == "bf16" else model.network
    return continuations(network, model.tokenizer, prompts, sampler, seed, compiled=how.compile)
