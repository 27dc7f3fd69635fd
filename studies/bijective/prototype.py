"""What the prototype minimised: a log-probability of tokens to which the log-determinant of a coupling was added, as
if the two were of one kind; alone, and as a tenth beside the denoising loss, as its recipe has it. On random tokens,
beside the denoising loss alone.

The determinant of a continuous map says nothing of tokens: no density is changed by it, and summed over all texts such
"probabilities" are not 1. It can be driven down as far as the scales can go, and the only honest judge is the bound on
held-out tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from armillary.contracts import Batch, Loss, Network
from armillary.model.network import LanguageNetwork
from armillary.objectives._masking import layout_of
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.randomness import key
from armillary.recipe import Choice, Training
from armillary.registry import make
from armillary.training import distribution, precision
from armillary.training.learner import Learner
from armillary.training.loop import Course, steps

V, T, ROWS = 64, 32, 16
N_BATCHES, N_READINGS, N_PASSES = 16, 4, 8
HELD_OUT = 10**6
"""Steps from there on are never trained on."""


class Prototype(MaskedDiffusion):
    """denoising and likelihood: weights of the two losses. Scores are those of masked diffusion; `nats` of a step is
    the number that it took for a likelihood."""

    denoising: float
    likelihood: float

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        honest = super().loss(network, batch, draws)
        owner: Any = network
        hidden = self._masking(batch.scored[:, 1:], draws).hidden[: batch.tokens.shape[0]]
        x = owner.embedding(torch.where(hidden, network.n_vocab, batch.tokens[:, 1:]))
        log_det = owner.backbone.log_det(x, x, layout_of(batch)).sum()
        total = self.denoising * honest.total + self.likelihood * (honest.total - log_det)
        return replace(honest, total=total, nats=honest.nats - log_det.detach())


class RandomTokens:
    """Uniform and independent, 256 rows again and again: no model has fewer than ln V nats a token on other ones."""

    def at(self, step: int) -> Batch:
        number = step if step >= HELD_OUT else step % N_BATCHES
        tokens = torch.randint(V, (ROWS, T + 1), generator=torch.Generator().manual_seed(key(0, "random", number)))
        return Batch(tokens, (torch.arange(T + 1) > 0).expand(ROWS, -1))

    def counts_before(self, step: int) -> dict[str, int]:
        return {"random": step * ROWS}


def compare(n_steps: int) -> dict[str, Any]:
    goals = {
        "denoising": MaskedDiffusion(),
        "denoising + 0.1 × its likelihood": Prototype(denoising=1, likelihood=0.1),
        "its likelihood": Prototype(denoising=0, likelihood=1),
    }
    found = {name: readings(goal, n_steps) for name, goal in goals.items()}
    return {"log_v": math.log(V), "steps": n_steps, "readings": found}


def readings(objective: MaskedDiffusion, n_steps: int) -> list[dict[str, float]]:
    """Own loss and held-out bound, nats a token, at the start and at equal distances to the end; how much the second
    has changed since the start, and the error of that, over the same rows and draws."""
    torch.manual_seed(0)
    shape = make("backbones", "bijective", {"d_model": 64, "n_layers": 4, "n_heads": 4, "coupling": "affine"})
    network = LanguageNetwork(shape, V, n_extra=1)
    optimizers = make("training/optimizers", "adamw", {"learning_rate": 1e-3}).build(network.named_parameters())
    cpu = torch.device("cpu")
    learner = Learner(network, objective, optimizers, None, precision.scaler("fp32", cpu))
    settings = Training(
        steps=n_steps,
        batch_rows=ROWS,
        optimizer=Choice(name="adamw"),
        schedule=Choice(name="constant"),
        precision="fp32",
    )
    course = Course(RandomTokens(), settings, "fp32", 0, lambda step: 1.0)
    every = max(1, n_steps // N_READINGS)
    first, found = held_out(learner), []
    for step in steps(learner, course, distribution.join("cpu")):
        assert step.loss is not None
        if step.step == 1 or step.step % every == 0:
            now = held_out(learner) if step.step > 1 else first
            change = now - first
            stderr = float(change.std()) / math.sqrt(len(change))
            reading = {"held_out": float(now.mean()), "change": float(change.mean()), "stderr": stderr}
            found.append({"step": step.step, "own": step.loss} | reading)
    assert learner.step == n_steps and not learner.skipped
    return found


@torch.no_grad()
def held_out(learner: Learner) -> Tensor:
    """The bound of masked diffusion on each of 128 rows of fresh tokens, nats a token."""
    found = []
    with learner.at_its_best() as network:
        for number in range(8):
            batch, total = RandomTokens().at(HELD_OUT + number), torch.zeros(ROWS)
            for index in range(N_PASSES):
                draws = learner.objective.draw(ROWS, T, torch.Generator().manual_seed(N_PASSES * number + index))
                total += learner.objective.score(network, batch, draws).mean(1)  # type: ignore[arg-type]
            found.append(total / N_PASSES)
    return torch.cat(found)


def table(found: dict[str, Any]) -> Iterator[str]:
    yield f"Random tokens, V = {V}: ln V = {found['log_v']:.3f} nats a token is the least that can be held out."
    yield ""
    yield "| loss | step | what it took for nats a token | held out | since the start |"
    yield "| --- |" + " ---: |" * 4
    for name, readings in found["readings"].items():
        for one in readings:
            change = f"{one['change']:+.4f} ± {one['stderr']:.4f}"
            yield f"| {name} | {one['step']} | {one['own']:.3f} | {one['held_out']:.3f} | {change} |"
