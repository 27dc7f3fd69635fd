"""The page of a report: whole, safe, loads nothing, and right in its figures; also for a run that has just begun."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from armillary.refusal import Refusal
from armillary.reporting.report import write_report
from armillary.run_folder import RunFolder, write_json

Make = Callable[..., RunFolder]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags close in order, and keeps tags, attributes and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> out of order"
        self.text += " " if tag in {"td", "th", "dt", "dd", "p", "h1", "h2"} else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def page(runs: list[RunFolder], folder: Path, comparison: dict[str, Any] | None = None) -> Page:
    parsed = Page(write_report(runs, folder / "report.html", comparison).read_text(encoding="utf-8"))
    loads_nothing(parsed)
    return parsed


def loads_nothing(parsed: Page) -> None:
    """No tag or attribute that would fetch or run anything; what is missing in a young run is no excuse."""
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image"}
    for name, value in parsed.attributes:
        assert name not in {"src", "srcset", "action", "background"} and not name.startswith("on")
        assert not name.endswith("href") or (value or "").startswith("#")
        assert "//" not in (value or "")


def words(text: str) -> str:
    return " ".join(text.split())


def test_finished_run(trained: Make, tmp_path: Path) -> None:
    text = words(page([trained()], tmp_path).text)
    assert "1.931 bits per byte (exact, 95 % interval 1.901–1.961) on the test split of sotu." in text
    assert "Kneser–Ney 5-gram over the same tokens, reaches 1.880: the model is worse by 0.051 (2.7 %)" in text
    for fact in ("2,654,400", "1,868,000", "819,200", "2 min 21 s", "0.82", "1.950", "interrupted × 1", "bf16"):
        assert fact in text, fact
    assert "armillary train demo --name demo" in text
    assert "1 recorded step whose loss was not finite" in text
    assert "No evaluation" not in text


def test_sections_are_in_order(trained: Make, tmp_path: Path) -> None:
    text = page([trained("a"), trained("b", seed=7)], tmp_path, {"rows": [{"name": "a"}]}).text
    order = (
        "Result on",
        "How it was",
        "bits per byte (lower",
        "Training",
        "Samples over",
        "The runs",
        "Where the recipes",
    )
    places = [text.index(head) for head in (*order, "Paired comparison", "Corpus and", "To make it again")]
    assert places == sorted(places)


def test_loads_nothing_and_is_small(trained: Make, tmp_path: Path) -> None:
    run = trained(about="see https://example.com/a.png")
    started = time.process_time()
    file = write_report([run], tmp_path / "report.html")
    assert time.process_time() - started < 3
    html = file.read_text(encoding="utf-8")
    assert len(html) < 1_500_000
    loads_nothing(Page(html))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert "prefers-color-scheme: dark" in style


def test_figures_use_the_colours_of_the_page(trained: Make, tmp_path: Path) -> None:
    html = write_report([trained()], tmp_path / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 6
    assert all("var(--run-0)" in figure and "var(--sans)" in figure for figure in figures)
    assert not re.search(r"#[0-9a-f]{6}\b", " ".join(figures))
    assert not re.search(r"DejaVu", " ".join(figures))


def test_hostile_text_stays_text(trained: Make, tmp_path: Path, likelihood: Callable[..., dict[str, Any]]) -> None:
    bad = "<script>alert('x')</script>"
    run = trained("a<b>&amp;", about=bad, note={"key" + bad: bad})
    sample = {
        "attempt": 1,
        "step": 200,
        "prompt": bad + "prompt",
        "text": f"</p>{bad}\x00\x1b[31m\ud800",
        "finish": bad,
    }
    run.append("samples/samples.jsonl", sample)
    run.append("events.jsonl", {"attempt": 1, "step": 3, "event": bad, "detail": bad})
    run.update_facts(commands=[bad], state=bad, tokenizer={"name": bad})
    reference = likelihood(bad + "$x_1$", 2.0, about=bad)
    write_json(run.path / "evaluation" / "test.json", {"results": [likelihood(bad, 1.9)], "references": [reference]})
    comparison = {"rows": [{"name": bad, "bits_per_byte": 1.0}], "notes": [bad]}
    parsed = page([run, trained("b")], tmp_path, comparison)
    assert "script" not in parsed.tags and "b" not in parsed.tags
    assert parsed.text.count("<script>alert('x')</script>") >= 12
    assert "a<b>&amp;" in parsed.text
    assert "\\x00\\x1b[31m" in parsed.text and "\x00" not in parsed.text


def test_run_that_has_just_begun(new_run: Make, tmp_path: Path) -> None:
    text = words(page([new_run()], tmp_path).text)
    assert "This run has just begun: nothing is measured yet." in text
    for line in ("No evaluation is here yet.", "No step is recorded yet.", "No sample is written yet."):
        assert line in text
    assert "None" not in text


def test_running_run_says_where_it_is(new_run: Make, tmp_path: Path) -> None:
    run = new_run()
    run.update_facts(state="running", steps=200)
    run.append("metrics.jsonl", {"kind": "train", "attempt": 1, "step": 10, "loss": None, "n_tokens": None})
    assert "nothing is measured yet" in page([run], tmp_path).text
    run.append("metrics.jsonl", {"kind": "train", "attempt": 1, "step": 20, "loss": 8.25, "n_tokens": 100})
    text = words(page([run], tmp_path).text)
    assert "This run is running, at step 20 of 200." in text
    assert "At step 20 of 200 the training loss is 8.250 nats per token." in text
    validation = {"kind": "validation", "attempt": 1, "step": 20, "corpus": "sotu", "loss": 7.0, "bits_per_byte": 2.5}
    run.append("metrics.jsonl", validation)
    assert "validation of sotu came to 2.500 bits per byte at step 20" in words(page([run], tmp_path).text)


def test_only_losses_that_are_not_finite(new_run: Make, tmp_path: Path) -> None:
    run = new_run()
    for step in (10, 20):
        run.append("metrics.jsonl", {"kind": "train", "attempt": 1, "step": step, "loss": None, "grad_norm": None})
    assert "2 recorded steps whose loss was not finite" in page([run], tmp_path).text


def test_lossy_tokenizer(trained: Make, tmp_path: Path, likelihood: Callable[..., dict[str, Any]]) -> None:
    run = trained()
    record = likelihood("demo", 1.9, vocabulary="closed:abc", interval=None)
    assert record["bits_per_byte"] is None
    write_json(run.path / "evaluation" / "test.json", {"split": "test", "checkpoint": "best", "results": [record]})
    text = words(page([run], tmp_path).text)
    assert "word perplexity 1,505 (exact; a lossy tokenizer gives no bits per byte)" in text
    assert "assigns no probability to the bytes" in text


def test_two_runs_show_where_the_recipes_differ(trained: Make, tmp_path: Path) -> None:
    training = {"steps": 200, "optimizer": {"name": "muon", "lr": 0.02, "momentum": 0.95}}
    text = words(page([trained("a"), trained("b", bits=1.85, training=training)], tmp_path).text)
    differences = text[text.index("Where the recipes differ") : text.index("Corpus and tokenizer")]
    assert "training.optimizer.name adamw muon" in differences
    assert "training.optimizer.momentum not set 0.95" in differences
    assert "seed" not in differences and "training.steps" not in differences
    assert (
        "b: 1.850 bits per byte" in text
        and "a: 1.931 bits per byte (exact, 95 % interval 1.901–1.961), +0.081." in text
    )


def test_a_comparison_without_rows_is_left_out(trained: Make, tmp_path: Path) -> None:
    assert "Paired comparison" not in page([trained("c")], tmp_path, {"rows": []}).text


def test_comparison_as_evaluation_gives_it(trained: Make, tmp_path: Path) -> None:
    from armillary.evaluation.comparison import Comparison, Row

    first = Row("a", "exact", {}, 1.931, (1.90, 1.96), 37.5, None, None, 0.0)
    found = Row("b", "exact", {}, 1.886, (1.85, 1.92), 33.1, None, None, 0.0, -0.045, (-0.051, -0.039), True)
    comparison = Comparison({}, "byte", (first, found), ("one note", "another")).as_json()
    text = words(page([trained("a"), trained("b")], tmp_path, comparison).text)
    assert "b exact 1.886 1.850–1.920 −0.045 −0.051 to −0.039 yes 33.10" in text
    assert "Differences are against a" in text and "one note; another" in text


def test_the_caption_tells_a_cut_only_where_there_is_one(new_run: Make, tmp_path: Path) -> None:
    run = new_run()
    for step in range(1, 101):
        run.append("metrics.jsonl", {"kind": "train", "attempt": 0, "step": step, "loss": 5 + step / 100})
    assert "the frame leaves out" not in words(page([run], tmp_path).text)
    steep = new_run("steep")
    for step in range(1, 101):
        loss = 9.5 if step == 1 else 5 - step / 100
        steep.append("metrics.jsonl", {"kind": "train", "attempt": 0, "step": step, "loss": loss})
    assert "At step 1 the loss was 9.50; the frame leaves out" in words(page([steep], tmp_path).text)


def test_samples_are_thinned_over_the_whole_run(new_run: Make, tmp_path: Path) -> None:
    run = new_run()
    for step in range(1, 101):
        run.append(
            "samples/samples.jsonl", {"attempt": 1, "step": step, "prompt": "", "text": f"at {step}!" + "x" * 3000}
        )
    parsed = page([run], tmp_path)
    assert "at 1!" in parsed.text and "at 100!" in parsed.text
    assert "60 left out" in parsed.text
    assert "1,005 characters more" in words(parsed.text)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no run was given"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(Refusal, match=r"holds no recipe\.yaml"):
        write_report([RunFolder(tmp_path / "nothing")], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_heavy_imports_wait() -> None:
    code = (
        "import sys, armillary.reporting.report, armillary.reporting.tables;"
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
