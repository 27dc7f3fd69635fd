"""The likelihood of a held-out split, by sliding windows: every token is scored once, with as much context as fits.

Each window is `window` tokens wide and scores its last `stride` tokens, the first one all of them; the others are
context, given clean. Sums per document are kept, in float64, for intervals and paired comparisons. A bound that depends
on draws is the mean of independent passes over all windows, and its error comes from their totals alone: draws are
stratified within a pass, so that an error from the draws themselves would be far too wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from armillary.contracts import Batch, Network, Objective
from armillary.evaluation.comparison import Scores, interval
from armillary.evaluation.orders import InOrder, judge_of, order_of
from armillary.randomness import key
from armillary.records import Kind, Likelihood, Protocol, perplexity
from armillary.refusal import Refusal
from armillary.tokens.batches import documents_within
from armillary.tokens.packed import Packed, PackedSplit

STRATUM = 1024
"""Windows whose draws are stratified together, whatever the batches and the ranks are."""


@dataclass(frozen=True)
class Windowing:
    """window and stride in tokens; rows scored at once; n_tokens: stop at the end of the document that reaches it.

    samples: independent passes over the text, for a bound that depends on draws; with one, its error is unknown.
    seed: of the draws. They are the same for every model, so that comparisons are paired.
    """

    window: int
    stride: int
    batch_rows: int = 16
    n_tokens: int | None = None
    samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise Refusal(f"evaluation.stride {self.stride} must lie between 1 and the window, {self.window}")
        if self.samples < 1:
            raise Refusal(f"--samples {self.samples}: give 2 or more")


@dataclass(frozen=True)
class Ranks:
    """The processes that share the windows. total: an (n, n_documents) float64 array summed over them."""

    rank: int = 0
    n: int = 1
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums


@dataclass(frozen=True)
class _Windows:
    """The windows of the first documents of a split. ends: the last target of each, rising."""

    part: PackedSplit
    ends: np.ndarray
    n_documents: int
    isolated: bool
    batch_rows: int

    @classmethod
    def of(cls, held_out: tuple[Packed, str], windowing: Windowing) -> _Windows:
        packed, split = held_out
        part = packed.split(split)
        n_documents = _n_documents(part, windowing.n_tokens)
        ends = _window_ends(_end(part, n_documents), windowing)
        return cls(part, ends, n_documents, bool(packed.about["isolate_documents"]), windowing.batch_rows)

    @property
    def batches(self) -> list[slice]:
        return [
            slice(first, min(first + self.batch_rows, len(self.ends)))
            for first in range(0, len(self.ends), self.batch_rows)
        ]

    def batch(self, rows: slice) -> tuple[np.ndarray, np.ndarray, Batch]:
        """(where in the stream the targets are, which of them no earlier window had, the windows)."""
        width = self.ends[0]
        previous = np.concatenate([[0], self.ends[:-1]])[rows]
        places = (self.ends[rows] - width)[:, None] + np.arange(width + 1)
        is_new = places > previous[:, None]
        scored = is_new & self.part.is_scored(places)
        within = [torch.from_numpy(x) for x in documents_within(self.part, places)] if self.isolated else [None, None]
        tokens = torch.from_numpy(self.part.tokens[places].astype(np.int64))
        return places[:, 1:], is_new[:, 1:], Batch(tokens, torch.from_numpy(scored), *within)


def measure(
    network: Network,
    objective: Objective | InOrder,
    held_out: tuple[Packed, str],
    windowing: Windowing,
    ranks: Ranks = Ranks(),
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of a (packed set, split): the likelihood with its kind and protocol, and the sums of each document.

    Networks on any device, in whatever arithmetic the caller set; run it under inference mode. progress is called with
    (windows done, all windows), of all passes. Every rank gets the same Scores.
    """
    windows = _Windows.of(held_out, windowing)
    n_passes, n_windows = _n_passes(objective, windowing), len(windows.ends)
    drawn = _draws(objective, n_windows, int(windows.ends[0]), windowing.seed)
    sums = np.zeros((n_passes + 1, windows.n_documents))  # the nats of each pass, and the tokens that count
    device = next(network.parameters()).device
    for number, (run, rows) in enumerate(product(range(n_passes), windows.batches)):
        if number % ranks.n != ranks.rank:
            continue
        places, is_new, batch = windows.batch(rows)
        draws = {name: draw.to(device) for name, draw in drawn(run, rows).items()}
        values = objective.score(network, batch.to(device), draws).cpu().double().numpy()
        # A bos counts for no token, and yet an objective that looks ahead may have paid for it.
        np.add.at(sums[run], windows.part.document_of(places[is_new]), values[is_new])
        if run == 0:
            scored = batch.scored[:, 1:].numpy()
            np.add.at(sums[-1], windows.part.document_of(places[scored]), 1)
        if progress is not None:
            progress(run * n_windows + rows.stop, n_passes * n_windows)
    return _scores(objective, held_out, windowing, ranks.total(sums))


