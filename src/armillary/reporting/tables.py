"""From runs to rows: plain data that the report and the command line both show. No torch.

A row is a mapping from key to value. A key tells the unit (`..._seconds`, `n_...`); None means "not known yet".
"""

from __future__ import annotations

import datetime
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from armillary.refusal import Refusal
from armillary.reporting import formats
from armillary.run_folder import RunFolder

Row = dict[str, Any]


def runs_table(root: Path) -> list[Row]:
    """One row per run under ROOT/runs, by name. A run that cannot be read keeps its row, with the reason as state.

    age_seconds: since the run last wrote a record, so that a killed run that still says "running" is seen.
    """
    return [_run_row(RunFolder(p.parent)) for p in sorted((root / "runs").glob("*/recipe.yaml"))]


def _run_row(run: RunFolder) -> Row:
    try:
        facts, records = run.facts(), run.metrics()
    except Refusal as refusal:
        return {"name": run.name, "state": f"unreadable: {refusal}"}
    last = records[-1].get("time") if records else None
    return {
        "name": run.name,
        "state": facts.get("state"),
        "step": last_step(records),
        "steps": facts.get("steps"),
        "parameters": facts.get("parameters"),
        "best_bits_per_byte": facts.get("best_bits_per_byte"),
        "age_seconds": _age(last or facts.get("finished") or facts.get("started")),
    }


def run_facts(run: RunFolder) -> Row:
    """What one run is and what it cost, flat. A value that is not there yet is None.

    epochs: tokens seen over the training tokens of all corpora. events: how often each kind happened.
    """
    facts, recipe, train = run.facts(), run.recipe(), run.metrics("train")
    system, n_tokens = facts.get("system") or {}, train[-1].get("n_tokens") if train else None
    parameters = facts.get("parameters")
    n_train = sum((_split(c, "train").get("n_tokens") or 0) for c in (facts.get("corpora") or {}).values())
    speeds = [r["tokens_per_second"] for r in train if r.get("tokens_per_second")]
    events = Counter(str(e.get("event")) for e in run.events())
    return {
        "state": facts.get("state"),
        "step": last_step(train),
        "steps": facts.get("steps"),
        "best_step": facts.get("best_step"),
        "best_bits_per_byte": facts.get("best_bits_per_byte"),
        "parameters": parameters,
        "parameters_non_embedding": facts.get("parameters_non_embedding"),
        "tokens_seen": n_tokens,
        "tokens_seen_per_parameter": n_tokens / parameters if n_tokens and parameters else None,
        "tokens_per_parameter_planned": facts.get("tokens_per_parameter"),
        "equivalent_epochs": n_tokens / n_train if n_tokens and n_train else None,
        "training_seconds": facts.get("training_seconds"),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "resumes": facts.get("attempt"),  # attempts count from 0
        "n_steps_not_finite": sum("loss" in r and r["loss"] is None for r in train) if train else None,
        "events": [f"{event} × {n}" for event, n in events.items()] or "none",
        "seed": recipe.get("seed"),
        "device": " · ".join(str(system[k]) for k in ("device", "device_name") if system.get(k)) or None,
        **{key: system.get(key) for key in ("precision", "threads", "cpu_capability", "allocator", "torch", "python")},
        "started": _clock(facts.get("started")),
        "finished": _clock(facts.get("finished")),
    }


def corpus_rows(run: RunFolder) -> list[Row]:
    """One row per corpus and split of a run: what it holds, and how often training has gone through it."""
    facts, train = run.facts(), run.metrics("train")
    drawn = (train[-1].get("mixture") or {}) if train else {}
    rows = []
    for name, corpus in (facts.get("corpora") or {}).items():
        for split in corpus.get("splits") or {}:
            counts = _split(corpus, split)
            n_rows = counts.get("n_rows")
            row = {"corpus": name, "split": split} | {key: counts.get(key) for key in _COUNTS}
            tokens, size = row["n_tokens"], row["n_bytes"]
            row["bytes_per_token"] = size / tokens if size and tokens else None
            row["epochs"] = drawn[name] / n_rows if split == "train" and drawn.get(name) and n_rows else None
            rows.append(row)
    return rows


_COUNTS = ("n_documents", "n_bytes", "n_words", "n_tokens", "n_rows")


