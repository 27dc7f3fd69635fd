"""A run measured on a split of its corpus, beside honest baselines, and runs compared on the same text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armillary.assemble import stages
from armillary.assemble.build import OpenModel
from armillary.contracts import Tokenizer
from armillary.evaluation import comparison
from armillary.evaluation.comparison import Comparison, Scores
from armillary.evaluation.likelihood import Windowing, measure
from armillary.evaluation.references import Reference, TokenStream, references
from armillary.records import Likelihood
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder, write_json
from armillary.tokens.packed import Packed, PackedSplit

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What to measure. None: the last split the corpus has; the recipe's window and stride. packed: another text."""

    split: str | None = None
    window: int | None = None
    stride: int | None = None
    references: bool = False
    packed: Packed | None = None
    root: Path = Path()


def evaluate(model: OpenModel, wanted: Wanted, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Results as `evaluate --json` prints them, the model's first; kept under the run's evaluation folder.

    Weights and arithmetic are fp32, whatever the run was trained in.
    """
    results = []
    for name, packed in _texts(model, wanted).items():
        split = wanted.split or packed.splits[-1]
        windowing = _windowing(model, wanted)
        started = time.perf_counter()
        with torch.inference_mode():
            scores = measure(model.network, model.parts.objective, (packed, split), windowing, progress=progress)
        seconds = time.perf_counter() - started
        stem = _stem(name, split, windowing, model, wanted)
        scores = replace(scores, name=model.run.name)
        comparison.save_scores(model.run.path / "evaluation" / "scores", stem, scores)
        result = scores.likelihood.as_json() | {"name": model.run.name, "corpus_name": name, "seconds": seconds}
        beside = _references(model.tokenizer, packed, split, scores) if wanted.references else []
        record = {"run": model.run.name, "split": split, "step": model.step, "checkpoint": model.checkpoint}
        write_json(
            model.run.path / "evaluation" / f"{stem}.json",
            record | {"results": [result], "references": beside},
        )
        results += [result | {"step": model.step}, *beside]
    return results


def describe(model: OpenModel, wanted: Wanted) -> dict[str, Any]:
    """What `evaluate` would do."""
    windowing = _windowing(model, wanted)
    texts = {name: wanted.split or packed.splits[-1] for name, packed in _texts(model, wanted).items()}
    return {
        "run": model.run.name,
        "step": model.step,
        "splits": texts,
        "window": windowing.window,
        "stride": windowing.stride,
    }


def compare(models: Sequence[Callable[[], OpenModel]], runs: Sequence[RunFolder], wanted: Wanted) -> Comparison:
    """Every run against the first, on the same text. A run not yet measured as wanted is measured now."""
    found = []
    for run, open_it in zip(runs, models, strict=True):
        model = open_it()
        texts = _texts(model, wanted)
        name, packed = next(iter(texts.items()))
        windowing = _windowing(model, wanted)
        stem = _stem(name, wanted.split or packed.splits[-1], windowing, model, wanted)
        path = run.path / "evaluation" / "scores" / f"{stem}.json"
        if not path.is_file():
            evaluate(model, wanted)
        found.append(comparison.load_scores(path))
    return comparison.compare(found)


def stored_comparison(runs: Sequence[RunFolder]) -> Comparison | None:
    """What was measured already, compared where every run has scores on one text; nothing is measured for it."""
    found = []
    for run in runs:
        scores = [comparison.load_scores(p) for p in sorted((run.path / "evaluation" / "scores").glob("*.json"))]
        found.append({s.likelihood.protocol.hash: s for s in scores})  # of one text, the last by name: the latest step
    shared = [key for key in found[0] if all(key in other for other in found)]
    return comparison.compare([scores[shared[-1]] for scores in found]) if shared and len(runs) > 1 else None


def _texts(model: OpenModel, wanted: Wanted) -> dict[str, Packed]:
    if wanted.packed is not None:
        return {wanted.packed.about["corpus"]: wanted.packed}
    return stages.reopen(model.run, model.parts, wanted.root).packed


def _windowing(model: OpenModel, wanted: Wanted) -> Windowing:
    section = model.parts.recipe.evaluation
    window = wanted.window or section.window or model.parts.recipe.packing.window
    limit = model.parts.backbone.max_length
    if limit is not None and window > limit:
        raise Refusal(f"--window {window}: the model has learned {limit} positions; give at most {limit}")
    return Windowing(window, wanted.stride or section.stride or max(1, window // 2), section.batch_rows)


def _stem(corpus: str, split: str, windowing: Windowing, model: OpenModel, wanted: Wanted) -> str:
    """Names all that a figure depends on: corpus, split, step, window and stride."""
    where = f"{wanted.packed.about['corpus_fingerprint'][:8]}-" if wanted.packed is not None else ""
    return f"{corpus}-{where}{split}-step{model.step:08d}-w{windowing.window}-s{windowing.stride}"


def _references(tokenizer: Tokenizer, packed: Packed, split: str, scores: Scores) -> list[dict[str, Any]]:
    train, held_out = packed.split("train"), packed.split(split)
    lossless = bool(packed.about["is_lossless"])
    texts = [_bytes(part, tokenizer) for part in (train, held_out)] if lossless else [None, None]
    n_vocab = packed.about["n_vocab"]
    found = references(_stream(train), _stream(held_out), n_vocab, *texts)
    return [_as_json(reference, scores) for reference in found]


def _as_json(reference: Reference, scores: Scores) -> dict[str, Any]:
    """A reference scores the same text as the model, another way: only `how` differs."""
    per_document, model = reference.nats_per_document, scores.likelihood
    lossless = model.protocol.vocabulary == "open"
    protocol = replace(model.protocol, window=0, stride=0, order=reference.name, crosses_documents=False)
    known = per_document is not None
    likelihood = Likelihood(
        nats=reference.nats,
        kind=reference.kind,
        stderr_nats=0.0,
        n_tokens=model.n_tokens,
        n_words=model.n_words,
        n_bytes=model.n_bytes,
        protocol=protocol,
        interval_bits_per_byte=comparison.interval(per_document, scores.bytes) if known and lossless else None,
    )
    return likelihood.as_json() | {"name": reference.name, "about": reference.about, "seconds": reference.seconds}


def _stream(part: PackedSplit) -> TokenStream:
    return TokenStream(np.asarray(part.tokens), np.asarray(part.document_starts))


def _bytes(part: PackedSplit, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of each document again, from its tokens."""
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    ends = [*part.document_starts[1:], len(part.tokens)]
    for start, end in zip(part.document_starts, ends, strict=True):
        yield b"".join(table[token] for token in part.tokens[start:end])
