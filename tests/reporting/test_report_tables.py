"""Rows for the report and the command line: figures, differences of recipes, Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from armillary.reporting import formats, tables
from armillary.run_folder import RunFolder

Make = Callable[..., RunFolder]


def test_runs_table(trained: Make, new_run: Make, tmp_path: Path) -> None:
    trained("a")
    new_run("b")
    torn = new_run("c")
    (torn.path / "run.json").write_text("{")
    first, second, third = tables.runs_table(tmp_path)
    assert first["age_seconds"] < 60
    del first["age_seconds"]
    assert first == {
        "name": "a",
        "state": "finished",
        "step": 200,
        "steps": 200,
        "parameters": 2_654_400,
        "best_bits_per_byte": 1.95,
    }
    assert second["name"] == "b" and second["state"] is None and second["step"] is None
    assert third["state"].startswith("unreadable: ") and "run.json" in third["state"]
    assert tables.runs_table(tmp_path / "nowhere") == []


def test_run_facts(trained: Make, new_run: Make) -> None:
    row = tables.run_facts(trained())
    assert row["tokens_seen"] == 819_200
    assert row["equivalent_epochs"] == pytest.approx(0.8192)
    assert row["tokens_seen_per_parameter"] == pytest.approx(819_200 / 2_654_400)
    assert row["n_steps_not_finite"] == 1
    assert row["events"] == ["interrupted × 1"]
    assert row["seed"] == 42
    assert tables.run_facts(new_run("fresh"))["tokens_seen"] is None


def test_facts_leave_superseded_steps_out(trained: Make) -> None:
    run = trained()
    run.mark_resumed(50, 2)
    run.append("metrics.jsonl", {"kind": "train", "attempt": 2, "step": 60, "loss": 5.0, "n_tokens": 60 * 4096})
    row = tables.run_facts(run)
    assert (row["step"], row["tokens_seen"], row["n_steps_not_finite"]) == (60, 60 * 4096, 0)


def test_corpus_rows(trained: Make) -> None:
    (row,) = tables.corpus_rows(trained())
    assert row["bytes_per_token"] == 4.0
    assert row["epochs"] == pytest.approx(3200 / 3906)


def test_recipe_difference() -> None:
    a = {"seed": 1, "x": {"y": {"z": 1, "same": [1, 2]}, "flag": True}, "list": [1], "none": None}
    b = {"seed": 1, "x": {"y": {"z": 2, "same": [1, 2]}, "flag": 1}, "list": [1, 2], "text": "1"}
    assert tables.recipe_difference({"a": a, "b": b}) == [
        {"key": "x.y.z", "a": "1", "b": "2"},
        {"key": "x.flag", "a": "true", "b": "1"},
        {"key": "list", "a": "[1]", "b": "[1, 2]"},
        {"key": "none", "a": "null"},
        {"key": "text", "b": "'1'"},
    ]
    assert tables.recipe_difference({"a": a, "b": a}) == []


def test_comparison_rows_name_their_unit() -> None:
    rows = [{"name": "a", "difference_bits": None}, {"name": "b", "difference_bits": 0.5, "is_different": False}]
    assert tables.comparison_rows({"unit": "word", "rows": rows}) == [
        {"name": "a", "difference_bits_per_word": None, "is_different": None},
        {"name": "b", "difference_bits_per_word": 0.5, "is_different": False},
    ]
    assert tables.comparison_rows({}) == []


def test_as_markdown() -> None:
    rows = [
        {"name": "a|b", "bits_per_byte": 1.93149, "parameters": 2_654_400, "age_seconds": 171},
        {"name": "c", "bits_per_byte": None, "parameters": 10, "age_seconds": 3 * 3600},
    ]
    assert tables.as_markdown(rows) == (
        "| name | bits per byte | parameters | last wrote, ago |\n"
        "| ---- | ------------: | ---------: | --------------: |\n"
        "| a\\|b |         1.931 |  2,654,400 |      2 min 51 s |\n"
        "| c    |             — |         10 |      3 h 00 min |\n"
    )
    assert tables.as_markdown([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "< 0.1 s"),
        (0.84, "0.8 s"),
        (48.4, "48 s"),
        (59.7, "1 min 00 s"),
        (171, "2 min 51 s"),
        (11_100, "3 h 05 min"),
        (356_400, "4 d 3 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


def test_figures() -> None:
    assert formats.cell("word_perplexity", float("inf")) == "∞"
    assert formats.cell("word_perplexity", 37.504) == "37.50"
    assert formats.cell("difference_bits_per_byte", -0.0449) == "−0.045"
    assert formats.cell("interval_bits_per_byte", (1.9, 1.96)) == "1.900–1.960"
    assert formats.cell("seed", 12345) == "12345"
    assert formats.cell("n_bytes", 12345) == "12,345"
    assert formats.cell("kind", "upper_bound") == "upper bound"
    assert formats.short(1_500_000) == "1.5M" and formats.short(0) == "0"
