"""Run folders made by hand, as a training run would leave them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from armillary.records import Kind, Likelihood, Protocol
from armillary.run_folder import RunFolder, write_json

N_BYTES = 10_000


def likelihood(name: str, bits: float, kind: Kind = "exact", **changes: Any) -> dict[str, Any]:
    """`bits` per byte of 10,000 bytes; the interval is 0.03 to each side unless it is given."""
    interval = changes.pop("interval", (bits - 0.03, bits + 0.03))
    about, run_fields = changes.pop("about", None), {"name": name, "seconds": 12.0}
    fields = {
        "corpus": "c" * 64,
        "split": "test",
        "text_sha256": "f" * 64,
        "n_documents": 31,
        "boundary": "end_of_text",
        "vocabulary": "open",
        "window": 256,
        "stride": 128,
        "tokenizer": "a" * 64,
    }
    protocol = Protocol(**fields | changes)
    nats = bits * math.log(2) * N_BYTES
    record = Likelihood(nats, kind, 0.0, 2_500, 1_800, N_BYTES, protocol, interval).as_json()
    return record | run_fields | ({"about": about} if about else {})


@pytest.fixture(name="likelihood")
def _likelihood() -> Callable[..., dict[str, Any]]:
    return likelihood


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """A run that has just begun: only its recipe. Keyword arguments replace keys of the recipe."""

    def make(name: str = "demo", **recipe: Any) -> RunFolder:
        run = RunFolder(tmp_path / "runs" / name)
        run.path.mkdir(parents=True)
        data = {"name": "demo", "seed": 42, "training": {"steps": 200, "optimizer": {"name": "adamw", "lr": 0.0003}}}
        run.recipe_file.write_text(yaml.safe_dump(data | recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return run

    return make


@pytest.fixture
def trained(new_run: Callable[..., RunFolder]) -> Callable[..., RunFolder]:
    """A finished run of 200 steps with validation, samples, one event and an evaluation of 1.931 bits per byte."""

    def make(name: str = "demo", bits: float = 1.931, **recipe: Any) -> RunFolder:
        run = new_run(name, **recipe)
        counts = {"n_documents": 205, "n_bytes": 4_000_000, "n_words": 700_000, "n_tokens": 1_000_000, "n_rows": 3906}
        run.update_facts(
            name=name,
            state="finished",
            attempt=1,
            commands=[f"armillary train demo --name {name}", f"armillary evaluate {name}"],
            parameters=2_654_400,
            parameters_non_embedding=1_868_000,
            steps=200,
            best_step=200,
            best_bits_per_byte=1.95,
            started="2026-01-05T10:00:00.000+00:00",
            training_seconds=141.2,
            system={"python": "3.11.9", "device": "cpu", "precision": "bf16"},
            corpora={"sotu": {"fingerprint": "c" * 64, "boundary": "end_of_text", "splits": {"train": counts}}},
            tokenizer={"name": "bpe", "n_vocab": 4096, "sha256": "a" * 64, "is_lossless": True},
        )
        _train(run)
        run.append("events.jsonl", {"attempt": 1, "step": 90, "event": "interrupted", "detail": "SIGINT"})
        kneser_ney = likelihood("Kneser–Ney 5-gram", 1.88, about="over the same tokens")
        references = [kneser_ney, likelihood("unigram", 2.93, interval=None)]
        evaluation = {"run": name, "split": "test", "step": 200, "checkpoint": "best", "references": references}
        write_json(run.path / "evaluation" / "test.json", evaluation | {"results": [likelihood(name, bits)]})
        return run

    return make


def _train(run: RunFolder) -> None:
    for step in range(10, 201, 10):
        record = {"kind": "train", "attempt": 1, "step": step, "learning_rate": 3e-4, "grad_norm": 0.7}
        record |= {"loss": None if step == 100 else 9 - step / 40, "n_tokens": step * 4096, "tokens_per_second": 5e4}
        run.append("metrics.jsonl", record | {"mixture": {"sotu": step * 16}})
        if step % 50 == 0:
            record = {"kind": "validation", "attempt": 1, "step": step, "corpus": "sotu", "loss": 9 - step / 40}
            run.append("metrics.jsonl", record | {"bits_per_byte": 3 - step / 190, "is_best": True})
            sample = {
                "attempt": 1,
                "step": step,
                "prompt": "The state",
                "text": f" of step {step}.",
                "finish": "length",
            }
            run.append("samples/samples.jsonl", sample)
