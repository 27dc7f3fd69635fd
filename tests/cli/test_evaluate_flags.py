"""`evaluate` and `compare` of a bound and of exact orders, on two small runs: one masked, one autoregressive."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from armillary.cli import main


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_recipe) -> Path:
    root = tmp_path_factory.mktemp("home")
    few = ["training.steps=8", "training.schedule.warmup=2", "training.sample_every=null", "sampling.sampler=null"]
    for name in ("masked_diffusion", "autoregressive"):
        sets = [word for one in (*few, f"objective={{name: {name}}}") for word in ("--set", one)]
        with pytest.raises(SystemExit) as ending:
            main(["train", str(small_recipe), "--name", name[:6], *sets, "--root", str(root), "--log-level", "quiet"])
        assert not ending.value.code
    return root


@pytest.fixture
def evaluated(call, home):
    def run(*words: object) -> dict:
        status, out, err = call("evaluate", *words, "--json", "--root", home)
        assert status == 0, err
        (result,) = json.loads(out)
        return result

    return run


def stems(home: Path, run: str) -> set[str]:
    return {path.stem for path in (home / "runs" / run / "evaluation" / "scores").glob("*.json")}


def test_a_bound_has_its_error_and_its_passes(evaluated, home, call):
    usual, two = evaluated("masked"), evaluated("masked", "--samples", 2)
    assert (usual["kind"], usual["n_passes"], two["n_passes"]) == ("monte_carlo_bound", 8, 2)
    assert usual["margin_nats"] == pytest.approx(2.36462 * usual["stderr_nats"], rel=1e-4)
    assert abs(usual["nats"] - two["nats"]) < 2 * (usual["margin_nats"] + two["margin_nats"])
    assert usual["protocol"]["order"] == "mean over orders"
    assert evaluated("masked") | {"seconds": 0} == usual | {"seconds": 0}
    assert {stem.rpartition("-")[2] for stem in stems(home, "masked")} >= {"n8", "n2"}
    line = call("evaluate", "masked", "--samples", 2, "--root", home)[1]
    assert "Monte-Carlo bound ± " in line and "2 passes" in line


def test_exact_orders_are_kept_apart(evaluated, home, call):
    found = {order: evaluated("masked", "--exact", order, "--tokens", 60, "--window", 16) for order in
             ("left_to_right", "random", "adaptive")}  # fmt: skip
    bound = evaluated("masked", "--tokens", 60, "--window", 16)
    assert len({result["nats"] for result in found.values()}) == 3
    for order, result in found.items():
        assert (result["kind"], result["stderr_nats"], result["protocol"]["order"]) == ("exact", 0, order)
        assert result["protocol_hash"] == bound["protocol_hash"]
        assert result["protocol"]["split"].endswith("]")
    assert {f"w16-s8-{kind}-t60" for kind in ("exact-left_to_right", "exact-random", "exact-adaptive", "n8")} <= {
        "w16" + stem.partition("w16")[2] for stem in stems(home, "masked")
    }
    line = call("evaluate", "masked", "--exact", "random", "--tokens", 60, "--root", home)[1]
    assert line.rstrip().endswith("exact, random")


def test_left_to_right_is_what_an_autoregressive_model_does(evaluated):
    exact, usual = evaluated("autore", "--exact", "left_to_right"), evaluated("autore")
    assert exact["nats"] == usual["nats"]
    assert exact["protocol"] == usual["protocol"]


def test_references_score_the_documents_that_the_model_scored(call, home):
    status, out, err = call("evaluate", "autore", "--references", "--tokens", 60, "--json", "--root", home)
    assert status == 0, err
    model, uniform, *_ = json.loads(out)
    n_choices = 320 - 2
    assert uniform["nats"] == pytest.approx(model["n_tokens"] * math.log(n_choices))
    assert all(result["n_bytes"] == model["n_bytes"] for result in json.loads(out))


def test_a_dry_run_tells_the_cost(call, home):
    def told(*words: object) -> dict:
        return json.loads(call("evaluate", *words, "--dry-run", "--root", home)[1])

    bound, exact, plain = told("masked"), told("masked", "--exact", "adaptive"), told("autore")
    assert (
        bound["network_rows"]["main"] == 16 * plain["network_rows"]["main"]
    )  # 8 passes, each a set and its complement
    assert exact["network_rows"]["main"] > bound["network_rows"]["main"]
    assert (bound["samples"], exact["samples"], plain["samples"]) == (8, None, None)
    assert (exact["order"], exact["kind"]) == ("adaptive", "exact")
    few = told("masked", "--exact", "adaptive", "--tokens", 60)
    assert few["network_rows"]["main"] < exact["network_rows"]["main"] / 4


def test_compare_shows_kind_error_and_order(call, home):
    status, out, err = call("compare", "masked", "autore", "--tokens", 200, "--samples", 3, "--root", home)
    assert status == 0, err
    head, _, masked, plain, *notes = out.splitlines()
    assert all(word in head for word in ("kind", "order", "Monte-Carlo error"))
    assert "Monte-Carlo bound" in masked and "mean over orders" in masked
    assert "exact" in plain and "left to right" in plain
    assert any("kinds differ" in note for note in notes)
    words = ["compare", "masked", "autore", "--tokens", 60, "--exact", "left_to_right", "--json", "--root", home]
    exact = json.loads(call(*words)[1])
    assert [row["kind"] for row in exact["rows"]] == ["exact", "exact"] and exact["notes"] == []


def test_what_cannot_be_is_refused(call, home):
    for words, needle in (
        (("evaluate", "autore", "--exact", "random"), "left to right only"),
        (("compare", "masked", "autore", "--exact", "adaptive"), "left to right only"),
        (("evaluate", "autore", "--samples", 4), "leave it out"),
        (("evaluate", "masked", "--samples", 4, "--exact", "random"), "leave it out"),
        (("compare", "autore", "autore", "--samples", 4), "leave it out"),
    ):
        status, out, err = call(*words, "--root", home)
        assert status == 2 and out == "", err
        assert needle in err and err.count("\n") == 1, err
    for words in (("--exact", "sideways"), ("--samples", 1), ("--tokens", 0)):
        status, out, err = call("evaluate", "masked", *words, "--root", home)
        assert (status, out) == (2, "") and words[0] in err
