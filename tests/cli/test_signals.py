"""Real signals to real processes: SIGINT saves and exits 130, and several ranks do as one. SIGKILL: tests/trust."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary.run_folder import RunFolder


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


PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}", "-m"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "2", *PLAIN, "-m"],
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_two_ranks_see_the_batches_of_one_and_resume_to_the_same_weights(whole, small_recipe, tmp_path, launcher):
    """Two ranks add up their gradients in another order than one: figures agree, bits need not. A resume is equal."""
    words = ["armillary", "train", str(small_recipe), "--resume", "auto", "--set", "model.backbone.dropout=0.0"]

    def train(cwd: Path, *more: str) -> None:
        cwd.mkdir(exist_ok=True)
        launch = [word.format(port=free_port()) for word in LAUNCHERS[launcher]]
        found = subprocess.run(
            [sys.executable, "-m", *launch, *words, *more], cwd=cwd, capture_output=True, text=True, timeout=300
        )
        assert found.returncode == 0, found.stderr[-3000:]

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(unbroken)
    train(broken)
    for checkpoint in sorted((broken / "runs" / "small" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)  # as if it had been killed before: the later ones were never written
    train(broken)
    assert all(torch.equal(w, weights(broken)[name]) for name, w in weights(unbroken).items())
    one = tmp_path / "one"
    one.mkdir()
    assert run(small_recipe, one, "--set", "model.backbone.dropout=0.0").returncode == 0
    ours, alone = (
        [(r["loss"], r["n_tokens"]) for r in RunFolder(cwd / "runs" / "small").metrics("train")]
        for cwd in (unbroken, one)
    )
    assert [n for _, n in ours] == [n for _, n in alone]
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in alone], rel=1e-3)


@pytest.mark.slow
def test_compiled_training_agrees_with_eager(small_recipe, whole, tmp_path):
    changes = ["--set", "training.compile=true", "--set", "model.backbone.dropout=0.0"]
    assert run(small_recipe, tmp_path, *changes, "--name", "compiled").returncode == 0
    assert run(small_recipe, tmp_path, "--set", "model.backbone.dropout=0.0", "--name", "eager").returncode == 0
    compiled, eager = (
        [r["loss"] for r in RunFolder(tmp_path / "runs" / name).metrics("train")] for name in ("compiled", "eager")
    )
    assert compiled == pytest.approx(eager, rel=1e-3)
