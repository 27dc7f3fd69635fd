"""Shared by all tests: shapes are types here (jaxtyping + beartype), and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

for room in ("nn", "corruption", "backbones", "objectives", "samplers", "model"):
    jaxtyping.install_import_hook(f"armillary.{room}", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)  # pytest-xdist runs two processes on two cores


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real datasets, beside the repository or named by ARMILLARY_DATA."""
    folder = Path(os.environ.get("ARMILLARY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real datasets are not here ({folder}); set ARMILLARY_DATA")
    return folder


WORDS = [
    "the",
    "of",
    "and",
    "a",
    "in",
    "to",
    "was",
    "is",
    "for",
    "on",
    "as",
    "with",
    "by",
    "he",
    "that",
    "it",
    "at",
    "from",
    "his",
    "an",
    "were",
    "are",
    "which",
    "this",
    "also",
    "be",
    "had",
]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """About 60 kB of text in 300 documents, the same every time."""
    import random

    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + "." for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory, text_file) -> Path:
    """A recipe that trains in a second, and uses much of what a recipe can say."""
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(
        f"""
name: small
corpora: {{main: {{source: {{name: files, path: {text_file}}}}}}}
tokenizer: {{name: bpe, vocabulary: 320}}
packing: {{window: 32}}
model: {{backbone: {{name: llama, d_model: 32, n_layers: 2, n_heads: 2, dropout: 0.1}}}}
objective: {{name: autoregressive}}
training:
  steps: 24
  batch_rows: 8
  accumulation: 2
  optimizer: {{name: adamw, learning_rate: 3.0e-3}}
  schedule: {{name: cosine, warmup: 4}}
  precision: fp32
  device: cpu
  ema: 0.9
  log_every: 1
  validate_every: 8
  checkpoint_every: 4
  sample_every: 12
sampling: {{prompts: ["the "], sampler: {{name: left_to_right, max_new_tokens: 8}}}}
""",
        encoding="utf-8",
    )
    return path
