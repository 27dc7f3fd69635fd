"""The likelihood of a held-out split, by sliding windows: every token is scored once, with as much context as fits.

Each window is `window` tokens wide and scores its last `stride` tokens, the first one all of them; the others are
context, given clean. Sums per document are kept, in float64, for intervals and paired comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from armillary.contracts import Batch, Network, Objective
from armillary.evaluation.comparison import Scores, interval
from armillary.records import Likelihood, Protocol, perplexity
from armillary.refusal import Refusal
from armillary.tokens.batches import documents_within
from armillary.tokens.packed import Packed, PackedSplit


@dataclass(frozen=True)
class Windowing:
    """window and stride in tokens; rows scored at once; n_tokens: stop at the end of the document that reaches it."""

    window: int
    stride: int
    batch_rows: int = 16
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise Refusal(f"evaluation.stride {self.stride} must lie between 1 and the window, {self.window}")


@dataclass(frozen=True)
class Ranks:
    """The processes that share the windows. total: a (2, n_documents) float64 array summed over them."""

    rank: int = 0
    n: int = 1
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums


def measure(
    network: Network,
    objective: Objective,
    held_out: tuple[Packed, str],
    windowing: Windowing,
    ranks: Ranks = Ranks(),
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of a (packed set, split): the likelihood with its kind and protocol, and the sums of each document.

    Networks on any device, in whatever arithmetic the caller set; run it under inference mode. progress is called with
    (windows done, all windows). Every rank gets the same Scores.
    """
    packed, split = held_out
    part = packed.split(split)
    n_documents = _n_documents(part, windowing.n_tokens)
    sums = np.zeros((2, n_documents))
    isolated = bool(packed.about["isolate_documents"])
    ends = _window_ends(_end(part, n_documents), windowing)
    device = next(network.parameters()).device
    for number, first in enumerate(range(0, len(ends), windowing.batch_rows)):
        if number % ranks.n != ranks.rank:
            continue
        rows = slice(first, first + windowing.batch_rows)
        starts, batch = _batch(part, ends, rows, isolated)
        values = objective.score(network, batch.to(device), {}).cpu().double().numpy()
        scored = batch.scored[:, 1:].numpy()
        documents = part.document_of((starts[:, None] + 1 + np.arange(scored.shape[1]))[scored])
        np.add.at(sums[0], documents, values[scored])
        np.add.at(sums[1], documents, 1)
        if progress is not None:
            progress(min(rows.stop, len(ends)), len(ends))
    nats, tokens = ranks.total(sums)
    return _scores(objective, held_out, windowing, nats, tokens.astype(np.int64))


def _scores(
    objective: Objective, held_out: tuple[Packed, str], windowing: Windowing, nats: np.ndarray, tokens: np.ndarray
) -> Scores:
    packed, split = held_out
    part = packed.split(split)
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
        crosses_documents=not about["isolate_documents"],
    )
    words_interval = interval(nats, words, scale=1.0)
    likelihood = Likelihood(
        nats=float(nats.sum()),
        kind=objective.kind,
        stderr_nats=0.0,
        n_tokens=int(tokens.sum()),
        n_words=int(words.sum()),
        n_bytes=int(n_bytes.sum()),
        protocol=protocol,
        interval_bits_per_byte=interval(nats, n_bytes) if is_lossless else None,
        interval_word_perplexity=words_interval and (perplexity(words_interval[0]), perplexity(words_interval[1])),
    )
    return Scores(likelihood=likelihood, name="model", nats=nats, tokens=tokens, words=words, bytes=n_bytes)


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


def _batch(part: PackedSplit, ends: np.ndarray, rows: slice, isolated: bool) -> tuple[np.ndarray, Batch]:
    """(where each window starts in the stream, the windows): scored are the targets behind the window before."""
    width = ends[0]
    previous = np.concatenate([[0], ends[:-1]])[rows]
    starts = ends[rows] - width
    places = starts[:, None] + np.arange(width + 1)
    scored = (places > previous[:, None]) & part.is_scored(places)
    within = [torch.from_numpy(x) for x in documents_within(part, places)] if isolated else [None, None]
    tokens = torch.from_numpy(part.tokens[places].astype(np.int64))
    return starts, Batch(tokens, torch.from_numpy(scored), *within)
