"""One HTML file for one run or several side by side: opened from disk, no network, no JavaScript."""

from __future__ import annotations

import datetime
import importlib.resources
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armillary.refusal import Refusal
from armillary.reporting import formats, plots, results, tables
from armillary.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from armillary.reporting.plots import History
    from armillary.reporting.results import Group

N_SAMPLES_SHOWN = 5
N_SAMPLES_KEPT = 40
N_CHARACTERS = 2000
_PANELS = (
    ("validation", "bits_per_byte", "validation, bits per byte", False),
    ("train", "learning_rate", "learning rate", False),
    ("train", "grad_norm", "gradient norm, before clipping", True),
    ("train", "tokens_per_second", "training, tokens per second", False),
)


def write_report(runs: Sequence[RunFolder], target: Path, comparison: Mapping[str, Any] | None = None) -> Path:
    """Write the report of the runs to `target`, whole or not at all, and return it.

    comparison: paired differences, as `Comparison.as_json` gives them. A run that has just begun gets a report that
    says what is not there yet. Raises Refusal where there is no run, or a folder is not one.
    """
    if not runs:
        raise Refusal("report: no run was given; name at least one, `armillary runs list` shows them")
    for run in runs:
        if not run.exists():
            raise Refusal(f"{run.path}: holds no recipe.yaml, so it is not a run; give the folder of a run")
    # A sampler may leave half of a surrogate pair.
    write_text(target, _render(_contents(runs, comparison)), errors="replace")
    return target


def _render(contents: Mapping[str, Any]) -> str:
    import jinja2

    template = importlib.resources.files("armillary.reporting").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
        finalize=lambda value: formats.visible(value) if type(value) is str else value,
    )
    environment.filters |= {"title_of": formats.title}
    environment.globals |= {"cell": formats.cell, "n_colours": plots.N_COLOURS}
    return environment.from_string(template).render(contents)


