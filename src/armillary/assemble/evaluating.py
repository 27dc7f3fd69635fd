"""A run measured on a split of its corpus, beside honest baselines, and runs compared on the same text."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armillary.assemble import stages
from armillary.assemble.build import OpenModel
from armillary.assemble.parts import longest_row
from armillary.contracts import Objective, Tokenizer
from armillary.evaluation import comparison
from armillary.evaluation.comparison import Comparison, Scores
from armillary.evaluation.likelihood import Windowing, measure, n_network_rows
from armillary.evaluation.orders import InOrder, Order, order_of
from armillary.evaluation.references import Reference, TokenStream, references
from armillary.records import Likelihood, fingerprint
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.run_folder import RunFolder, write_json
from armillary.tokens.packed import Packed, PackedSplit

MOST_REFERENCE_TOKENS = 100_000_000
"""The n-gram's tables take some 200 bytes a token."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What to measure. None: the last split the corpus has; the recipe's window and stride. packed: another text.

    samples: passes over the text, for a bound that depends on draws; None: as many as Windowing says. exact: the order
    of an exact likelihood, in place of the bound. n_tokens: only the first documents, until they have so many.
    """

    split: str | None = None
    window: int | None = None
    stride: int | None = None
    references: bool = False
    packed: Packed | None = None
    root: Path = Path()
    samples: int | None = None
    exact: Order | None = None
    n_tokens: int | None = None


def evaluate(model: OpenModel, wanted: Wanted, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Results as `evaluate --json` prints them, the model's first; kept under the run's evaluation folder.

    Weights and arithmetic are fp32, whatever the run was trained in.
    """
    results = []
    for name, packed in _texts(model, wanted).items():
        split = wanted.split or packed.splits[-1]
        if wanted.split is None and split == "train" and wanted.packed is None:
            message = f"{model.run.name}: its text has no held-out part; this is what it was trained on"
            warnings.warn(message, ArmillaryWarning, stacklevel=2)
        windowing = _windowing(model, wanted)
        scoring, told = _scoring(model, wanted), progress
        if isinstance(scoring, InOrder) and progress is not None:  # one window may take long: its rows are counted
            total = n_network_rows(scoring, (packed, split), windowing)
            scoring, told = replace(scoring, tick=_counter(progress, total)), None
        started = time.perf_counter()
        with torch.inference_mode():
            scores = measure(model.network, scoring, (packed, split), windowing, progress=told)
        seconds = time.perf_counter() - started
        stem = _stem(name, split, windowing, model, wanted)
        scores = replace(scores, name=model.run.name)
        comparison.save_scores(model.run.path / "evaluation" / "scores", stem, scores)
        result = scores.likelihood.as_json() | {"name": model.run.name, "corpus_name": name, "seconds": seconds}
        beside = _references(model, (packed, split), scores, wanted.root) if wanted.references else []
        record = {"run": model.run.name, "split": split, "step": model.step, "checkpoint": model.checkpoint}
        write_json(
            model.run.path / "evaluation" / f"{stem}.json",
            record | {"results": [result], "references": beside},
        )
        results += [result | {"step": model.step}, *beside]
    return results


def describe(model: OpenModel, wanted: Wanted) -> dict[str, Any]:
    """What `evaluate` would do. network_rows: rows of a window's width that the network is asked for."""
    windowing, scoring = _windowing(model, wanted), _scoring(model, wanted)
    texts = _texts(model, wanted)
    splits = {name: wanted.split or packed.splits[-1] for name, packed in texts.items()}
    return {
        "run": model.run.name,
        "step": model.step,
        "splits": splits,
        "window": windowing.window,
        "stride": windowing.stride,
        "kind": scoring.kind,
        "order": order_of(scoring),
        "samples": windowing.samples if scoring.kind == "monte_carlo_bound" else None,
        "tokens": windowing.n_tokens,
        "network_rows": {n: n_network_rows(scoring, (texts[n], split), windowing) for n, split in splits.items()},
    }


def refuse_idle_samples(models: Sequence[OpenModel], wanted: Wanted) -> None:
    if wanted.samples is not None and all(_scoring(model, wanted).kind != "monte_carlo_bound" for model in models):
        raise Refusal(f"--samples {wanted.samples}: an exact likelihood is measured once; leave it out")


def compare(models: Sequence[OpenModel], wanted: Wanted, say: Callable[[str], None]) -> Comparison:
    """Every run against the first, on their first corpus. A run not yet measured as wanted is measured now."""
    found = []
    for model, (path, is_there) in zip(models, stored(models, wanted), strict=True):
        if not is_there:
            say(f"measuring {model.run.name}")
            evaluate(model, wanted)
        found.append(comparison.load_scores(path))
    return comparison.compare(found)


def stored(models: Sequence[OpenModel], wanted: Wanted) -> list[tuple[Path, bool]]:
    """Where the scores of each run lie, or will lie, and whether they do."""
    found = []
    for model in models:
        name, packed = next(iter(_texts(model, wanted).items()))
        split = wanted.split or packed.splits[-1]
        _scoring(model, wanted)  # refused before another run is measured
        stem = _stem(name, split, _windowing(model, wanted), model, wanted)
        path = model.run.path / "evaluation" / "scores" / f"{stem}.json"
        found.append((path, path.is_file()))
    return found


