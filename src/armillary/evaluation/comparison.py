"""Which run is better, and how sure is that: intervals by bootstrap over documents, and paired differences.

Source: Efron & Tibshirani 1993, chapters 13 and 16; Hesterberg 2015, arXiv 1411.5279, section 4.3 (wider percentiles).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary import artefact
from armillary.records import SCORED_FIELDS, Kind, Likelihood, perplexity
from armillary.refusal import Refusal
from armillary.run_folder import finite, read_json, write_json

BITS = 1 / math.log(2)
MAX_DRAWS_AT_ONCE = 1 << 22

Interval = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """A likelihood with its parts, one entry a document: (n_documents,) each, in the order of the split."""

    likelihood: Likelihood
    name: str
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    words: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One run of a comparison. Intervals are 95 %, over documents; None where there is one document only.

    difference_bits: bits a unit more (worse) than the first run; None for the first. is_different: its interval
    excludes 0. stderr_bits: Monte-Carlo error in bits a unit, 0 where exact, None where one pass cannot tell.
    token_perplexity: None where the tokenizers of the runs differ. how: the rest of the protocol, which may differ
    between runs.
    """

    name: str
    kind: Kind
    how: dict[str, Any]
    bits_per_byte: float | None
    interval_bits_per_byte: Interval | None
    word_perplexity: float
    interval_word_perplexity: Interval | None
    token_perplexity: float | None
    stderr_bits: float | None
    difference_bits: float | None = None
    interval_difference_bits: Interval | None = None
    is_different: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs on one text. unit: what the differences are counted by: "byte", or "word" under a closed vocabulary."""

    scored: dict[str, Any]
    unit: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data; a perplexity too large for a float is None."""
        return finite(asdict(self))


