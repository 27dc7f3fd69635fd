"""Shared by the trust tests: a run of sixty steps and twenty checkpoints, and how two runs are held to be the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary.run_folder import RunFolder

SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")


@pytest.fixture(scope="session")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 250 kB in 1,200 documents: enough that a kill can land inside each stage of preparing it."""
    draw = random.Random(1)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(400)]
    documents = [" ".join(draw.choices(words, k=draw.randint(20, 60))) + "." for _ in range(1200)]
    path = tmp_path_factory.mktemp("long") / "words.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def killed_recipe(tmp_path_factory: pytest.TempPathFactory, long_text: Path) -> Path:
    """Dropout, accumulation and an average of the weights; a validation and a checkpoint every few steps."""
    path = tmp_path_factory.mktemp("recipes") / "killed.yaml"
    path.write_text(
        f"""
name: killed
corpora: {{main: {{source: {{name: files, path: {long_text}}}}}}}
tokenizer: {{name: bpe, vocabulary: 320}}
packing: {{window: 32}}
model: {{backbone: {{name: llama, d_model: 32, n_layers: 2, n_heads: 2, dropout: 0.1}}}}
objective: {{name: autoregressive}}
training:
  steps: 60
  batch_rows: 8
  accumulation: 2
  optimizer: {{name: adamw, learning_rate: 3.0e-3}}
  schedule: {{name: cosine, warmup: 4}}
  precision: fp32
  device: cpu
  ema: 0.9
  log_every: 1
  validate_every: 6
  validation_rows: 16
  checkpoint_every: 3
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def assert_same_end() -> Callable[[RunFolder, RunFolder], None]:
    """Both runs have ended, with the same bits in every tensor and the same figures in the log, nothing left lying."""

    def check(whole: RunFolder, broken: RunFolder) -> None:
        last = whole.checkpoint(whole.checkpoint_steps()[-1])
        found = broken.checkpoint(broken.checkpoint_steps()[-1])
        assert found.name == last.name
        files = sorted(path.name for path in last.glob("*.safetensors"))
        assert files == sorted(path.name for path in found.glob("*.safetensors"))
        for file in files:
            ours, theirs = load_file(last / file), load_file(found / file)
            assert ours.keys() == theirs.keys()
            differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
            assert not differing, (file, differing)
        for kind in ("train", "validation"):
            curves = [[(r["step"], r["loss"]) for r in run.metrics(kind)] for run in (whole, broken)]
            assert curves[0] == curves[1], kind
        facts = [run.facts() for run in (whole, broken)]
        assert [f["state"] for f in facts] == ["finished", "finished"]
        assert facts[0]["best_step"] == facts[1]["best_step"]
        assert whole.checkpoint_steps() == broken.checkpoint_steps()
        assert not list(broken.checkpoints.glob(".*"))

    return check
