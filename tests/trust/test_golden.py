"""Fifty steps of one small model, against the losses they gave when they were right.

A change of these figures is a change of training: of the batches, the initialisation, the arithmetic, the optimizer,
the schedule or dropout. Where it is meant, run `python tests/trust/test_golden.py`, paste what it prints into GOLDEN,
and say why in docs/log.md. Made with torch 2.13.0+cpu on one thread of an AVX-512 processor; another processor differs
by rounding alone: AVX2 moves them by 1e-7, the tolerance is 1e-4.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
import torch

from armillary.assemble import training
from armillary.records import Step

GOLDEN = {
    1: 5.603107,
    2: 5.587437,
    3: 5.497648,
    5: 5.212439,
    8: 4.753776,
    12: 4.166761,
    17: 3.613791,
    23: 3.228274,
    30: 3.036497,
    37: 2.961805,
    44: 2.918954,
    50: 2.9126,
}


def losses(root: Path) -> dict[int, float]:
    """Nats per token at a dozen of the fifty steps."""
    text, recipe = root / "words.txt", root / "golden.yaml"
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(400)]  # text that needs no library to be made
    text.write_text("\n\n".join(" ".join(d[: 2 + n % 5] for d in digests[n : n + 12]) for n in range(380)) + "\n")
    recipe.write_text(
        f"""
name: golden
seed: 1
corpora: {{main: {{source: {{name: files, path: {text}}}}}}}
tokenizer: {{name: character}}
packing: {{window: 32}}
model: {{backbone: {{name: llama, d_model: 32, n_layers: 2, n_heads: 2, dropout: 0.1}}}}
objective: {{name: autoregressive}}
training:
  steps: 50
  batch_rows: 8
  accumulation: 2
  optimizer: {{name: adamw, learning_rate: 3.0e-3}}
  schedule: {{name: cosine, warmup: 5}}
  precision: fp32
  device: cpu
  validate_every: 50
"""
    )
    request = training.Request(str(recipe), [], root=root)
    run = training.start(training.check(request), lambda line: None)
    found = {h.step: h.loss for h in run.happenings() if isinstance(h, Step) and h.loss is not None}
    return {step: round(found[step], 6) for step in (1, 2, 3, 5, 8, 12, 17, 23, 30, 37, 44, 50)}


def test_fifty_steps_give_the_golden_losses(tmp_path):
    assert torch.get_num_threads() == 1
    found = losses(tmp_path)
    assert found == pytest.approx(GOLDEN, rel=1e-4)
    assert GOLDEN[50] < 0.6 * GOLDEN[1]  # it learns


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(losses(Path(folder)))