def interval(
    nats: NDArray[Any],
    units: NDArray[Any],
    scale: float = BITS,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """95 % interval of scale * Σnats / Σunits over documents, both (n_documents,); None for fewer than two documents.

    The difference of two runs, given as nats, makes it a paired interval. Equal input gives an equal interval. With few
    documents the percentiles are moved outwards, as plain ones are too narrow by sqrt((n-1)/n) and by normal against t.
    Cost: n_documents * n_resamples draws, 0.2 s for 4,000 documents.
    """
    n = len(nats)
    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    ratios = []
    at_once = max(1, MAX_DRAWS_AT_ONCE // n)
    for done in range(0, n_resamples, at_once):
        chosen = generator.integers(n, size=(min(at_once, n_resamples - done), n))
        total = units[chosen].sum(axis=1)
        ratios.append(nats[chosen].sum(axis=1)[total > 0] / total[total > 0])
    found = np.concatenate(ratios)
    if len(found) == 0:
        return None
    tail = _tail(n)
    low, high = np.quantile(found, (tail, 1 - tail)) * scale
    return float(low), float(high)


def compare(scores: Sequence[Scores]) -> Comparison:
    """Every run against the first. Raises Refusal where the runs do not score the same thing, or are fewer than two."""
    if len(scores) < 2:
        raise Refusal("compare: needs two results or more; name another run")
    first = scores[0]
    for other in scores[1:]:
        _refuse_other_text(first, other)
    has_bytes = first.likelihood.protocol.vocabulary == "open"
    has_one_tokenizer = len({s.likelihood.protocol.tokenizer for s in scores}) == 1
    rows = tuple(_row(s, first, has_bytes, has_one_tokenizer) for s in scores)
    return Comparison(first.likelihood.protocol.scored, "byte" if has_bytes else "word", rows, tuple(_notes(scores)))


def save_scores(folder: Path, stem: str, scores: Scores) -> Path:
    """Writes STEM.json (Likelihood.as_json and the name) and STEM.npz beside it; returns the path of the JSON.

    Raises Refusal where the documents do not add up to the likelihood.
    """
    path = folder / f"{stem}.json"
    if fault := _fault(scores):
        raise Refusal(f"{path}: {fault}; evaluate again")
    with artefact.replacing(path.with_name(f"{stem}.npz")) as beside, beside.open("wb") as file:
        np.savez(file, nats=scores.nats, tokens=scores.tokens, words=scores.words, bytes=scores.bytes)
    write_json(path, {"name": scores.name} | scores.likelihood.as_json())
    return path


def load_scores(path: Path) -> Scores:
    """Reads what `save_scores` wrote. Raises Refusal where a file is missing or torn, or the two do not agree."""
    if not path.is_file():
        raise Refusal(f"{path}: no such result; evaluate the run first")
    record = read_json(path)
    arrays = path.with_name(path.name.removesuffix(".json") + ".npz")
    try:
        likelihood, name = Likelihood.from_json(record), record["name"]
    except (KeyError, TypeError, AttributeError):
        raise Refusal(f"{path}: is not a result of evaluate (a field is missing or unknown); evaluate again") from None
    try:
        with np.load(arrays, allow_pickle=False) as file:
            parts = {part: file[part] for part in ("nats", "tokens", "words", "bytes")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise Refusal(f"{arrays}: is missing or cannot be read; evaluate again") from None
    scores = Scores(likelihood, name, **parts)
    if fault := _fault(scores):
        raise Refusal(f"{arrays}: {fault}; evaluate again")
    return scores


def _fault(scores: Scores) -> str | None:
    likelihood = scores.likelihood
    n_documents = likelihood.protocol.n_documents
    for part in ("nats", "tokens", "words", "bytes"):
        values = getattr(scores, part)
        if values.shape != (n_documents,):
            return f"{part} has shape {values.shape}, the protocol says {n_documents} documents"
        if values.dtype.kind != ("f" if part == "nats" else "i"):
            return f"{part} is {values.dtype}, not {'float64' if part == 'nats' else 'int64'}"
        total = getattr(likelihood, "nats" if part == "nats" else f"n_{part}")
        # Sums of floats depend on their order; a changed document does not hide in the ninth digit.
        if not math.isclose(values.sum(), total, rel_tol=1e-9, abs_tol=1e-9):
            return f"{part} add up to {values.sum()}, the likelihood says {total}"
    return None


def _refuse_other_text(first: Scores, other: Scores) -> None:
    ours, theirs = first.likelihood.protocol.scored, other.likelihood.protocol.scored
    for field in SCORED_FIELDS:
        if ours[field] != theirs[field]:
            raise Refusal(
                f"{field}: {first.name} has {ours[field]!r}, {other.name} has {theirs[field]!r}; "
                "runs compare only on the same text, evaluate both on one corpus and split"
            )
    for part in ("words", "bytes"):
        if not np.array_equal(getattr(first, part), getattr(other, part)):
            raise Refusal(
                f"{part}: {first.name} and {other.name} count them differently per document; evaluate both again"
            )


def _row(scores: Scores, first: Scores, has_bytes: bool, has_one_tokenizer: bool) -> Row:
    likelihood, stderr = scores.likelihood, scores.likelihood.stderr_nats
    units = scores.bytes if has_bytes else scores.words
    per_word = interval(scores.nats, scores.words, scale=1)
    row = {
        "name": scores.name,
        "kind": likelihood.kind,
        "how": {k: v for k, v in asdict(likelihood.protocol).items() if k not in SCORED_FIELDS},
        "bits_per_byte": likelihood.bits_per_byte,
        "interval_bits_per_byte": interval(scores.nats, scores.bytes) if has_bytes else None,
        "word_perplexity": likelihood.word_perplexity,
        "interval_word_perplexity": per_word and (perplexity(per_word[0]), perplexity(per_word[1])),
        "token_perplexity": likelihood.token_perplexity if has_one_tokenizer else None,
        "stderr_bits": None if stderr is None else BITS * stderr / int(units.sum()),
    }
    if scores is first:
        return Row(**row)
    more = scores.nats - first.nats
    found = interval(more, units)
    return Row(
        **row,
        difference_bits=float(BITS * more.sum() / units.sum()),
        interval_difference_bits=found,
        is_different=None if found is None else not found[0] <= 0 <= found[1],
    )


def _notes(scores: Sequence[Scores]) -> list[str]:
    notes = []
    kinds = {s.likelihood.kind for s in scores}
    if len(kinds) > 1:
        notes.append(
            "kinds differ: a bound lies at or above the true value, so a lower bound is a win and a higher one proves "
            "nothing"
        )
    elif kinds != {"exact"}:
        notes.append("all figures are bounds: the order of the bounds need not be the order of the models")
    elif len({s.likelihood.protocol.order for s in scores}) > 1:
        notes.append("orders differ: each figure is exact, and is that of its own order alone")
    if len(scores[0].nats) < 2:
        notes.append("one document: no interval can be given")
    return notes


def _tail(n: int) -> float:
    """The share of resamples beyond each end: 0.025 for many documents, less for few (Hesterberg's expansion)."""
    z, v = NormalDist().inv_cdf(0.975), n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * math.sqrt(n / v))
