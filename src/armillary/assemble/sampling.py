"""Texts from a network, through the recipe's sampler and the view it needs: prompts continued, or holes filled."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from armillary import registry
from armillary.assemble import compatibility
from armillary.assemble.build import OpenModel
from armillary.assemble.parts import Parts
from armillary.contracts import BOS, EOS, PAD, Given, State, Tokenizer
from armillary.model.any_order import AnyOrderView
from armillary.model.blocks import CachedBlocks
from armillary.model.denoise import DenoiseView
from armillary.model.latent import LatentView
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import CachedNextToken
from armillary.randomness import key
from armillary.refusal import Refusal, nearest
from armillary.samplers.left_to_right import NEVER, Continuation

USUAL_NEW_TOKENS = 64
"""Of a text, where neither the recipe nor its sampler says."""

UNDECIDED = "░"
"""Stands for a token that is not there yet, in a text on its way."""

MOST_PROBABILITIES = 2**26
"""Positions times vocabulary whose laws are held at once, in float64 and a few times over: about 2 GB."""
HOLE = re.compile(r"<(\d{1,6})>")

Watch = Callable[[list[str]], None]
"""Called with all texts as they stand, whenever some have changed."""


@dataclass(frozen=True)
class Manner:
    """How texts are drawn: a sampler with its settings, the view it is given and the (term of the) objective that
    offers it. n_new: most new tokens of a text. limit: the longest row the model can see, None for any."""

    sampler: Any
    view: str
    objective: Any
    n_new: int
    limit: int | None


@dataclass(frozen=True)
class Filled:
    """A template with its holes filled. n_tokens: of the holes. n_evaluations: as in a Continuation."""

    text: str
    holes: list[str]
    n_tokens: int
    n_evaluations: float


def settings(
    parts: Parts,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    fields: Mapping[str, Any],
    max_new_tokens: int | None = None,
) -> Manner:
    """The recipe's sampler with these fields set. max_new_tokens None: the recipe's, or what the context still holds.

    Raises Refusal for a field that the sampler does not have, and where a prompt, or a prompt and what was asked for,
    does not fit a context of learned positions.
    """
    part, own = parts.sampler, parts.recipe.sampling
    view = compatibility.shared_view(parts.objective, part)
    assert view is not None and own.sampler is not None, "a resolved recipe"
    longest = max((len(tokenizer.encode(prompt)) + 1 for prompt in prompts), default=1)
    limit = parts.backbone.max_length
    room = limit - longest if limit is not None else None
    if room is not None and room < 1:
        raise Refusal(f"the prompt is {longest} tokens, the model's context {limit}; shorten the prompt")
    if room is not None and max_new_tokens is not None and max_new_tokens > room:
        raise Refusal(
            f"--max-new-tokens {max_new_tokens}: the model's context is {limit} tokens and the prompt takes {longest}; "
            f"ask for at most {room}"
        )
    wanted = max_new_tokens or own.max_new_tokens or getattr(part, "max_new_tokens", USUAL_NEW_TOKENS)
    n_new = wanted if room is None else min(wanted, room)
    length = {"max_new_tokens": n_new} if "max_new_tokens" in type(part).model_fields else {}
    changed = _with_fields(part, own.sampler.name, fields)
    sampler = registry.check(type(part), {**part.model_dump(), **changed, **length}, "sample", parts.folders)
    return Manner(sampler, view, compatibility.offering(parts.objective, view), n_new, limit)


def _with_fields(part: Any, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the sampler, and those of the one inside it (of blockwise) where only that one has them."""
    inner = getattr(part, "inside", None)
    known, within = type(part).model_fields, {} if inner is None else type(inner).model_fields
    own = {field: value for field, value in fields.items() if field in known}
    for field in sorted(fields.keys() - own.keys() - within.keys()):
        flag = f"--{field.replace('_', '-')}"
        raise Refusal(f"{flag}: sampler {name} has no {field}; {nearest(field, [*known, *within])}")
    nested = {field: value for field, value in fields.items() if field not in own}
    return own | ({"sampler": {**part.sampler.model_dump(), **nested}} if nested else {})


