"""The verdict says no more than its figures allow: bounds, intervals, other text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from armillary.reporting import results
from armillary.run_folder import RunFolder, write_json

Make = Callable[..., RunFolder]
Record = Callable[..., dict[str, Any]]


def told(run: RunFolder, model: dict[str, Any], *references: dict[str, Any], **about: Any) -> str:
    evaluation = {"split": "test", "checkpoint": "last", "step": 5, "results": [model], "references": references}
    write_json(run.path / "evaluation" / "test.json", evaluation | about)
    return " ".join(results.verdict(results.groups([run], [run.name])[0]))


def test_against_one_reference(new_run: Make, likelihood: Record) -> None:
    run, reference = new_run(), likelihood("xz", 2.0)
    assert "The reference, xz, reaches 2.000: the model is better by 0.200 (10.0 %)." in told(
        run, likelihood("demo", 1.8), reference
    )
    assert "worse by 0.200 (10.0 %)." in told(run, likelihood("demo", 2.2), reference)
    assert "worse by 0.020 (1.0 %), a gap within its interval." in told(run, likelihood("demo", 2.02), reference)
    assert "equals it to three decimals" in told(run, likelihood("demo", 2.0), reference)


def test_a_bound_claims_no_more_than_it_shows(new_run: Make, likelihood: Record) -> None:
    run, reference = new_run(), likelihood("xz", 2.0)
    below = told(run, likelihood("demo", 1.8, kind="upper_bound"), reference)
    assert "at most 1.800 bits per byte (upper bound" in below and "better by at least 0.200" in below
    above = told(run, likelihood("demo", 2.2, kind="monte_carlo_bound"), reference)
    assert "worse" not in above and "does not settle which is better" in above


def test_validation_that_chose_the_checkpoint_is_said(new_run: Make, likelihood: Record) -> None:
    run, record = new_run(), likelihood("demo", 1.8, split="validation")
    assert "flatters" in told(run, record, checkpoint="best", split="validation")
    assert "flatters" not in told(run, record, checkpoint="last", split="validation")
    assert "flatters" not in told(run, likelihood("demo", 1.8), checkpoint="best")


def test_other_text_is_never_ranked(new_run: Make, likelihood: Record) -> None:
    a, b = new_run("a"), new_run("b")
    for run, text in ((a, "1" * 64), (b, "2" * 64)):
        record = likelihood(run.name, 1.8, text_sha256=text)
        write_json(run.path / "evaluation" / "test.json", {"results": [record]})
    groups = results.groups([a, b], ["a", "b"])
    assert [[row.label for row in group.rows] for group in groups] == [["a"], ["b"]]
    assert results.verdict(groups[0], is_named=True)[0].startswith("a: 1.800")
    assert len(results.verdict(groups[0], is_named=True)) == 1


def test_test_split_comes_before_validation(new_run: Make, likelihood: Record) -> None:
    run = new_run()
    for split in ("validation", "test"):
        record = likelihood("demo", 1.8, split=split)
        write_json(run.path / "evaluation" / f"a-{split}.json", {"results": [record], "split": split})
    (run.path / "evaluation" / "a-test.json").rename(run.path / "evaluation" / "z-test.json")
    assert [group.split for group in results.groups([run], ["demo"])] == ["test", "validation"]


def test_rows_of_one_name_are_told_apart(new_run: Make, likelihood: Record) -> None:
    run = new_run()
    for checkpoint, step, bits in (("best", 50, 1.8), ("last", 90, 1.9)):
        evaluation = {"checkpoint": checkpoint, "step": step, "results": [likelihood("demo", bits)]}
        write_json(run.path / "evaluation" / f"{checkpoint}.json", evaluation | {"references": [likelihood("xz", 2.0)]})
    (group,) = results.groups([run], ["demo"])
    assert [row.label for row in group.rows] == ["demo, best checkpoint", "demo, last checkpoint", "xz"]
    assert [row.step for row in group.models] == [50]


def test_references_over_other_tokens_stay_two(new_run: Make, likelihood: Record) -> None:
    runs = [new_run("a"), new_run("b")]
    for run, bits in zip(runs, (1.9, 1.95), strict=True):
        references = [likelihood("Kneser–Ney", bits), likelihood("xz", 2.0)]
        record = likelihood(run.name, 1.8)
        write_json(run.path / "evaluation" / "test.json", {"results": [record], "references": references})
    (group,) = results.groups(runs, ["a", "b"])
    assert [row.label for row in group.references] == [
        "Kneser–Ney, over the tokens of a",
        "Kneser–Ney, over the tokens of b",
        "xz",
    ]


def test_rounded_gap_and_overlap_between_runs(new_run: Make, likelihood: Record) -> None:
    runs = [new_run("a"), new_run("b")]
    for run, bits in zip(runs, (1.9, 1.93), strict=True):
        write_json(run.path / "evaluation" / "test.json", {"results": [likelihood(run.name, bits)]})
    (group,) = results.groups(runs, ["a", "b"])
    first, second = results.verdict(group, is_named=True)
    assert first.startswith("a: 1.900")
    assert second.startswith("b: 1.930") and "+0.030; their intervals overlap" in second
