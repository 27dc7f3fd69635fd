"""The checks of the gpu bench: each returns figures, or raises what is wrong. The CPU in fp32 is what is right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from armillary.assemble import build, planning
from armillary.assemble.parts import Parts
from armillary.benches._decoding import cached, recomputed, widest_tie
from armillary.benches._shaped import Sized
from armillary.benches._synthetic import file
from armillary.contracts import Batch, Layout, Network
from armillary.model.next_token import CachedNextToken
from armillary.nn.stack import Stack, recompute
from armillary.training import checkpoints, precision
from armillary.training.learner import Learner

N_NEW = 8
ONCE = ("ddp", "fsdp")
"""Checks that are not of a base."""


class Skipped(Exception):
    """Cannot be tried here, and why."""


@dataclass(frozen=True)
class Case:
    """One base, at the shape of the bench, on its device."""

    shape: Sized
    base: str
    window: int
    n_rows: int

    @property
    def device(self) -> torch.device:
        return self.shape.place

    @property
    def parts(self) -> Parts:
        return self.shape.parts(self.base, self.window)

    @property
    def tokens(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(4, self.shape.n_vocab, (self.n_rows, self.window + 1), generator=generator)

    def learner(self, device: torch.device) -> Learner:
        return build.learner(self.parts, self.shape.n_vocab, device)

    def gradients(self, learner: Learner, arithmetic: precision.Arithmetic = "fp32") -> tuple[float, Tensor]:
        """Mean loss, and all gradients in one vector on the CPU."""
        tokens = self.tokens.to(next(learner.network.parameters()).device)
        learner.network.zero_grad()
        with precision.autocast(arithmetic, tokens.device):
            batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
            loss = learner.objective.loss(cast(Network, learner.network.train()), batch, {})
        mean = loss.total / loss.n_tokens
        mean.backward()
        learnt = [p for p in learner.network.parameters() if p.requires_grad]
        found = [p.grad.flatten().double().cpu() for p in learnt if p.grad is not None]
        require(len(found) == len(learnt), "a parameter got no gradient")
        return float(mean.detach()), torch.cat(found)


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def apart(one: Tensor, other: Tensor) -> float:
    """Length of the difference over that of `other`."""
    return float((one - other).norm() / other.norm())


def forward_backward(case: Case) -> dict[str, Any]:
    """Loss and every gradient in fp32, against the CPU."""
    (loss, found), (right, wanted) = (case.gradients(case.learner(d)) for d in (case.device, torch.device("cpu")))
    gap = apart(found, wanted)
    require(
        abs(loss - right) < 1e-3 and gap < 1e-3, f"loss {loss:.6f}, on the CPU {right:.6f}; gradients {gap:.1e} apart"
    )
    return {"loss": loss, "loss_on_cpu": right, "log_vocabulary": math.log(case.shape.n_vocab), "gradients_apart": gap}


def mixed_precision(case: Case) -> dict[str, Any]:
    """bf16 autocast against fp32."""
    (loss, found), (right, wanted) = (case.gradients(case.learner(case.device), a) for a in ("bf16", "fp32"))
    gap = apart(found, wanted)
    require(
        abs(loss - right) < 0.02 * right and gap < 0.1, f"bf16 {loss:.4f}, fp32 {right:.4f}; gradients {gap:.1e} apart"
    )
    return {"loss_bf16": loss, "loss_fp32": right, "gradients_apart": gap}


def throughput(case: Case) -> dict[str, Any]:
    found = planning.measure_steps(case.parts, case.shape.n_vocab, case.n_rows)
    figures = {"tokens_per_second": case.n_rows * case.window / found.seconds, "kept_bytes": found.kept_bytes}
    return figures | {"precision": precision.resolve(case.parts.recipe.training.precision, case.device)}


def checkpointing(case: Case) -> dict[str, Any]:
    """Loss and gradients with activations computed again, against those with all of them kept."""
    learner = case.learner(case.device)
    right, wanted = case.gradients(learner)
    has_stack = any(isinstance(module, Stack) for module in learner.network.modules())
    require(has_stack, "this backbone has no stack of blocks that could be computed again")
    recompute(learner.network, True)
    loss, found = case.gradients(learner)
    gap = apart(found, wanted)
    require(abs(loss - right) < 1e-5 and gap < 1e-5, f"loss {loss - right:.1e} and gradients {gap:.1e} apart")
    return {"loss_apart": loss - right, "gradients_apart": gap}


def ddp(case: Case) -> dict[str, Any]:
    """Two processes and one end at the same loss, through the command."""
    if case.device.type != "cuda":
        raise Skipped("asks for CUDA devices; two processes on a CPU are held to one by the test suite")
    if torch.cuda.device_count() < 2:
        raise Skipped(f"needs two CUDA devices, {torch.cuda.device_count()} is here")
    return two_processes("cuda")


def two_processes(device: str) -> dict[str, Any]:
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        text, _ = file(Path(folder), 0.05)
        for name, launcher in (
            ("one", []),
            ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
        ):
            command = [
                sys.executable,
                "-m",
                *launcher,
                "armillary",
                "train",
                "demo",
                "--data",
                str(text),
                "--name",
                name,
            ]
            command += ["--root", folder, "--steps", "4", "--log-level", "quiet"]
            for change in (
                f"device={device}",
                "precision=fp32",
                "log_every=1",
                "schedule.warmup=1",
                "sample_every=null",
            ):
                command += ["--set", f"training.{change}"]
            done = subprocess.run(command, capture_output=True, text=True)
            require(done.returncode == 0, f"{name}: {done.stderr.strip()[-300:]}")
            records = (Path(folder) / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses.append([r["loss"] for r in map(json.loads, records) if r["kind"] == "train"])
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    require(gap < 1e-3, f"losses of one process and two are {gap:.1e} apart")
    return {"losses_apart": gap}


def fsdp(case: Case) -> dict[str, Any]:
    raise Skipped("this package trains by plain data parallelism; FSDP is not built yet")


def generation(case: Case) -> dict[str, Any]:
    """Greedy decoding with a cache and without one."""
    network = case.shape.network(case.shape.parts(case.base, case.window + N_NEW))
    prompts = case.tokens[:, : case.window]
    with_cache = cached(CachedNextToken(network, len(prompts), case.window + N_NEW), prompts, N_NEW)
    without = recomputed(network, prompts, N_NEW)
    tie = widest_tie(network, prompts, without, with_cache)
    require(tie < 1e-4, f"texts part where the two likeliest tokens are {tie:.1e} nats apart")
    return {"rows_that_differ": int((with_cache != without).any(1).sum()), "widest_tie_nats": tie}


def save_load(case: Case) -> dict[str, Any]:
    """A checkpoint of the device, opened there by another network: equal to the bit."""
    learner, other = case.learner(case.device), case.learner(case.device)
    for parameter in other.network.parameters():
        torch.nn.init.zeros_(parameter)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(learner, Path(folder) / "step-00000000", {}, {})
        checkpoints.load_for_use(other.network, Path(folder) / "step-00000000")
    tokens = case.tokens[:1, :-1].to(case.device)
    with torch.inference_mode():
        a, b = (one.network.eval()(tokens, Layout("causal")) for one in (learner, other))
    require(torch.equal(a, b), f"log_p differs by up to {float((a - b).abs().max()):.1e} after loading")
    return {"differs_by": 0.0}


CHECKS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "forward-backward": forward_backward,
    "mixed-precision": mixed_precision,
    "throughput": throughput,
    "checkpointing": checkpointing,
    "ddp": ddp,
    "fsdp": fsdp,
    "generation": generation,
    "save-load": save_load,
}
