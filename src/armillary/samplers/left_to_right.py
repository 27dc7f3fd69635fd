"""Left-to-right sampling: rows are admitted into slots, all advance by one token a step, ended ones are settled.

The engine holds no queue: the command line and Python admit what they have, a server adds a queue in front.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from armillary.contracts import BOS, EOS, PAD, UNK, NextToken, Tokenizer
from armillary.refusal import Refusal
from armillary.samplers._choosing import Choosing, choose

NEVER = frozenset({PAD, BOS, UNK})
"""Ids that are never drawn. EOS may be: it ends the row."""


class LeftToRight(Choosing):
    """Settings of a row. It ends at eos, before a `stop` string, after max_new_tokens, or where its slot is full."""

    views: ClassVar = ("next_token",)

    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ()

    @field_validator("stop")
    @classmethod
    def stops_hold_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every text at once; remove it")
        return stop

    def generate(
        self, view: NextToken, prompts: Sequence[Sequence[int]], seeds: Sequence[int], tokenizer: Tokenizer
    ) -> list[Continuation]:
        """One continuation a prompt, in order. See the function of that name."""
        return generate(view, prompts, self, seeds, tokenizer)


@dataclass(frozen=True)
class Request:
    """A prompt (at least one id) and how it goes on. forbidden: ids not drawn beside pad, bos and unk; None forbids
    the tokenizer's chat markers."""

    prompt: Sequence[int]
    settings: LeftToRight
    seed: int
    forbidden: frozenset[int] | None = None


@dataclass(frozen=True)
class Continuation:
    """What followed a prompt.

    tokens: all that was drawn, eos left out; those that spell a stop string are in it. text: up to the stop string.
    finish: "end" at eos, "stop" at a stop string, "length" at max_new_tokens or where the slot was full.
    log_p: nats, of everything drawn (eos too) under the model as it is, without temperature, filters or penalty; None
    where the sampler does not know it. n_tokens: how many were drawn, eos too. n_evaluations: how often the network was
    asked for the row; None where it is once a token.
    """

    tokens: list[int]
    text: str
    finish: Literal["end", "stop", "length"]
    log_p: float | None
    n_tokens: int
    n_evaluations: float | None = None


