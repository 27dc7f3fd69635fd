"""Decoding speed: {a batch, one text after the other} × {a cache, the prefix read again for every token}."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from armillary.benches._decoding import cached, recomputed, widest_tie
from armillary.benches._found import Desk, Found, ratio, spread
from armillary.benches._shaped import Sized, n_parameters
from armillary.model.next_token import CachedNextToken


class KvCache(Sized):
    """Every contender draws the same batch × new tokens greedily; contenders take turns, a round each.

    compile: steps behind the prompt run compiled where there is a cache. Weights and arithmetic are fp32, and random.
    """

    d_model: int = Field(512, ge=1)
    n_layers: int = Field(8, ge=1)
    n_heads: int = Field(8, ge=1)
    batch: int = Field(8, ge=1)
    prompt: int = Field(96, ge=1)
    new: int = Field(64, ge=1)
    rounds: int = Field(3, ge=1)
    compile: bool = False
    quick: ClassVar = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_vocab": 64, "batch": 2, "prompt": 6, "new": 4,
                       "rounds": 2}  # fmt: skip

    def check(self, desk: Desk) -> None:
        for base in self.base:
            self.parts(base, self.prompt + self.new)

    def run(self, desk: Desk) -> Found:
        rows, facts, is_ok = [], {}, True
        for base in self.base:
            desk.say(f"kv-cache: {base}")
            network = self.network(self.parts(base, self.prompt + self.new))
            prompts = torch.randint(
                4, self.n_vocab, (self.batch, self.prompt), generator=torch.Generator().manual_seed(0)
            )
            contenders = self._contenders(network, prompts)
            tokens, readings = self._race(contenders)
            first, *others = tokens.values()
            tie = max(widest_tie(network, prompts, first, other) for other in others)
            gains = _gains(readings)
            is_ok = is_ok and tie < 1e-4
            facts[base] = {
                "parameters": n_parameters(network),
                "readings": readings,
                "tokens_per_second": {name: spread(found) for name, found in readings.items()},
                "gains": gains,
                "rows_that_differ": max(int((other != first).any(1).sum()) for other in others),
                "widest_tie_nats": tie,
            }
            told = facts[base]["tokens_per_second"]
            rows += [
                {"base": base, "what": name, "tokens_per_second": s["median"], **_ends(s)} for name, s in told.items()
            ]
            rows += [{"base": base, "what": name, "times": s["median"], **_ends(s)} for name, s in gains.items()]
        notes = ["caching and batching multiply; each is told with the other held fixed"]
        return Found(rows, {"metrics.json": {"bases": facts}}, notes, is_ok=is_ok)

    def _contenders(self, network: Any, prompts: Tensor) -> dict[str, Callable[[], Tensor]]:
        capacity = self.prompt + self.new
        together, alone = (CachedNextToken(network, n, capacity, compiled=self.compile) for n in (len(prompts), 1))
        single = prompts.split(1)
        return {
            "batch, cached": lambda: cached(together, prompts, self.new),
            "one by one, cached": lambda: torch.cat([cached(alone, row, self.new) for row in single]),
            "batch, recomputed": lambda: recomputed(network, prompts, self.new),
            "one by one, recomputed": lambda: torch.cat([recomputed(network, row, self.new) for row in single]),
        }

    def _race(self, contenders: dict[str, Callable[[], Tensor]]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        readings: dict[str, list[float]] = {name: [] for name in contenders}
        tokens: dict[str, Tensor] = {}
        # A contender warms up on its own first round, unless that would take as long as the measurement itself.
        for name in list(contenders)[:2]:
            contenders[name]()
        for _ in range(self.rounds):
            for name, draw in contenders.items():
                started = time.perf_counter()
                tokens[name] = draw()
                readings[name].append(tokens[name].numel() / (time.perf_counter() - started))
        return tokens, readings


def _gains(readings: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    batch, single, batch_slow, single_slow = readings.values()
    return {
        "caching, in a batch": ratio(batch, batch_slow),
        "caching, one by one": ratio(single, single_slow),
        "batching, cached": ratio(batch, single),
        "batching, recomputed": ratio(batch_slow, single_slow),
        "both": ratio(batch, single_slow),
    }


def _ends(found: dict[str, float]) -> dict[str, float]:
    return {"low": found["low"], "high": found["high"]}
