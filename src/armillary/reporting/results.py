"""What was measured on held-out text: rows that may be compared, and the sentence that sums them up. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from armillary.reporting import formats
from armillary.run_folder import RunFolder

_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Measured:
    """One likelihood. run: index of the run among those of the report; None for a reference.

    record: `Likelihood.as_json` with name, about and seconds. checkpoint, step: of the weights; None for a reference.
    """

    label: str
    run: int | None
    record: dict[str, Any]
    checkpoint: str | None = None
    step: int | None = None

    @property
    def bits_per_byte(self) -> float | None:
        return self.record.get("bits_per_byte")

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.record.get("interval_bits_per_byte")

    @property
    def is_bound(self) -> bool:
        return self.record.get("kind") != "exact"

    @property
    def margin_bits_per_byte(self) -> float | None:
        """Half of the 95 % interval that the draws of a bound leave."""
        margin, n_bytes = self.record.get("margin_nats"), self.record.get("n_bytes")
        return margin / math.log(2) / n_bytes if margin and n_bytes and self.bits_per_byte is not None else None

    @property
    def protocol(self) -> dict[str, Any]:
        return self.record.get("protocol") or {}


@dataclass(frozen=True)
class Group:
    """Likelihoods of the same bytes, best first: only these may be compared."""

    hash: str
    corpus: str
    rows: tuple[Measured, ...]

    @property
    def split(self) -> str:
        return self.rows[0].protocol.get("split", "held-out")

    @property
    def has_one_tokenizer(self) -> bool:
        return len({row.protocol.get("tokenizer") for row in self.rows}) == 1

    @property
    def references(self) -> list[Measured]:
        return [row for row in self.rows if row.run is None and row.bits_per_byte is not None]

    @property
    def models(self) -> list[Measured]:
        """One row per run, its best checkpoint where it was measured, the lowest first."""
        own: dict[int, Measured] = {}
        for row in sorted(self.rows, key=lambda row: row.checkpoint != "best"):
            if row.run is not None:
                own.setdefault(row.run, row)
        return sorted(own.values(), key=_order)


def groups(runs: Sequence[RunFolder], labels: Sequence[str]) -> list[Group]:
    """All evaluations of the runs by what was scored; the most telling first: most runs, then test, validation."""
    by_hash: dict[str, list[Measured]] = {}
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for evaluation in run.evaluations():
            for row in _rows(evaluation, index, label, run.name):
                by_hash.setdefault(row.record.get("protocol_hash") or f"{label}: unknown", []).append(row)
    names = _corpus_names(runs)
    made = [
        Group(key, names.get(str(rows[0].protocol.get("corpus")), ""), tuple(sorted(_distinct(rows), key=_order)))
        for key, rows in by_hash.items()
    ]
    return sorted(made, key=lambda group: (-len(group.models), _rank(group.split)))


def verdict(group: Group, is_named: bool = False) -> list[str]:
    """Sentences: the figure, its interval and its kind; then where it stands. The first one stands alone.

    is_named: tell whose figure it is, for a report of several runs.
    """
    first, *others = group.models
    sentences = [f"{f'{first.label}: ' if is_named else ''}{figure(first)} on {where(group)}."]
    sentences += [_beside(first, other) for other in others]
    if group.references:
        sentences.append(_against(first, group.references, first.label if is_named else "the model"))
    if first.checkpoint == "best" and group.split == "validation":
        sentences.append("The same split chose this checkpoint, which flatters the figure a little.")
    return sentences


def where(group: Group) -> str:
    return f"the {group.split} split{f' of {group.corpus}' if group.corpus else ''}"


def figure(row: Measured) -> str:
    """ "1.930 bits per byte (exact, 95 % interval 1.900–1.960)", or word perplexity for a lossy tokenizer."""
    kind = formats.cell("kind", row.record.get("kind"))
    if row.bits_per_byte is None:
        perplexity = formats.cell("word_perplexity", row.record.get("word_perplexity"))
        return f"word perplexity {perplexity} ({kind}; a lossy tokenizer gives no bits per byte)"
    ends = f", 95 % interval {formats.interval(row.interval)}" if row.interval else ", no interval"
    return f"{'at most ' if row.is_bound else ''}{row.bits_per_byte:.3f} bits per byte ({kind}{ends})"


def _against(model: Measured, references: Sequence[Measured], who: str) -> str:
    best = min(references, key=_order)
    about = str(best.record.get("about") or "")
    name = f"{best.label} {about}" if about.startswith("over ") else best.label
    if model.bits_per_byte is None or best.bits_per_byte is None:
        return f"{name} reaches {best.bits_per_byte:.3f} bits per byte, which {who} cannot be set against."
    n_beaten = sum(model.bits_per_byte < (r.bits_per_byte or 0) for r in references)
    lead = f"The strongest of {len(references)} references" if len(references) > 1 else "The reference"
    told = f"{lead}, {name}, reaches {best.bits_per_byte:.3f}: {_stands(model, best, who)}"
    if len(references) > 1 and 0 < n_beaten < len(references):
        told += f"; it beats {n_beaten} of the {len(references)}"
    return told + "."


def _stands(model: Measured, other: Measured, who: str) -> str:
    """The model against a reference, in words that claim no more than a bound or an interval allows."""
    assert model.bits_per_byte is not None and other.bits_per_byte is not None
    gap = model.bits_per_byte - other.bits_per_byte
    size = f"{abs(gap):.3f} ({abs(gap) / other.bits_per_byte * 100:.1f} %)"
    if model.is_bound and gap >= 0:
        return f"the bound of {who} lies {size} above it, which does not settle which is better"
    if f"{abs(gap):.3f}" == "0.000":
        return f"{who} equals it to three decimals"
    told = f"{who} is {'worse' if gap > 0 else 'better'} by {'at least ' if model.is_bound else ''}{size}"
    if model.interval and model.interval[0] <= other.bits_per_byte <= model.interval[1]:
        told += ", a gap within its interval"
    return told


def _beside(first: Measured, other: Measured) -> str:
    if first.bits_per_byte is None or other.bits_per_byte is None:
        return f"{other.label}: {figure(other)}."
    gap = other.bits_per_byte - first.bits_per_byte
    told = f"{other.label}: {figure(other)}, {formats.signed(gap)}"
    if first.is_bound or other.is_bound:
        told += "; a bound does not rank them"
    elif first.interval and other.interval and other.interval[0] <= first.interval[1]:
        told += "; their intervals overlap, a paired comparison tells more"
    return told + "."


def _rows(evaluation: Mapping[str, Any], run: int, label: str, run_name: str) -> list[Measured]:
    plain = {None, "", "model", label, run_name, evaluation.get("run")}
    rows = []
    for record in evaluation.get("results") or []:
        name = label if record.get("name") in plain else f"{label} · {record['name']}"
        rows.append(Measured(name, run, record, evaluation.get("checkpoint"), evaluation.get("step")))
    for record in evaluation.get("references") or []:
        rows.append(Measured(str(record.get("name") or "reference"), None, record | {"_of": label}))
    return rows


def _distinct(rows: Sequence[Measured]) -> list[Measured]:
    """Equal references once; what shares a label gets told apart by what differs."""
    seen: dict[Any, Measured] = {}
    for row in rows:
        key = (row.label, row.record.get("nats")) if row.run is None else id(row)
        seen.setdefault(key, row)
    kept = list(seen.values())
    for suffix in (
        lambda r: f"over the tokens of {r.record['_of']}" if r.run is None else f"{r.checkpoint} checkpoint",
        lambda r: f"step {r.step}" if r.step is not None else "",
        lambda r: f"window {r.protocol.get('window')}, stride {r.protocol.get('stride')}",
        lambda r: str(r.protocol.get("order") or "").replace("_", " ") if r.run is not None else "",
        lambda r: f"{r.record['n_passes']} passes" if r.record.get("n_passes", 1) > 1 else "",
    ):
        times = Counter(row.label for row in kept)
        kept = [
            replace(row, label=f"{row.label}, {suffix(row)}") if times[row.label] > 1 and suffix(row) else row
            for row in kept
        ]
    return kept


def _corpus_names(runs: Sequence[RunFolder]) -> dict[str, str]:
    named = {}
    for run in runs:
        for name, corpus in (run.facts().get("corpora") or {}).items():
            named.setdefault(str(corpus.get("fingerprint")), name)
    return named


def _order(row: Measured) -> tuple[bool, float, float]:
    bits, nats = row.bits_per_byte, row.record.get("nats")
    return bits is None, bits if bits is not None else 0.0, nats if nats is not None else 0.0


def _rank(split: str) -> int:
    return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)


def so_far(run: RunFolder) -> str:
    """What can be said of a run that no evaluation has measured yet."""
    facts, train, validation = run.facts(), run.metrics("train"), run.metrics("validation")
    known = [r for r in validation if r.get("bits_per_byte") is not None]
    if known:
        best = min(known, key=lambda r: r["bits_per_byte"])
        of = f" of {best['corpus']}" if best.get("corpus") else ""
        return (
            f"Not evaluated yet. While training, validation{of} came to {best['bits_per_byte']:.3f} bits per byte"
            f" at step {best['step']:,}, without an interval."
        )
    loss = next((r["loss"] for r in reversed(train) if r.get("loss") is not None), None)
    if loss is not None:
        steps = f" of {facts['steps']:,}" if facts.get("steps") else ""
        at = f"At step {train[-1]['step']:,}{steps}"
        return f"Nothing held out is measured yet. {at} the training loss is {loss:.3f} nats per token."
    return "This run has just begun: nothing is measured yet."
