"""Plain data that crosses rooms and reaches the disk as JSON. No torch.

Units: nats unless the name says otherwise. `n_` is a count.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["exact", "upper_bound", "monte_carlo_bound"]

SCORED_FIELDS = ("corpus", "split", "text_sha256", "n_documents", "boundary", "vocabulary")
"""The part of a protocol that says *what* is scored: results may be compared only where all of it is equal."""


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of plain data: equal for equal content, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """How a likelihood was measured: what is scored, and how.

    corpus: fingerprint of the corpus artefact; text_sha256: of the exact bytes of the split, boundaries included.
    boundary: what the end-of-text token at a document's end stands for: "newline" (a byte of the text) or
    "end_of_text" (an event with no bytes). vocabulary: "open" (every text has a probability) or "closed:<sha>".
    window and stride are in tokens: each window scores its last `stride` tokens, the others are context.
    """

    corpus: str
    split: str
    text_sha256: str
    n_documents: int
    boundary: Literal["newline", "end_of_text"]
    vocabulary: str
    window: int
    stride: int
    tokenizer: str
    order: str = "left_to_right"
    crosses_documents: bool = True

    @property
    def scored(self) -> dict[str, Any]:
        """What is scored, the part that must be equal for a comparison."""
        return {name: getattr(self, name) for name in SCORED_FIELDS}

    @property
    def hash(self) -> str:
        """Hash of what is scored: two results may be compared only where it is equal."""
        return fingerprint(self.scored)[:16]


@dataclass(frozen=True)
class Likelihood:
    """What a model assigns to a split of text, with its kind and its error.

    nats: total over the split, the mean of n_passes independent estimates where it is a Monte-Carlo bound.
    stderr_nats: error of that mean, from the totals of the passes: 0 where nothing is drawn, None where one pass cannot
    tell. With so few passes a 95 % interval is Student's: margin_nats to each side.
    interval_bits_per_byte: 95 % bootstrap interval over documents, of bits per byte (None for a lossy tokenizer).
    n_tokens counts what is scored: the text's tokens and one end per document. n_words counts whitespace-separated
    words and line ends, the convention of WikiText (241,211 words + 4,358 lines = 245,569 on its test split).
    n_bytes counts UTF-8 bytes.
    """

    nats: float
    kind: Kind
    stderr_nats: float | None
    n_tokens: int
    n_words: int
    n_bytes: int
    protocol: Protocol
    interval_bits_per_byte: tuple[float, float] | None = None
    interval_word_perplexity: tuple[float, float] | None = None
    n_passes: int = 1

    @property
    def bits_per_byte(self) -> float | None:
        """None where the tokenizer is lossy: then no probability is assigned to the bytes."""
        if self.protocol.vocabulary != "open":
            return None
        return self.nats / math.log(2) / self.n_bytes

    @property
    def word_perplexity(self) -> float:
        return perplexity(self.nats / self.n_words)

    @property
    def token_perplexity(self) -> float:
        """Never compared across tokenizers."""
        return perplexity(self.nats / self.n_tokens)

    @property
    def margin_nats(self) -> float | None:
        """Half of the 95 % interval that the draws leave; None where nothing is drawn, or one pass cannot tell."""
        if not self.stderr_nats:
            return None
        return student_t(self.n_passes - 1) * self.stderr_nats

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "margin_nats": self.margin_nats,
            "bits_per_byte": self.bits_per_byte,
            "word_perplexity": self.word_perplexity,
            "token_perplexity": self.token_perplexity,
            "protocol_hash": self.protocol.hash,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Likelihood:
        known: dict[str, Any] = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        for name in ("interval_bits_per_byte", "interval_word_perplexity"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        known["protocol"] = Protocol(**record["protocol"])
        return cls(**known)


def perplexity(nats_per_unit: float) -> float:
    """exp, infinite where a float ends."""
    return math.exp(nats_per_unit) if nats_per_unit < 700 else math.inf


def student_t(n_degrees: int) -> float:
    """How many standard errors a 95 % interval reaches to each side, with so many degrees of freedom.

    Source: Abramowitz & Stegun 1964, equations 26.7.3 and 26.7.4, inverted by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _student_within(angle, n_degrees) < 0.95 else (low, angle)
    return math.sqrt(n_degrees) * math.tan(low)


def _student_within(angle: float, n_degrees: int) -> float:
    """P(|t| < sqrt(n_degrees) tan(angle))."""
    is_odd = n_degrees % 2
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for k in range(2 + is_odd, n_degrees + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the loop yields it.

    loss: nats per scored token of the step's global batch, without label smoothing; None where it was not finite.
    grad_norm: before clipping, None where it was not finite. learning_rate: of the first parameter group.
    n_tokens: scored tokens so far. seconds: of this step.
    parts: named components of the loss, nats per scored token. mixture: rows drawn so far from each packed set.
    """

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    n_tokens: int
    tokens_per_second: float
    seconds: float
    is_applied: bool = True
    parts: dict[str, float] = field(default_factory=dict)
    mixture: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """The loss on a held-out split while training: nats per scored token; bits per byte None for a lossy tokenizer."""

    step: int
    corpus: str
    loss: float
    bits_per_byte: float | None
    word_perplexity: float
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A text the model wrote while training. text: the continuation alone. finish: why it ended."""

    step: int
    prompt: str
    text: str
    finish: str


@dataclass(frozen=True)
class Note:
    """Something that happened to a run, as it stands in events.jsonl."""

    step: int
    event: str
    detail: str


@dataclass(frozen=True)
class Document:
    """A piece of text that is one event of a corpus. split: the source's own, or None to let the corpus split.

    The text keeps its newlines. In a corpus whose boundary is "newline" the document is a line, without its newline.
    """

    text: str
    split: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A record that gave no document. A source yields it beside its documents; the corpus counts and keeps it.

    file: its name without folders outside the source. line: counted from 1 (in a .json list or a .parquet file, the
    record's number).
    """

    file: str
    line: int
    reason: str
