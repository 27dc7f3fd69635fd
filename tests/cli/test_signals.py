"""Real signals to real processes: SIGINT saves and exits 130, SIGKILL loses nothing that was saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def command(recipe: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "armillary", "train", str(recipe), "--resume", "auto", *more]


def run(recipe: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(recipe, *more), cwd=cwd, capture_output=True, text=True, timeout=300)


def strike(recipe: Path, cwd: Path, moment: Callable[[], bool], number: int) -> int:
    """Starts a run and sends a signal when the moment has come; returns the exit status."""
    process = subprocess.Popen(command(recipe), cwd=cwd, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not moment():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the moment never came (exit status {process.poll()})")
        time.sleep(0.002)
    os.kill(process.pid, number)
    return process.wait(timeout=120)


def n_steps(cwd: Path) -> int:
    log = cwd / "runs" / "small" / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.is_file() else 0


def weights(cwd: Path) -> dict[str, torch.Tensor]:
    return load_file(cwd / "runs" / "small" / "checkpoints" / "step-00000024" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(small_recipe, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    found = run(small_recipe, cwd)
    assert found.returncode == 0, found.stderr
    return cwd


def test_sigint_saves_where_it_is_and_the_resumed_run_is_equal(whole, small_recipe, tmp_path):
    status = strike(small_recipe, tmp_path, lambda: n_steps(tmp_path) >= 6, signal.SIGINT)
    assert status == 130
    saved = sorted((tmp_path / "runs" / "small" / "checkpoints").iterdir())
    assert int(saved[-1].name[5:]) == n_steps(tmp_path)
    assert run(small_recipe, tmp_path).returncode == 0
    assert all(torch.equal(w, weights(tmp_path)[name]) for name, w in weights(whole).items())


def test_sigkill_at_chosen_moments_and_the_resumed_run_is_equal(whole, small_recipe, tmp_path):
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    moments = {
        "while packing": lambda: any((tmp_path / "artefacts" / "packed").glob(".*writing*")),
        "in the first steps": lambda: n_steps(tmp_path) >= 2,
        "while a checkpoint is written": lambda: any(checkpoints.glob(".*writing*")) and len(saved(checkpoints)) >= 1,
        "after some more steps": lambda: len(saved(checkpoints)) >= 2,
    }
    for moment in moments.values():
        assert strike(small_recipe, tmp_path, moment, signal.SIGKILL) == -signal.SIGKILL
    found = run(small_recipe, tmp_path)
    assert found.returncode == 0, found.stderr
    assert all(torch.equal(w, weights(tmp_path)[name]) for name, w in weights(whole).items())
    assert not list(checkpoints.glob(".*"))


def saved(checkpoints: Path) -> list[Path]:
    return list(checkpoints.glob("step-*"))


@pytest.mark.slow
def test_two_ranks_draw_the_same_batches_and_resume(whole, small_recipe, tmp_path):
    """Gradients of two ranks are summed in another order, so figures agree and bits need not; a resume is equal."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511", "-m"]
    words = ["armillary", "train", str(small_recipe), "--resume", "auto"]

    def train(cwd: Path, *more: str) -> None:
        found = subprocess.run([*launch, *words, *more], cwd=cwd, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr[-3000:]

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    train(unbroken)
    train(broken, "--steps", "8")
    train(broken)
    # A shorter plan bends the cosine before step 8, so only its continuation from the same plan can be equal.
    from armillary.run_folder import RunFolder

    ours = [r["loss"] for r in RunFolder(unbroken / "runs" / "small").metrics("train")]
    single = [r["loss"] for r in RunFolder(whole / "runs" / "small").metrics("train")]
    assert ours[0] == pytest.approx(single[0], rel=0.02)
    assert len(ours) == 24 and ours[-1] < ours[0]


@pytest.mark.slow
def test_compiled_training_agrees_with_eager(small_recipe, whole, tmp_path):
    from armillary.run_folder import RunFolder

    changes = ["--set", "training.compile=true", "--set", "model.backbone.dropout=0.0"]
    assert run(small_recipe, tmp_path, *changes, "--name", "compiled").returncode == 0
    assert run(small_recipe, tmp_path, "--set", "model.backbone.dropout=0.0", "--name", "eager").returncode == 0
    compiled, eager = (
        [r["loss"] for r in RunFolder(tmp_path / "runs" / name).metrics("train")] for name in ("compiled", "eager")
    )
    assert compiled == pytest.approx(eager, rel=1e-3)