def from_model(
    model: OpenModel, prompts: Sequence[str], manner: Manner, seed: int = 0, watch: Watch | None = None
) -> list[Continuation]:
    """`continuations` in the precision the recipe names, compiled where it says so."""
    compiled = model.parts.recipe.sampling.compile
    return continuations(model.sampled_from, model.tokenizer, prompts, manner, seed, watch, compiled=compiled)


def continuations(
    network: LanguageNetwork,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    manner: Manner,
    seed: int = 0,
    watch: Watch | None = None,
    *,
    compiled: bool = False,
) -> list[Continuation]:
    """One continuation a prompt; row i draws from (seed, i), whatever the others are.

    Where the sampler is not left to right, each is n_new tokens long and its text ends before the first eos. watch is
    called there only.
    """
    if manner.view == "next_token":
        rows = [[BOS, *tokenizer.encode(prompt)] for prompt in prompts]
        capacity = max(len(row) for row in rows) + manner.n_new
        view = CachedNextToken(network, len(rows), capacity, compiled=compiled)
        return manner.sampler.generate(view, rows, [key(seed, "sample", i) for i in range(len(rows))], tokenizer)
    made = [Row.of(tokenizer, [prompt, manner.n_new]) for prompt in prompts]
    found = _resolved(network, tokenizer, made, manner, (seed, NEVER, watch))
    return [_continuation(row.holes(tokens)[0], tokenizer, n) for row, (tokens, n) in zip(made, found, strict=True)]


def infill(
    model: OpenModel, templates: Sequence[str], manner: Manner, seed: int = 0, watch: Watch | None = None
) -> list[Filled]:
    """Templates such as "The <8> of the <4>.", a hole of eight tokens and one of four; all other text stays as it is.

    Row i draws from (seed, i). Raises Refusal where there is no hole, or the sampler fills none.
    """
    rows = template_rows(model, templates, manner)
    found = _resolved(model.sampled_from, model.tokenizer, rows, manner, (seed, NEVER | {EOS}, watch))
    filled = []
    for row, (tokens, n_evaluations) in zip(rows, found, strict=True):
        holes = [model.tokenizer.decode(hole) for hole in row.holes(tokens)]
        filled.append(Filled(row.text(holes), holes, sum(not given for given in row.is_given), n_evaluations))
    return filled


def template_rows(model: OpenModel, templates: Sequence[str], manner: Manner) -> list[Row]:
    """The rows of `infill`, refused before any work where they cannot be filled."""
    if manner.view == "next_token":
        raise Refusal("--infill: this model writes from left to right; holes need a run of another objective")
    rows = []
    for template in templates:
        split = HOLE.split(template)  # text, number, text, ...
        pieces = [int(piece) if i % 2 else piece for i, piece in enumerate(split)]
        if len(pieces) == 1 or 0 in pieces:
            raise Refusal(f"--infill: {template!r:.60} has no hole to fill; write <8> for one of eight tokens")
        rows.append(Row.of(model.tokenizer, [piece for piece in pieces if piece != ""]))
        length = len(rows[-1].tokens)
        if manner.limit is not None and length > manner.limit:
            raise Refusal(f"--infill: the text is {length} tokens, the model's context {manner.limit}; shorten it")
    return rows


@dataclass(frozen=True)
class Row:
    """Text (str) and holes (int, their tokens) in turn, behind bos. lengths: tokens of each piece."""

    pieces: tuple[str | int, ...]
    lengths: tuple[int, ...]
    tokens: list[int]
    is_given: list[bool]

    @classmethod
    def of(cls, tokenizer: Tokenizer, pieces: Sequence[str | int]) -> Row:
        found = [tokenizer.encode(piece) if isinstance(piece, str) else [PAD] * piece for piece in pieces]
        given = [isinstance(piece, str) for piece, ids in zip(pieces, found, strict=True) for _ in ids]
        tokens = [BOS, *(token for ids in found for token in ids)]
        return cls(tuple(pieces), tuple(map(len, found)), tokens, [True, *given])

    def holes(self, tokens: Sequence[int]) -> list[list[int]]:
        """What the tokens of the row have in each hole."""
        found, start = [], 1
        for piece, length in zip(self.pieces, self.lengths, strict=True):
            if isinstance(piece, int):
                found.append(list(tokens[start : start + length]))
            start += length
        return found

    def text(self, holes: Sequence[str]) -> str:
        rest = iter(holes)
        return "".join(piece if isinstance(piece, str) else next(rest) for piece in self.pieces)


