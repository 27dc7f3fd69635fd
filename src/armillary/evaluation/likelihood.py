"""The likelihood of a held-out split, by sliding windows: every token is scored once, with as much context as fits.

Each window is `window` tokens wide and scores its last `stride` tokens, the first one all of them; the others are
context, given clean. Sums per document are kept, in float64, for intervals and paired comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def measure(
    network: Network,
    objective: Objective,
    packed: Packed,
    split: str,
    windowing: Windowing,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of a split: the likelihood with its kind and protocol, and the sums of each document.

    Networks on any device, in whatever arithmetic the caller set; run it under inference mode.
    """
    part = packed.split(split)
    n_documents = _n_documents(part, windowing.n_tokens)
    nats, tokens = np.zeros(n_documents), np.zeros(n_documents, dtype=np.int64)
    isolated = bool(packed.about["isolate_documents"])
    total = len(range(0, _end(part, n_documents) - 1, windowing.stride))
    for done, (starts, batch) in enumerate(_batches(part, n_documents, windowing, isolated)):
        values = objective.score(network, batch, {}).double().cpu().numpy()
        scored = batch.scored[:, 1:].cpu().numpy()
        targets = (starts[:, None] + 1 + np.arange(scored.shape[1]))[scored]
        documents = part.document_of(targets)
        np.add.at(nats, documents, values[scored])
        np.add.at(tokens, documents, 1)
        if progress is not None:
            progress(min((done + 1) * windowing.batch_rows, total), total)
    return _scores(objective, packed, split, windowing, (nats, tokens))


def _scores(
    objective: Objective, packed: Packed, split: str, windowing: Windowing, sums: tuple[np.ndarray, np.ndarray]
) -> Scores:
    nats, tokens = sums
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


def _batches(
    part: PackedSplit, n_documents: int, windowing: Windowing, isolated: bool
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(where each window starts in the stream, the windows)."""
    end = _end(part, n_documents)
    width = min(windowing.window, end - 1)
    # Window k scores targets up to first + k · stride; the last one is pulled back to end with the stream.
    ends = np.minimum(
        width + windowing.stride * np.arange(max(1, -(-(end - 1 - width) // windowing.stride) + 1)), end - 1
    )
    previous = np.concatenate([[0], ends[:-1]])
    for first in range(0, len(ends), windowing.batch_rows):
        part_ends, part_previous = (
            ends[first : first + windowing.batch_rows],
            previous[first : first + windowing.batch_rows],
        )
        starts = part_ends - width
        places = starts[:, None] + np.arange(width + 1)
        tokens = part.tokens[places].astype(np.int64)
        scored = (places > part_previous[:, None]) & part.is_scored(places)
        within = [torch.from_numpy(x) for x in documents_within(part, places)] if isolated else [None, None]
        yield starts, Batch(torch.from_numpy(tokens), torch.from_numpy(scored), *within)
