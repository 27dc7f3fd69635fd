"""bf16 where the hardware multiplies in it; elsewhere fp32, and the run says so."""

from __future__ import annotations

import platform

import pytest
import torch

from armillary.assemble import training
from armillary.records import Note
from armillary.training import precision

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True])
def has_bf16(request, monkeypatch) -> bool:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return request.param


def test_the_arithmetic_is_what_the_hardware_has(has_bf16, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    best = "bf16" if has_bf16 else "fp32"
    assert {asked: precision.resolve(asked, CPU) for asked in ("auto", "bf16", "fp32", "fp16")} == {
        "auto": best,
        "bf16": best,
        "fp32": "fp32",
        "fp16": "fp16",
    }
    for said, then in {"no": "fp32", "bf16": best, "fp16": "fp16"}.items():
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
        assert precision.resolve("auto", CPU) == then
        assert precision.resolve("fp32", CPU) == "fp32"


def test_where_it_is_not_known_bf16_is_taken_only_when_asked_for(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    for device in (CPU, torch.device("mps")):
        assert precision.resolve("auto", device) == "fp32" and precision.resolve("bf16", device) == "bf16"


@pytest.mark.parametrize("by", ["recipe", "launcher"])
def test_a_run_says_that_it_was_not_trained_as_asked(by, has_bf16, small_recipe, tmp_path, monkeypatch):
    changes = ["training.steps=2", "training.validate_every=2", "training.schedule.warmup=0"]
    changes.append(f"training.precision={'bf16' if by == 'recipe' else 'auto'}")
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    request = training.Request(str(small_recipe), changes, name="run", root=tmp_path)
    started = training.start(training.check(request), lambda line: None)
    notes = [h for h in started.happenings() if isinstance(h, Note)]
    assert [note.event for note in notes] == ([] if has_bf16 else ["precision_replaced"])
    assert all("no bf16 of its own" in note.detail for note in notes)
    assert started.run.facts()["system"]["precision"] == ("bf16" if has_bf16 else "fp32")
