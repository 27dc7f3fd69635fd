"""How values are written for a reader: counts, durations, figures with their unit. Pure text, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

ABSENT = "—"

TITLES = {
    "age_seconds": "last wrote, ago",
    "best_bits_per_byte": "best validation, bits per byte",
    "cpu_capability": "CPU capability",
    "difference_bits_per_byte": "difference, bits per byte",
    "difference_bits_per_word": "difference, bits per word",
    "interval_bits_per_byte": "95 % interval",
    "interval_difference": "95 % interval of the difference",
    "is_different": "interval excludes 0",
    "n_vocab": "vocabulary, entries",
    "parameters_non_embedding": "parameters, non-embedding",
    "seconds": "time",
    "n_steps_not_finite": "recorded steps not finite",
    "steps": "steps planned",
    "judge_perplexity": "perplexity under the judge",
    "entropy_nats": "entropy, nats",
    "text_sha256": "scored text, SHA-256",
    "sha256": "SHA-256",
    "stderr_bits_per_byte": "Monte-Carlo error, bits per byte",
    "stderr_bits_per_word": "Monte-Carlo error, bits per word",
    "tokens_per_parameter_planned": "tokens per parameter, planned",
    "tokens_per_second": "tokens per second, median",
    "training_seconds": "training time",
}

KINDS = {"exact": "exact", "upper_bound": "upper bound", "monte_carlo_bound": "Monte-Carlo bound"}

_COUNTS = {"parameters", "parameters_non_embedding", "step", "steps", "best_step", "tokens_seen", "attempt", "window"}
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def title(key: str) -> str:
    """A key of a row as the head of a column: `word_perplexity` becomes "word perplexity"."""
    return TITLES.get(key, key.removeprefix("n_").replace("_", " "))


def cell(key: str, value: Any) -> str:
    """A value as text; the key says what it is (`..._seconds`, `n_...`, `..._per_byte`, `..._perplexity`)."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return KINDS.get(value, value) if key == "kind" else value.replace("_", " ") if key == "order" else value
    if key.startswith("interval"):
        return interval(value, is_signed="difference" in key)
    if isinstance(value, Sequence):
        return ", ".join(cell(key, v) for v in value) or ABSENT
    return number(key, value) if isinstance(value, int | float) else str(value)


def number(key: str, value: float) -> str:
    """A figure with as many digits as its key deserves."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "not finite"
    if key.endswith(("_per_second", "_bytes", "_bytes_above_start")):
        return f"{value:,.0f}"
    if key.endswith("seconds"):
        return duration(value)
    if key.startswith("difference"):
        return signed(value)
    if key.startswith("stderr"):
        return f"{value:.2g}"
    if key.endswith("bits_per_byte"):
        return f"{value:.3f}"
    if "epochs" in key or "per_parameter" in key or key in ("bytes_per_token", "tokens_per_evaluation"):
        return f"{value:,.2f}"
    if key.endswith("perplexity"):
        return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
    if key.startswith("n_") or key in _COUNTS:
        return f"{value:,.0f}"
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def interval(ends: Any, is_signed: bool = False) -> str:
    """Two ends as "1.900–1.960"; signed ones as "−0.050 to −0.030", where a dash would read as a sign."""
    if not isinstance(ends, Sequence) or len(ends) != 2 or None in ends:
        return ABSENT
    low, high = ends
    return f"{signed(low)} to {signed(high)}" if is_signed else f"{low:.3f}–{high:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """< 0.1 s, 0.8 s, 48 s, 2 min 51 s, 3 h 05 min, 4 d 2 h."""
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short(count: float) -> str:
    """A count for an axis: 950, 12k, 1.5M, 2B."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= scale:
            return f"{count / scale:.3g}{letter}"
    return f"{count:.3g}"


def visible(text: Any) -> str:
    """Text with control characters written out, such as \\x1b: HTML has no place for them, and none is hidden."""
    return _HIDDEN.sub(lambda m: f"\\x{ord(m[0]):02x}", str(text))