def recipe_difference(recipes: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The keys in which recipes differ, nested ones dotted: rows {"key", label: value, ...}.

    Values are text as YAML writes them. A recipe that does not have the key has no entry in the row, which is not
    the same as "null". Lists are compared whole.
    """
    flat = {label: dict(_flatten(recipe)) for label, recipe in recipes.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = []
    for key in keys:
        present = [values[key] for values in flat.values() if key in values]
        if len(present) < len(flat) or any(not _is_same(value, present[0]) for value in present):
            rows.append({"key": key} | {label: _yaml(values[key]) for label, values in flat.items() if key in values})
    return rows


def comparison_rows(comparison: Mapping[str, Any]) -> list[Row]:
    """Rows of `Comparison.as_json`, with the unit of the difference in its key; columns nobody fills are left out."""
    unit = comparison.get("unit") or "byte"
    rows = []
    for row in comparison.get("rows") or []:
        row = dict(row)
        row[f"difference_bits_per_{unit}"] = row.get("difference_bits")
        row["interval_difference"] = row.get("interval_difference_bits")
        row[f"stderr_bits_per_{unit}"] = row.get("stderr_bits") or None
        row["order"] = (row.get("how") or {}).get("order")
        rows.append(row)
    if all(row["order"] == "left_to_right" for row in rows):  # goes without saying
        rows = [row | {"order": None} for row in rows]
    keys = (
        *("name", "kind", "order", "bits_per_byte", f"stderr_bits_per_{unit}", "interval_bits_per_byte"),
        *(f"difference_bits_per_{unit}", "interval_difference", "is_different", "word_perplexity", "token_perplexity"),
    )
    filled = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in filled} for row in rows]


def quality_rows(figures: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of what `judge` found; columns nobody fills are left out."""
    rows = []
    for one in figures:
        sampler = one.get("sampler") or {}
        row = dict(one) | {f"distinct_{n}": value for n, value in enumerate(one["distinct"], start=1)}
        row["sampling_steps"] = sampler.get("steps") or (sampler.get("sampler") or {}).get("steps")
        row["sampler"] = sampler.get("name")
        row["sampled_tokens_per_second"] = one.get("tokens_per_second")
        rows.append(row)
    keys = (
        *("name", "sampler", "sampling_steps", "n_texts", "tokens_per_text", "judge_perplexity", "entropy_nats"),
        *(f"distinct_{n}" for n in range(1, len(rows[0]["distinct"]) + 1)),
        *("sampled_tokens_per_second", "tokens_per_evaluation"),
    )
    filled = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in filled} for row in rows]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with every key of the rows as a column, figures to the right; "" for no rows."""
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    is_figure = {k: any(isinstance(row.get(k), int | float) for row in rows) or k.startswith("interval") for k in keys}
    cells = [[_pipe(formats.cell(k, row.get(k))) for k in keys] for row in rows]
    heads = [_pipe(formats.title(k)) for k in keys]
    widths = [max(3, *(len(line[i]) for line in [heads, *cells])) for i in range(len(keys))]
    rule = [("-" * (w - 1) + ":") if is_figure[k] else "-" * w for k, w in zip(keys, widths, strict=True)]

    def line(parts: Sequence[str]) -> str:
        padded = [
            part.rjust(w) if is_figure[k] else part.ljust(w) for k, part, w in zip(keys, parts, widths, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(heads), line(rule), *map(line, cells)]) + "\n"


def last_step(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The highest step of the records, None where there is none."""
    return max((r["step"] for r in records if r.get("step") is not None), default=None)


def _flatten(recipe: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in recipe.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _is_same(a: Any, b: Any) -> bool:
    # True == 1 in Python, but not in a recipe; 1 and 1.0 are the same number.
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _split(corpus: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    return (corpus.get("splits") or {}).get(split) or {}


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _age(time: str | None) -> float | None:
    if time is None:
        return None
    then = datetime.datetime.fromisoformat(time)
    return max(0.0, (datetime.datetime.now(datetime.UTC) - then.astimezone(datetime.UTC)).total_seconds())


def _clock(time: str | None) -> str | None:
    if time is None:
        return None
    return datetime.datetime.fromisoformat(time).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
