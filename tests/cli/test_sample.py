"""`sample` and `compatibility` on a real small diffusion run: holes, samplers, frames, the live text, refusals."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from armillary.cli import main
from armillary.refusal import ArmillaryWarning

SMALL = ["--steps", 8, "--set", "training.schedule.warmup=2", "--set", "training.validation_rows=4",
         "--set", "tokenizer.vocabulary=300", "--set", "packing.window=32"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory, text_file) -> Path:
    root = tmp_path_factory.mktemp("home")
    for recipe in ("mdlm-smoke", "baseline-gpt"):
        own = ["--set", "model.backbone={name: gpt, d_model: 16, n_layers: 1, n_heads: 2, max_length: 32}",
               "--set", "training.batch_rows=4"] if recipe == "baseline-gpt" else []  # fmt: skip
        words = ["train", recipe, "--data", text_file, *SMALL, *own, "--root", root, "--log-level", "quiet"]
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        assert not ending.value.code
    return root


def refused(found, *needles):
    status, out, err = found
    assert status == 2, err
    assert out == "" and err.startswith("armillary: ") and err.count("\n") == 1, err
    for needle in needles:
        assert needle in err, err


def test_holes_are_filled_and_contexts_kept(call, home):
    words = ["sample", "mdlm-smoke", "--infill", "the <8> of <4>.", "--n", 2, "--root", home]
    status, out, err = call(*words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [row["n_tokens"] for row in found] == [12, 12] and found[0]["text"] != found[1]["text"]
    for row in found:
        assert row["text"] == f"the {row['holes'][0]} of {row['holes'][1]}."
    assert call(*words)[1].count("\nthe ") == 1  # two texts, a rule between them


def test_another_sampler_and_its_settings(call, home):
    words = ["sample", "mdlm-smoke", "--prompt", "the ", "--max-new-tokens", 9, "--root", home]

    def found(*more):
        status, out, err = call(*words, *more, "--json")
        assert status == 0, err
        return json.loads(out)[0]

    assert found("--steps", 3)["n_evaluations"] <= 3 and found("--sampler", "first_hitting")["n_evaluations"] == 9
    guided = ["--sampler", "confident", "--steps", 3, "--guidance", 1.5]
    assert found(*guided)["n_evaluations"] == 6 and found(*guided[:4])["n_evaluations"] == 3
    assert found(*guided[:4])["nats"] is None
    by_field = found("--sampler", "confident", "--set", "sampling.sampler.steps=3")
    assert by_field == found(*guided[:4])
    blocks = ["--sampler", "blockwise", "--set", "sampling.sampler.block=4", "--temperature", 0]
    assert found(*blocks, "--seed", 1)["text"] == found(*blocks, "--seed", 2)["text"]
    settings = json.loads(call(*words, *guided, "--dry-run")[1])["settings"]
    assert (settings["steps"], settings["guidance"]) == (3, 1.5)


def test_frames_are_written_and_the_gif_moves(call, home, tmp_path):
    from PIL import Image

    folder = tmp_path / "frames"
    words = ["sample", "mdlm-smoke", "--infill", "the <5>.", "--sampler", "first_hitting", "--frames", folder]
    assert call(*words, "--dry-run", "--root", home)[0] == 0 and not folder.exists()
    status, out, err = call(*words, "--root", home)
    assert status == 0, err
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("frame-*.txt"))]
    assert texts[0] == "the ░░░░░.\n" and texts[-1] == out and len(texts) == 6
    assert [text.count("░") for text in texts] == [5, 4, 3, 2, 1, 0]
    with Image.open(folder / "animation.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 6 and gif.info["duration"] >= 50
    refused(call(*words, "--root", home), "--frames", "not empty")
    more = tmp_path / "more"
    assert call("sample", "mdlm-smoke", "--infill", "the <2>.", "--steps", 40, "--frames", more, "--root", home)[0] == 0
    texts = [path.read_text(encoding="utf-8") for path in sorted(more.glob("frame-*.txt"))]
    assert 2 <= len(texts) <= 3 and all(a != b for a, b in itertools.pairwise(texts))


def test_the_text_resolves_on_a_terminal(call, home, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    words = ["sample", "mdlm-smoke", "--prompt", "the ", "--max-new-tokens", 4, "--live", "--root", home]
    with pytest.raises(ArmillaryWarning, match="no terminal"):  # here a warning of ours is an error
        call(*words)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("armillary.cli.resolving.SECONDS_A_FRAME", 0.0)
    status, out, _ = call(*words)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert status == 0 and out.startswith("the ") and "the ░░░░" in shown and "░" not in out
    assert re.search(r"(\x1b\[1A\x1b\[2K)\s*\Z", terminal.getvalue())  # wiped: the text itself goes to stdout


def test_flags_that_the_sampler_does_not_have_are_refused(call, home):
    words, root = ["sample", "mdlm-smoke"], ["--root", home]
    refused(call(*words, "--top-k", 3, *root), "--top-k", "ancestral has no top_k")
    refused(call(*words, "--stop", "a", *root), "--stop")
    refused(call(*words, "--sampler", "ancestrall", *root), "'ancestral'")
    refused(call(*words, "--sampler", "left_to_right", *root), "needs next_token", "use ancestral")
    refused(call(*words, "--sampler", "blockwise", *root), "sampling.sampler.block")
    refused(call(*words, "--infill", "no hole", *root), "no hole", "<8>")
    refused(call(*words, "--infill", "a <3>", "--prompt", "a", *root), "--infill", "--prompt")
    refused(call(*words, "--max-new-tokens", 99, *root), "ask for at most 63")
    left = ["sample", "baseline-gpt"]
    refused(call(*left, "--infill", "a <3>", *root), "--infill", "left to right")
    refused(call(*left, "--live", *root), "--live")
    refused(call(*left, "--steps", 3, *root), "--steps", "left_to_right has no steps; did you mean 'stop'")
    assert call(*left, "--prompt", "the", "--top-k", 3, *root)[0] == 0


def test_compatibility_says_what_works(call):
    cells = json.loads(call("compatibility", "--json")[1])
    assert all(cell.keys() == {"backbone", "objective", "sampler", "works", "reason"} for cell in cells)
    lines = call("compatibility")[1].splitlines()
    assert len(lines) == len({(cell["backbone"], cell["objective"]) for cell in cells})
    line = next(line for line in lines if line.startswith("gpt · uniform_diffusion"))
    assert line.split()[-1] == "ancestral"
    page = Path(__file__).parents[2] / "docs" / "compatibility.md"
    assert call("compatibility", "--markdown")[1] == page.read_text(encoding="utf-8")


def test_recipes_that_do_not_fit_are_refused_before_any_work(call, small_recipe, tmp_path):
    words, root = ["train", small_recipe, "--set"], ["--root", tmp_path]
    refused(call(*words, "objective={name: masked_diffusion}", *root), "left_to_right needs next_token", "ancestral")
    refused(call(*words, "objective={name: uniform_diffusion}", *root), "knows_noise_level=true")
    refused(call(*words, "model.backbone.knows_noise_level=true", *root), "knows_noise_level=false")
    assert not (tmp_path / "runs").exists()