def generate(
    view: NextToken,
    prompts: Sequence[Sequence[int]],
    settings: LeftToRight,
    seeds: Sequence[int],
    tokenizer: Tokenizer,
) -> list[Continuation]:
    """One continuation a prompt, in order; where there are more prompts than slots, the next enter as slots empty.

    A row's text depends on its prompt and seed, never on the rows beside it. Raises Refusal for a prompt that is
    empty, holds an unknown id or is longer than a slot; nothing is drawn then.
    """
    requests = [Request(prompt, settings, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    engine = Engine(view, tokenizer)
    for request in requests:
        engine.check(request)
    out: dict[int, Continuation] = {}
    index_of: dict[int, int] = {}
    n_admitted = 0
    while len(out) < len(requests):
        indices = range(n_admitted, min(n_admitted + engine.n_free, len(requests)))
        index_of |= dict(zip(engine.admit([requests[i] for i in indices]), indices, strict=True))
        n_admitted += len(indices)
        engine.step()
        out |= {index_of[slot]: continuation for slot, continuation in engine.settle()}
    return [out[i] for i in range(len(requests))]


class Engine:
    """admit → step → settle, over the slots of a view. A slot names its row from `admit` to `settle`."""

    def __init__(self, view: NextToken, tokenizer: Tokenizer) -> None:
        self.view, self.tokenizer = view, tokenizer
        self._markers = frozenset(tokenizer.markers.values())
        self._free = list(range(view.n_slots))
        self._running: list[_Row] = []
        self._ended: list[_Row] = []
        self._log_p: Tensor = torch.empty(0)  # (running rows, V), of each one's next token

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_running(self) -> int:
        return len(self._running)

    def check(self, request: Request) -> None:
        """Raises Refusal where the prompt does not fit, before any work."""
        prompt, capacity, n_vocab = request.prompt, self.view.capacity, self.tokenizer.n_vocab
        if len(prompt) == 0:
            raise Refusal(f"prompt: holds no token; begin it with end-of-text (id {EOS})")
        if len(prompt) > capacity:
            raise Refusal(f"prompt: {len(prompt)} tokens, and the context holds {capacity}; shorten the prompt")
        unknown = [token for token in prompt if not 0 <= token < n_vocab]
        if unknown:
            raise Refusal(f"prompt: no token has id {unknown[0]} (vocabulary {n_vocab}); use the run's tokenizer")

    def admit(self, requests: Sequence[Request]) -> list[int]:
        """Prompts of any lengths, in one pass, into free slots (at most `n_free`). Returns the slot of each."""
        if len(requests) > self.n_free:
            raise ValueError(f"{len(requests)} requests for {self.n_free} free slots")
        if not requests:
            return []
        for request in requests:
            self.check(request)
        slots = self._free[: len(requests)]
        log_p = self.view.start(slots, [request.prompt for request in requests])
        self._free = self._free[len(requests) :]
        rows = self._running + [self._row(slot, request) for slot, request in zip(slots, requests, strict=True)]
        # In order of slots: a view may be faster where it is asked for all of them in order.
        order = sorted(range(len(rows)), key=lambda i: rows[i].slot)
        self._log_p = (torch.cat([self._log_p, log_p]) if self._running else log_p)[order]
        self._running = [rows[i] for i in order]
        return slots

    def step(self) -> dict[int, str]:
        """One more token for every running row. Returns the new text of the slots that have some.

        The pieces of a slot add up to its continuation's text: they are never cut inside a character, and what may
        become a stop string is held back until that is decided.
        """
        rows = self._running
        if not rows:
            return {}
        tokens = choose(
            self._log_p,
            [row.request.settings for row in rows],
            [row.generator for row in rows],
            [row.seen for row in rows],
            [row.forbidden for row in rows],
        ).to(self._log_p.device)
        log_p = self._log_p.gather(1, tokens[:, None]).squeeze(1)
        pieces = {}
        for row, token, row_log_p in zip(rows, tokens.tolist(), log_p.tolist(), strict=True):
            pieces[row.slot] = row.push(token, row_log_p, self.tokenizer.token_bytes(token))
        going = [i for i, row in enumerate(rows) if row.finish is None]
        self._ended += [row for row in rows if row.finish is not None]
        self._running = [rows[i] for i in going]
        if going:
            self._log_p = self.view.advance([row.slot for row in self._running], tokens[going])
        return {slot: piece for slot, piece in pieces.items() if piece}

    def settle(self) -> list[tuple[int, Continuation]]:
        """Slots whose row has ended since the last call, with what they hold; the slots are free again."""
        settled = [(row.slot, row.continuation()) for row in self._ended]
        if settled:
            self.view.release([slot for slot, _ in settled])
        self._free = sorted(self._free + [slot for slot, _ in settled])
        self._ended = []
        return settled

    def _row(self, slot: int, request: Request) -> _Row:
        return _Row(
            slot=slot,
            request=request,
            forbidden=NEVER | (self._markers if request.forbidden is None else request.forbidden),
            # The last token drawn is never fed back, so a full slot still gives one.
            n_most=min(request.settings.max_new_tokens, self.view.capacity - len(request.prompt) + 1),
            generator=torch.Generator().manual_seed(request.seed),
            text=_Text(request.settings.stop),
            seen=set(request.prompt),
        )


@dataclass
class _Row:
    slot: int
    request: Request
    forbidden: frozenset[int]
    n_most: int
    generator: torch.Generator
    text: _Text
    seen: set[int]
    tokens: list[int] = field(default_factory=list)
    n_tokens: int = 0
    log_p: float = 0.0
    finish: Literal["end", "stop", "length"] | None = None

    def push(self, token: int, log_p: float, piece: bytes) -> str:
        """Takes a drawn token and its bytes (none at eos); returns the text that is certain now."""
        self.log_p += log_p
        self.n_tokens += 1
        text = self.text.push(piece)
        if token == EOS:
            self.finish = "end"
        else:
            self.tokens.append(token)
            self.seen.add(token)
            if self.text.is_stopped:
                self.finish = "stop"
            elif self.n_tokens == self.n_most:
                self.finish = "length"
        return text if self.finish is None else text + self.text.close()

    def continuation(self) -> Continuation:
        assert self.finish is not None
        return Continuation(self.tokens, self.text.so_far, self.finish, self.log_p, self.n_tokens)


class _Text:
    """Bytes in, whole characters out, up to the first stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.so_far = ""
        self.is_stopped = False
        self._stops = [s.encode() for s in stop]
        self._held = b""  # may be the beginning of a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds a character's first bytes

    def push(self, piece: bytes) -> str:
        self._held += piece
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if not starts:
            return self._release(len(self._held) - self._n_undecided())
        self.is_stopped = True
        text = self._release(min(starts))
        self._held = b""
        return text

    def close(self) -> str:
        """The rest: nothing more comes. Bytes that are no character come as U+FFFD, as in Tokenizer.decode."""
        text = self._decoder.decode(self._held, final=True)
        self._held = b""
        self.so_far += text
        return text

    def _n_undecided(self) -> int:
        lengths = (n for stop in self._stops for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)

    def _release(self, n: int) -> str:
        text = self._decoder.decode(self._held[:n])
        self._held = self._held[n:]
        self.so_far += text
        return text