def _resolved(
    network: LanguageNetwork,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    manner: Manner,
    how: tuple[int, frozenset[int], Watch | None],
) -> list[tuple[list[int], float]]:
    """Tokens of each row at the end, and evaluations a row. how: seed, ids that are never drawn beside chat markers,
    who watches."""
    seed, never, watch = how
    forbidden = never | frozenset(tokenizer.markers.values())
    texts = [row.text([UNDECIDED * len(hole) for hole in row.holes(row.tokens)]) for row in rows]
    out: dict[int, tuple[list[int], float]] = {}
    for indices, state in _states(network, rows, manner, seed, forbidden):
        found = state.tokens.tolist()
        out |= {i: (tokens, state.n_evaluations) for i, tokens in zip(indices, found, strict=True)}
        if watch is not None:
            for i in indices:
                texts[i] = rows[i].text([spelled(hole, tokenizer) for hole in rows[i].holes(out[i][0])])
            watch(list(texts))
    return [out[i] for i in range(len(rows))]


@torch.inference_mode()
def _states(
    network: LanguageNetwork, rows: Sequence[Row], manner: Manner, seed: int, forbidden: frozenset[int]
) -> Iterator[tuple[list[int], State]]:
    """Rows of one length at a time: padding would be more positions to see, and another text.

    What is not left to right draws in float64, which mps lacks: there a copy on the CPU is asked.
    """
    if network.embedding.weight.device.type == "mps":
        network = copy.deepcopy(network).cpu()
    device = network.embedding.weight.device
    own = slice(1 if manner.view == "any_order" else 0, None)  # that view reads bos itself, in front of the row
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row.tokens), []).append(i)
    for indices in _within_memory(groups, network.n_vocab):
        tokens = torch.tensor([rows[i].tokens for i in indices], device=device)
        is_given = torch.tensor([rows[i].is_given for i in indices], device=device)
        generators = [torch.Generator().manual_seed(key(seed, "sample", i)) for i in indices]
        view = VIEWS[manner.view](network, manner.objective, forbidden)
        for state in manner.sampler.run(view, Given(tokens[:, own], is_given[:, own]), generators):
            whole = tokens.clone()
            whole[:, own] = state.tokens
            yield indices, State(whole, state.n_evaluations)


def _within_memory(groups: dict[int, list[int]], n_vocab: int) -> Iterator[list[int]]:
    """Rows that are sampled together. A text depends on its own row alone, so this changes none."""
    for length, indices in groups.items():
        n = max(1, MOST_PROBABILITIES // (length * n_vocab))
        yield from (indices[start : start + n] for start in range(0, len(indices), n))


VIEWS: dict[str, Callable[[LanguageNetwork, Any, frozenset[int]], Any]] = {
    "absorbing": DenoiseView,
    "uniform": DenoiseView,
    "blocks": CachedBlocks,
    "any_order": lambda network, objective, forbidden: AnyOrderView(network, forbidden),
    "latent": lambda network, objective, forbidden: LatentView(network, forbidden),
}


def spelled(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text on its way, up to the first eos: a mark for every token that is not there yet."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if token == EOS:
            break
        if token < tokenizer.n_vocab:
            runs[-1].append(token)
        else:
            runs.append([])
    return UNDECIDED.join(tokenizer.decode(run) for run in runs)


def _continuation(tokens: list[int], tokenizer: Tokenizer, n_evaluations: float) -> Continuation:
    has_ended = EOS in tokens
    kept = tokens[: tokens.index(EOS)] if has_ended else tokens
    finish = "end" if has_ended else "length"
    # Not `decode`, which begins a text: words that follow a prompt keep the space before them.
    text = b"".join(map(tokenizer.token_bytes, kept)).decode("utf-8", errors="replace")
    return Continuation(kept, text, finish, None, len(kept) + has_ended, n_evaluations)
