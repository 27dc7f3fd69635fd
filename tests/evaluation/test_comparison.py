"""Intervals that cover, pairs that are narrower, and comparisons that are refused where the text differs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary.evaluation.comparison import Comparison, Scores, compare, interval, load_scores, save_scores
from armillary.records import SCORED_FIELDS, Kind, Likelihood, Protocol
from armillary.refusal import Refusal

PROTOCOL = Protocol(
    corpus="c0ffee",
    split="test",
    text_sha256="ab" * 32,
    n_documents=40,
    boundary="end_of_text",
    vocabulary="open",
    window=256,
    stride=128,
    tokenizer="bpe-1",
)


def make(name: str = "a", shift: float = 0.0, seed: int = 0, kind: Kind = "exact", **protocol: Any) -> Scores:
    """Scores of 40 documents: how hard a document is comes from `text`, equal for all runs; the rest from the seed."""
    about = replace(PROTOCOL, **protocol)
    text, own = np.random.default_rng(99), np.random.default_rng(seed)
    n = about.n_documents
    words = text.integers(20, 200, size=n)
    n_bytes = words * 5 + text.integers(0, 9, size=n)
    nats = n_bytes * (text.normal(0.8, 0.2, size=n) + shift + own.normal(0, 0.01, size=n))
    tokens = words * 2
    likelihood = Likelihood(
        nats=float(nats.sum()),
        kind=kind,
        stderr_nats=0.0,
        n_tokens=int(tokens.sum()),
        n_words=int(words.sum()),
        n_bytes=int(n_bytes.sum()),
        protocol=about,
    )
    return Scores(likelihood, name, nats, tokens, words, n_bytes)


@pytest.mark.parametrize("n_documents", [8, 100])
def test_the_interval_covers_the_true_ratio(n_documents: int) -> None:
    """400 data sets of known ratio: 95 ± 3 %, also for few documents, where plain percentiles cover 87 %."""
    generator = np.random.default_rng(5)
    true, n_covered = 1.2, 0
    for trial in range(400):
        units = generator.gamma(4.0, 250.0, size=n_documents)
        nats = units * true * (1 + generator.normal(0, 0.15, size=n_documents))
        found = interval(nats, units, scale=1, n_resamples=1000, seed=trial)
        assert found is not None
        n_covered += found[0] <= true <= found[1]
    assert 0.92 <= n_covered / 400 <= 0.98


def test_the_interval_is_deterministic_and_scales() -> None:
    scores = make()
    bits, nats = interval(scores.nats, scores.bytes), interval(scores.nats, scores.bytes, scale=1)
    assert bits is not None and nats is not None
    assert bits == interval(scores.nats, scores.bytes)
    assert bits != interval(scores.nats, scores.bytes, seed=1)
    assert np.array(bits) * math.log(2) == pytest.approx(np.array(nats))
    assert bits[0] < scores.nats.sum() / scores.bytes.sum() / math.log(2) < bits[1]


def test_drawing_in_chunks_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make()
    whole = interval(scores.nats, scores.bytes)
    monkeypatch.setattr("armillary.evaluation.comparison.MAX_DRAWS_AT_ONCE", 40 * 7)
    assert interval(scores.nats, scores.bytes) == pytest.approx(whole)


def test_one_document_has_no_interval() -> None:
    assert interval(np.array([3.0]), np.array([2])) is None
    comparison = compare([make("a", n_documents=1), make("b", n_documents=1)])
    assert comparison.rows[1].interval_difference_bits is None
    assert comparison.rows[1].is_different is None
    assert "no interval" in comparison.notes[0]


def test_documents_without_bytes_do_no_harm() -> None:
    found = interval(np.array([1.0, 2.0, 4.0]), np.array([0, 0, 8]))
    assert found is not None and all(math.isfinite(x) for x in found)
    assert interval(np.array([1.0, 2.0]), np.array([0, 0])) is None


def test_a_pair_is_narrower_than_two_apart() -> None:
    a, b = make("a"), make("b", shift=0.01, seed=1)
    paired = compare([a, b]).rows[1].interval_difference_bits
    alone = interval(a.nats, a.bytes)
    assert paired is not None and alone is not None
    assert paired[1] - paired[0] < 0.3 * (alone[1] - alone[0])


def test_differences_are_told_from_noise() -> None:
    comparison = compare([make("a"), make("worse", shift=0.05, seed=1), make("same", seed=2)])
    _, worse, same = comparison.rows
    assert worse.difference_bits == pytest.approx(0.05 / math.log(2), abs=0.01)
    assert worse.is_different is True
    assert worse.interval_difference_bits is not None and worse.interval_difference_bits[0] > 0
    assert same.is_different is False
    assert comparison.rows[0].difference_bits is None
    better = compare([make("worse", shift=0.05, seed=1), make("a")]).rows[1]
    assert better.difference_bits is not None
    assert -better.difference_bits == pytest.approx(worse.difference_bits)
    assert better.is_different is True


def test_a_run_does_not_differ_from_itself() -> None:
    row = compare([make("a"), make("b")]).rows[1]
    assert (row.difference_bits, row.interval_difference_bits, row.is_different) == (0.0, (0.0, 0.0), False)


def test_word_perplexity_is_exp_of_nats_over_words() -> None:
    a = make("a")
    row = compare([a, make("b", seed=1)]).rows[0]
    assert row.word_perplexity == pytest.approx(math.exp(a.nats.sum() / a.words.sum()))
    assert row.interval_word_perplexity is not None
    assert row.interval_word_perplexity[0] < row.word_perplexity < row.interval_word_perplexity[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("corpus", "other"),
        ("split", "valid"),
        ("text_sha256", "cd" * 32),
        ("n_documents", 41),
        ("boundary", "newline"),
        ("vocabulary", "closed:12"),
    ],
)
def test_results_on_another_text_are_refused(field: str, value: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        compare([make("left"), make("right", **{field: value})])
    line = str(refusal.value)
    assert line.startswith(f"{field}: ")
    assert all(repr(v) in line for v in (getattr(PROTOCOL, field), value))
    assert "left" in line and "right" in line and "\n" not in line


def test_every_scored_field_was_tried() -> None:
    (mark,) = test_results_on_another_text_are_refused.pytestmark  # type: ignore[attr-defined]
    assert {field for field, _ in mark.args[1]} == set(SCORED_FIELDS)


def test_other_counts_per_document_are_refused() -> None:
    a, b = make("a"), make("b")
    with pytest.raises(Refusal, match=r"bytes: a and b"):
        compare([a, replace(b, bytes=b.bytes[::-1].copy())])


def test_one_result_is_refused() -> None:
    with pytest.raises(Refusal, match="two results"):
        compare([make()])


def test_how_may_differ_and_is_shown() -> None:
    rows = compare([make("a"), make("b", window=512, stride=1, tokenizer="bpe-2", order="random")]).rows
    assert rows[1].how == {
        "window": 512,
        "stride": 1,
        "tokenizer": "bpe-2",
        "order": "random",
        "crosses_documents": True,
    }
    assert all(row.token_perplexity is None for row in rows)
    assert all(row.token_perplexity for row in compare([make("a"), make("b")]).rows)


def test_a_closed_vocabulary_is_compared_by_word() -> None:
    a, b = make("a", vocabulary="closed:1"), make("b", shift=0.05, vocabulary="closed:1")
    comparison = compare([a, b])
    assert comparison.unit == "word"
    assert comparison.rows[1].bits_per_byte is None
    assert comparison.rows[1].interval_bits_per_byte is None
    expected = (b.nats.sum() - a.nats.sum()) / a.words.sum() / math.log(2)
    assert comparison.rows[1].difference_bits == pytest.approx(expected)


def test_bounds_are_called_bounds() -> None:
    comparison = compare([make("a"), make("b", kind="upper_bound")])
    assert [row.kind for row in comparison.rows] == ["exact", "upper_bound"]
    assert "kinds differ" in comparison.notes[0]
    assert "all figures are bounds" in compare([make("a", kind="upper_bound")] * 2).notes[0]
    assert compare([make("a"), make("b")]).notes == ()


def test_json_is_plain_even_where_a_perplexity_overflows() -> None:
    a, b = make("a"), make("b", shift=500.0, seed=1)
    comparison = compare([a, b])
    assert isinstance(comparison, Comparison)
    record = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert record["rows"][1]["word_perplexity"] is None
    assert record["rows"][0]["word_perplexity"] == pytest.approx(a.likelihood.word_perplexity)
    assert record["scored"] == PROTOCOL.scored
    assert record["rows"][1]["interval_difference_bits"] == list(comparison.rows[1].interval_difference_bits or ())


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    scores = make("run.v1", window=512)
    scores = replace(scores, likelihood=replace(scores.likelihood, interval_bits_per_byte=(1.0, 1.25)))
    path = save_scores(tmp_path / "evaluation", "test-0.5", scores)
    assert path.name == "test-0.5.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["test-0.5.json", "test-0.5.npz"]
    back = load_scores(path)
    assert (back.name, back.likelihood) == (scores.name, scores.likelihood)
    for part in ("nats", "tokens", "words", "bytes"):
        np.testing.assert_array_equal(getattr(back, part), getattr(scores, part))
    assert json.loads(path.read_text())["bits_per_byte"] == scores.likelihood.bits_per_byte


def test_scores_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    scores = make()
    with pytest.raises(Refusal, match="words add up to"):
        save_scores(tmp_path, "test", replace(scores, words=scores.words + 1))
    with pytest.raises(Refusal, match=r"shape \(39,\)"):
        save_scores(tmp_path, "test", replace(scores, nats=scores.nats[1:]))
    assert not list(tmp_path.iterdir())
    path = save_scores(tmp_path, "test", scores)
    save_scores(tmp_path, "other", make(shift=1e-4))
    (tmp_path / "other.npz").replace(tmp_path / "test.npz")
    with pytest.raises(Refusal, match=r"test\.npz: nats add up to"):
        load_scores(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = save_scores(tmp_path, "test", make())
    arrays = tmp_path / "test.npz"
    whole = arrays.read_bytes()
    for damaged in (whole[:100], b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        arrays.write_bytes(damaged)
        with pytest.raises(Refusal, match=r"test\.npz"):
            load_scores(path)
    arrays.unlink()
    with pytest.raises(Refusal, match=r"test\.npz: is missing"):
        load_scores(path)
    path.write_text('{"name": "a"}')
    with pytest.raises(Refusal, match=r"test\.json: is not a result"):
        load_scores(path)
    with pytest.raises(Refusal, match="no such result"):
        load_scores(tmp_path / "none.json")