def n_network_rows(objective: Objective | InOrder, held_out: tuple[Packed, str], windowing: Windowing) -> int:
    """What measuring costs: rows of a window's width that the network is asked for."""
    windows = _Windows.of(held_out, windowing)
    if isinstance(objective, InOrder):
        return sum(objective.n_rows(windows.batch(rows)[2]) for rows in windows.batches)
    judge = judge_of(objective)
    hides = any(view in ("absorbing", "blocks") for view in judge.views)
    is_paired = hides and getattr(judge, "pairs", False) and objective.kind == "monte_carlo_bound"
    return len(windows.ends) * _n_passes(objective, windowing) * (2 if is_paired else 1)


def _n_passes(objective: Objective | InOrder, windowing: Windowing) -> int:
    return windowing.samples if objective.kind == "monte_carlo_bound" else 1


def _draws(
    objective: Objective | InOrder, n_windows: int, n_tokens: int, seed: int
) -> Callable[[int, slice], dict[str, Tensor]]:
    """The draws of some windows in one pass: by their numbers, so that batches and ranks change nothing."""

    @lru_cache(maxsize=2)
    def stratum(run: int, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(key(seed, "likelihood", run, number))
        return objective.draw(min(STRATUM, n_windows - number * STRATUM), n_tokens, generator)

    def drawn(run: int, rows: slice) -> dict[str, Tensor]:
        parts = []
        for number in range(rows.start // STRATUM, (rows.stop - 1) // STRATUM + 1):
            first = number * STRATUM
            part = slice(max(rows.start - first, 0), rows.stop - first)
            parts.append({name: draw[part] for name, draw in stratum(run, number).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return drawn


def _scores(
    objective: Objective | InOrder, held_out: tuple[Packed, str], windowing: Windowing, sums: np.ndarray
) -> Scores:
    packed, split = held_out
    part = packed.split(split)
    nats, tokens = sums[:-1].mean(axis=0), sums[-1].astype(np.int64)
    words, n_bytes = part.document_words[: len(nats)], part.document_bytes[: len(nats)]
    about, facts = packed.about, packed.about["splits"][split]
    is_whole = len(nats) == facts["n_documents"]
    is_lossless = about["is_lossless"]
    protocol = Protocol(
        corpus=about["corpus_fingerprint"],
        split=split if is_whole else f"{split}[:{len(nats)}]",
        text_sha256=facts["text_sha256"],
        n_documents=len(nats),
        boundary=about["boundary"],
        vocabulary="open" if is_lossless else f"closed:{about['tokenizer_sha256'][:16]}",
        window=windowing.window,
        stride=windowing.stride,
        tokenizer=about["tokenizer_sha256"],
        order=order_of(objective),
        crosses_documents=not about["isolate_documents"],
    )
    words_interval = interval(nats, words, scale=1.0)
    likelihood = Likelihood(
        nats=float(nats.sum()),
        kind=objective.kind,
        stderr_nats=_stderr(objective.kind, sums[:-1].sum(axis=1)),
        n_tokens=int(tokens.sum()),
        n_words=int(words.sum()),
        n_bytes=int(n_bytes.sum()),
        protocol=protocol,
        interval_bits_per_byte=interval(nats, n_bytes) if is_lossless else None,
        interval_word_perplexity=words_interval and (perplexity(words_interval[0]), perplexity(words_interval[1])),
        n_passes=len(sums) - 1,
    )
    return Scores(likelihood=likelihood, name="model", nats=nats, tokens=tokens, words=words, bytes=n_bytes)


def _stderr(kind: Kind, totals: np.ndarray) -> float | None:
    """Of the mean of independent totals, one a pass."""
    if kind != "monte_carlo_bound":
        return 0.0
    return float(totals.std(ddof=1) / math.sqrt(len(totals))) if len(totals) > 1 else None


def _n_documents(part: PackedSplit, n_tokens: int | None) -> int:
    starts = part.document_starts
    return len(starts) if n_tokens is None else max(1, int(np.searchsorted(starts, n_tokens)))


def _end(part: PackedSplit, n_documents: int) -> int:
    starts = part.document_starts
    return len(part.tokens) if n_documents == len(starts) else int(starts[n_documents])


def _window_ends(end: int, windowing: Windowing) -> np.ndarray:
    """The last target of each window, rising by the stride; the last window is pulled back to end with the stream."""
    width = min(windowing.window, end - 1)
    n_more = -(-(end - 1 - width) // windowing.stride)
    return np.minimum(width + windowing.stride * np.arange(n_more + 1), end - 1)
