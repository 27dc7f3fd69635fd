"""`judge` on two small runs: figures beside those of held-out text, what is kept, and what is refused."""

from __future__ import annotations

import json
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
            main(["train", str(small_recipe), "--name", name, *sets, "--root", str(root), "--log-level", "quiet"])
        assert not ending.value.code
    return root


def test_texts_are_judged_beside_real_ones_and_kept(call, home):
    words = ["judge", "masked_diffusion", "--by", "autoregressive", "--n", 3, "--max-new-tokens", 6, "--root", home,
             "--sampler", "ancestral", "--steps", 2, "--steps", 6]  # fmt: skip
    status, out, err = call(*words, "--json")
    assert status == 0, err
    two, six, real = json.loads(out)
    assert (two["sampler"]["steps"], six["sampler"]["steps"]) == (2, 6) and real["name"] == "held-out text"
    assert two["tokens_per_evaluation"] >= 3 and six["tokens_per_evaluation"] >= 1
    assert all(one["judge_perplexity"] > 1 and len(one["distinct"]) == 3 for one in (two, six, real))
    assert two["judge_perplexity"] != six["judge_perplexity"]
    kept = [json.loads(p.read_text()) for p in (home / "runs/masked_diffusion/evaluation/texts").glob("*.json")]
    assert sorted(one["sampler"]["steps"] for one in kept) == [2, 6] and all(len(one["texts"]) == 3 for one in kept)
    table = call(*words)[1]
    assert "perplexity under the judge" in table and "held-out text" in table and table.count("\n") == 6


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["autoregressive", "--by", "autoregressive"], "its own texts"),
        (["autoregressive", "--by", "masked_diffusion"], "exact likelihood"),
        (["autoregressive", "--by", "masked_diffusion", "--steps", 3], "no steps"),
        (["masked_diffusion", "--by", "autoregressive", "--max-new-tokens", 99999], "no held-out document"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(call, home, words, needle):
    status, out, err = call("judge", *words, "--n", 2, "--root", home)
    assert (status, out) == (2, "") and needle in err and err.count("\n") == 1, err