def stored_comparison(runs: Sequence[RunFolder]) -> Comparison | None:
    """What was measured already, compared where every run has scores on one text; nothing is measured for it.

    A test split is preferred; of several results on one text, the one measured last.
    """
    found: list[dict[str, Scores]] = []
    for run in runs:
        paths = sorted((run.path / "evaluation" / "scores").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        found.append({s.likelihood.protocol.hash: s for s in map(comparison.load_scores, paths)})
    shared = [scores for key, scores in found[0].items() if all(key in other for other in found)]
    if len(runs) < 2 or not shared:
        return None
    best = max(shared, key=_tells)
    return comparison.compare([scores[best.likelihood.protocol.hash] for scores in found])


def _tells(scores: Scores) -> tuple[int, int]:
    """The more telling of two results: test before validation before train, then the one with more documents."""
    split, _, _ = scores.likelihood.protocol.split.partition("[")
    return ("train", "validation", "test").index(split), scores.likelihood.protocol.n_documents


def _texts(model: OpenModel, wanted: Wanted) -> dict[str, Packed]:
    if wanted.packed is not None:
        return {wanted.packed.about["corpus"]: wanted.packed}
    return stages.reopen(model.run, model.parts, wanted.root).packed


def _windowing(model: OpenModel, wanted: Wanted) -> Windowing:
    section = model.parts.recipe.evaluation
    usual = section.window or model.parts.recipe.packing.window
    window = wanted.window or usual
    limit = model.parts.backbone.max_length
    extra = longest_row(model.parts.objective, window) - window
    if limit is not None and window + extra > limit:
        raise Refusal(f"--window {window}: the model has learned {limit} positions; give at most {limit - extra}")
    stride = wanted.stride or (section.stride if window == usual else None) or max(1, window // 2)
    windowing = Windowing(window, stride, section.batch_rows, wanted.n_tokens)
    return windowing if wanted.samples is None else replace(windowing, samples=wanted.samples)


def _scoring(model: OpenModel, wanted: Wanted) -> Objective | InOrder:
    """The objective as it is, or in an exact order. Raises Refusal for an order it does not have."""
    if wanted.exact is None:
        return model.parts.objective
    return InOrder(model.parts.objective, wanted.exact, model.parts.recipe.evaluation.batch_rows)


def _counter(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def tick(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        progress(done, total)

    return tick


def _stem(corpus: str, split: str, windowing: Windowing, model: OpenModel, wanted: Wanted) -> str:
    """Names all that a figure depends on: corpus, split, step, window and stride, order or number of passes, length."""
    where = f"{wanted.packed.about['corpus_fingerprint'][:8]}-" if wanted.packed is not None else ""
    stem = f"{corpus}-{where}{split}-step{model.step:08d}-w{windowing.window}-s{windowing.stride}"
    if wanted.exact is not None:
        stem += f"-exact-{wanted.exact}"
    elif model.parts.objective.kind == "monte_carlo_bound":
        stem += f"-n{windowing.samples}"
    changed = fingerprint(model.parts.recipe.objective.model_dump())
    if changed != fingerprint(model.run.recipe()["objective"]):
        stem += f"-{changed[:8]}"
    return stem if windowing.n_tokens is None else f"{stem}-t{windowing.n_tokens}"


def _references(model: OpenModel, held_out: tuple[Packed, str], scores: Scores, root: Path) -> list[dict[str, Any]]:
    """Baselines that learn from what the model learnt from, and are held against it on the same text."""
    packed, split = held_out
    own = stages.reopen(model.run, model.parts, root).packed
    train = own.get(packed.about["corpus"], next(iter(own.values()))).split("train")
    if len(train.tokens) > MOST_REFERENCE_TOKENS:
        message = f"baselines are left out: {len(train.tokens):,} training tokens do not fit their tables"
        warnings.warn(message, ArmillaryWarning, stacklevel=2)
        return []
    text = packed.split(split)
    lossless = bool(packed.about["is_lossless"])
    n = len(scores.nats)
    texts = [_bytes(train, model.tokenizer), islice(_bytes(text, model.tokenizer), n)] if lossless else [None, None]
    found = references(_stream(train), _stream(text, n), packed.about["n_vocab"], *texts)
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


def _stream(part: PackedSplit, n_documents: int | None = None) -> TokenStream:
    starts = np.asarray(part.document_starts)
    n = len(starts) if n_documents is None else n_documents
    end = int(starts[n]) if n < len(starts) else len(part.tokens)
    return TokenStream(np.asarray(part.tokens[:end]), starts[:n])


def _bytes(part: PackedSplit, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of each document again, from its tokens."""
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    ends = [*part.document_starts[1:], len(part.tokens)]
    for start, end in zip(part.document_starts, ends, strict=True):
        yield b"".join(table[token] for token in part.tokens[start:end])
