"""The loop: a generator of optimizer steps. It knows no objective, no file and no screen.

Every draw is a function of (seed, purpose, step): the batch, the objective's noise, dropout. So a run can stop after
any step and go on from its checkpoint as if it had not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from armillary.contracts import Batch, Loss, Network
from armillary.nn.stack import recompute
from armillary.randomness import key
from armillary.recipe import Training
from armillary.records import Step
from armillary.training import distribution
from armillary.training.learner import Learner
from armillary.training.precision import Arithmetic, autocast

MOST_SKIPPED_IN_A_ROW = 10


class Batches(Protocol):
    """Batches as a pure function of the step."""

    def at(self, step: int) -> Batch: ...

    def counts_before(self, step: int) -> dict[str, int]: ...


class NonFinite(Exception):
    """The loss or its gradient is not a number; the weights are those before the step."""


@dataclass(frozen=True)
class Course:
    """What a run of the loop is given beside the learner. factor: learning rate at a step over its peak."""

    batches: Batches
    settings: Training
    arithmetic: Arithmetic
    seed: int
    factor: Callable[[int], float]
    clock: Callable[[], float] = time.perf_counter


def steps(learner: Learner, course: Course, accelerator: Accelerator) -> Iterator[Step]:
    """Trains until `settings.steps`, one Step at a time; the learner is whole whenever this yields.

    Raises NonFinite where a step is not finite and `on_non_finite` is "stop", or ten in a row are not.
    """
    settings = course.settings
    recompute(learner.network, settings.activation_checkpointing)
    module = _LossModule(learner)
    if settings.compile:
        module.compile(dynamic=False)
    module = accelerator.prepare_model(module, evaluation_mode=accelerator.num_processes == 1)
    learner.network.train()
    n_bad = 0
    while learner.step < settings.steps:
        started = course.clock()
        learner.optimizers.set_scale(course.factor(learner.step))
        sums, n_scored, grad_norm = _gradients(learner, module, course, accelerator)
        is_finite = math.isfinite(sums["nats"]) and math.isfinite(sums["total"])
        overflowed = learner.scaler.is_enabled() and is_finite and not math.isfinite(grad_norm)
        applied = is_finite and math.isfinite(grad_norm)
        if applied or overflowed:  # an overflow of fp16 is the scaler's to handle: it halves its scale
            _apply(learner)
        else:
            learner.optimizers.zero_grad()
            if learner.scaler.is_enabled():  # it has unscaled these gradients, and refuses to do so twice
                learner.scaler.update()
        n_bad = 0 if applied or overflowed else n_bad + 1
        if n_bad and (settings.on_non_finite == "stop" or n_bad >= MOST_SKIPPED_IN_A_ROW):
            loss = sums["total"] / n_scored
            raise NonFinite(
                f"step {learner.step + 1}: the loss is {loss:.4g} and its gradient norm {grad_norm:.4g}; "
                "lower the learning rate, or set training.on_non_finite=roll_back to leave such steps out"
            )
        if not applied:
            learner.skipped.append(learner.step + 1)
        learner.step += 1
        learner.n_tokens += n_scored
        if applied and learner.average is not None:
            learner.average.update(learner.network, learner.step)
        seconds = course.clock() - started
        yield Step(
            step=learner.step,
            loss=sums["nats"] / n_scored if is_finite else None,
            learning_rate=learner.optimizers.learning_rate,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            n_tokens=learner.n_tokens,
            tokens_per_second=n_scored / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            is_applied=applied,
            parts={k: v / n_scored for k, v in sums.items() if k not in ("nats", "total") and math.isfinite(v)},
            mixture=course.batches.counts_before(learner.step),
        )


def _gradients(
    learner: Learner, module: nn.Module, course: Course, accelerator: Accelerator
) -> tuple[dict[str, float], int, float]:
    """Gradients of the mean over the scored tokens of the whole step: sums of the loss, tokens, gradient norm."""
    batch = course.batches.at(learner.step)
    n_rows, n_columns = batch.tokens.shape
    n_scored = max(1, int(batch.scored[:, 1:].sum()))
    generator = torch.Generator().manual_seed(key(course.seed, "objective", learner.step))
    draws = learner.objective.draw(n_rows, n_columns - 1, generator)
    micros = distribution.share(accelerator, n_rows, course.settings.accumulation)
    # DDP averages gradients over ranks, the mean over tokens wants their sum.
    scale = accelerator.num_processes / n_scored
    sums: dict[str, Tensor] = {}
    device = accelerator.device
    for index, rows in enumerate(micros):
        part = batch.rows(rows).to(device)
        noise = {name: draw[rows].to(device) for name, draw in draws.items()}
        is_last = index == len(micros) - 1
        # Torch's own generators, which dropout draws from, are left as they were.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(key(course.seed, "dropout", learner.step, index, accelerator.process_index))
            with nullcontext() if is_last else accelerator.no_sync(module):
                with autocast(course.arithmetic, device):
                    loss: Loss = module(part, noise)
                learner.scaler.scale(loss.total * scale).backward()
        for name, value in {"total": loss.total.detach(), "nats": loss.nats, **loss.parts}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    everything = distribution.total(accelerator, torch.stack([v.float() for v in sums.values()])).tolist()
    learner.scaler.unscale_(learner.optimizers)  # type: ignore[arg-type]  # it needs param_groups alone
    parameters = [p for p in learner.network.parameters() if p.grad is not None]
    most = course.settings.clip if course.settings.clip is not None else math.inf
    norm = float(nn.utils.clip_grad_norm_(parameters, most))
    return dict(zip(sums, everything, strict=True)), n_scored, norm


def _apply(learner: Learner) -> None:
    learner.scaler.step(learner.optimizers)  # type: ignore[arg-type]
    learner.scaler.update()
    learner.optimizers.zero_grad()


class _LossModule(nn.Module):
    """The whole forward pass of a micro-batch, as one module that can be compiled and wrapped for many ranks."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.network = learner.network
        self.objective = learner.objective

    def forward(self, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        return self.objective.loss(cast(Network, self.network), batch, draws)