def _contents(runs: Sequence[RunFolder], comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    labels = _labels(runs)
    facts = [run.facts() for run in runs]
    found = results.groups(runs, labels)
    told = [group for group in found if group.models]
    recipes = [run.recipe() for run in runs]
    return {
        "labels": labels,
        "about": recipes[0].get("about") if len(runs) == 1 else None,
        "verdict": _verdict(runs, labels, told),
        "states": _states(runs, labels, facts),
        "tiles": _tiles(runs[0]) if len(runs) == 1 else [],
        "groups": [_group(group) for group in found],
        "training": _training(runs, facts),
        "samples": [_samples(run.samples()) for run in runs],
        "facts": _side_by_side([tables.run_facts(run) for run in runs]),
        "events": [run.events() for run in runs],
        "differences": tables.recipe_difference(dict(zip(labels, recipes, strict=True))) if len(runs) > 1 else [],
        "comparison": _comparison(comparison),
        "corpora": [_corpora(run, fact) for run, fact in zip(runs, facts, strict=True)],
        "tokenizers": _side_by_side([_tokenizer(fact) for fact in facts]),
        "recipes": [run.recipe_file.read_text(encoding="utf-8") for run in runs],
        "commands": [fact.get("commands") or [] for fact in facts],
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the runs; runs of one name from different roots are numbered."""
    times, seen, labels = Counter(run.name for run in runs), Counter[str](), []
    for run in runs:
        seen[run.name] += 1
        labels.append(run.name if times[run.name] == 1 else f"{run.name} ({seen[run.name]})")
    return labels


def _verdict(runs: Sequence[RunFolder], labels: Sequence[str], told: Sequence[Group]) -> list[str]:
    if not told:
        lines = [results.so_far(run) for run in runs]
        return lines if len(runs) == 1 else [f"{label}: {line}" for label, line in zip(labels, lines, strict=True)]
    sentences = results.verdict(told[0], is_named=len(runs) > 1)
    measured = {model.run for model in told[0].models}
    missing = [label for i, label in enumerate(labels) if i not in measured]
    if missing:
        sentences.append(f"Not measured on the same text, so not ranked: {', '.join(missing)}.")
    return sentences


def _states(runs: Sequence[RunFolder], labels: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each run that did not finish."""
    lines = []
    for run, label, fact in zip(runs, labels, facts, strict=True):
        state, step = fact.get("state"), tables.last_step(run.metrics("train"))
        if state == "finished":
            continue
        at = f"step {step or 0:,}" + (f" of {fact['steps']:,}" if fact.get("steps") else "")
        who = label if len(runs) > 1 else "This run"
        told = f"is {state}, at {at}" if state else f"has recorded no state; it is at {at}"
        lines.append(f"{who} {told}. What follows is what there was when this page was written.")
    return lines


def _tiles(run: RunFolder) -> list[tuple[str, str]]:
    row = tables.run_facts(run)
    shown = [
        ("parameters", formats.short(row["parameters"]) if row["parameters"] else formats.ABSENT),
        ("tokens seen", formats.short(row["tokens_seen"]) if row["tokens_seen"] else formats.ABSENT),
        ("steps", formats.cell("step", row["step"])),
        ("training time", formats.cell("training_seconds", row["training_seconds"])),
        ("tokens per second", formats.cell("tokens_per_second", row["tokens_per_second"])),
    ]
    return [(name, value) for name, value in shown if value != formats.ABSENT]


def _group(group: Group) -> dict[str, Any]:
    protocols = [row.protocol for row in group.rows]
    first, record = protocols[0], group.rows[0].record
    names = {
        "n_documents": first.get("n_documents"),
        "n_bytes": record.get("n_bytes"),
        "n_words": record.get("n_words"),
        "boundary": str(first.get("boundary") or "").replace("_", " "),
        "vocabulary": "open: every text has a probability" if first.get("vocabulary") == "open" else "closed",
        "corpus_fingerprint": first.get("corpus"),
        "text_sha256": first.get("text_sha256"),
        "protocol_hash": group.hash,
    }
    return {
        "where": results.where(group),
        "rows": group.rows,
        "has_one_tokenizer": group.has_one_tokenizer,
        "has_lossy": any(row.bits_per_byte is None for row in group.rows),
        "has_noise": any(row.record.get("stderr_nats") for row in group.rows),
        "scored": [(formats.title(key), formats.cell(key, value)) for key, value in names.items() if value],
        "bars": _markup(plots.bars(group.rows)) if sum(r.bits_per_byte is not None for r in group.rows) > 1 else None,
    }


def _training(runs: Sequence[RunFolder], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    histories = [plots.History(run.metrics("train"), run.metrics("validation")) for run in runs]
    if not any(history.train for history in histories):
        return None
    panels = [plots.panel(histories, *which) for which in _PANELS]
    tokenizers = {(fact.get("tokenizer") or {}).get("sha256") for fact in facts}
    return {
        "loss": _markup(plots.loss_curves(histories)),
        "panels": [_markup(panel) for panel in panels if panel],
        "has_validation": any(history.validation for history in histories),
        "n_lost": sum("loss" in r and r["loss"] is None for history in histories for r in history.train),
        "first": _first_loss(histories),
        "has_one_tokenizer": len(tokenizers) == 1,
    }


def _first_loss(histories: Sequence[History]) -> tuple[int, str] | None:
    """Step and loss of the first record of a lone run, where the frame of the figure cuts it."""
    record, frame = next((r for r in histories[0].train if r.get("loss") is not None), None), plots.frame(histories)
    if len(histories) > 1 or not record or not frame or record["loss"] <= frame[1]:
        return None
    return record["step"], f"{record['loss']:.2f}"


def _samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples by step: a few over the whole run, the last among them, and the others to unfold."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        text = str(sample.get("text") or "")
        cut = len(text) - N_CHARACTERS
        shown = {"prompt": sample.get("prompt") or "", "text": text[:N_CHARACTERS], "n_cut": max(0, cut)}
        by_step.setdefault(sample.get("step") or 0, []).append(shown | {"finish": sample.get("finish")})
    steps = sorted(by_step)
    kept = _spread(steps, N_SAMPLES_KEPT)
    shown_steps = _spread(kept, N_SAMPLES_SHOWN)
    return {
        "shown": [(step, by_step[step]) for step in shown_steps],
        "more": [(step, by_step[step]) for step in kept if step not in shown_steps],
        "n_left_out": len(steps) - len(kept),
        "n_steps": len(steps),
    }


def _spread(items: Sequence[int], n: int) -> list[int]:
    """At most n of the items, evenly, the first and the last among them."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Facts of runs as lines: title, one cell per run; a line that no run knows is left out."""
    keys = dict.fromkeys(key for row in rows for key in row)
    lines = [(formats.title(key), [formats.cell(key, row.get(key)) for row in rows]) for key in keys]
    return [(name, cells) for name, cells in lines if any(cell != formats.ABSENT for cell in cells)]


def _corpora(run: RunFolder, facts: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("name", "folder", "fingerprint", "boundary")
    return {
        "rows": tables.corpus_rows(run),
        "about": [
            (name, [(formats.title(key), formats.cell(key, corpus[key])) for key in keys if corpus.get(key)])
            for name, corpus in (facts.get("corpora") or {}).items()
        ],
    }


def _tokenizer(facts: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer = facts.get("tokenizer") or {}
    return {key: tokenizer.get(key) for key in ("name", "n_vocab", "is_lossless", "sha256")}


def _comparison(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Lines of the paired comparison; what is not told otherwise is held against the first run."""
    rows = tables.comparison_rows(comparison or {})
    if not comparison or not rows:
        return None
    return {
        "heads": [formats.title(key) for key in rows[0]],
        "rows": [(row.get("name"), [formats.cell(key, value) for key, value in row.items()]) for row in rows],
        "baseline": rows[0].get("name"),
        "notes": comparison.get("notes") or [],
    }


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # written by matplotlib, which escapes its text
