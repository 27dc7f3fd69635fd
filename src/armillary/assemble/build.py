"""Parts put together: a new learner, the course of its training, and a trained model opened again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from armillary import artefact, recipe, system
from armillary.assemble import parts as parts_of
from armillary.assemble.parts import Parts
from armillary.contracts import Tokenizer
from armillary.model.network import LanguageNetwork
from armillary.randomness import key
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.tokens import tokenizer as tokenizers
from armillary.tokens.batches import Batches
from armillary.tokens.packed import Packed
from armillary.training import checkpoints, precision
from armillary.training.learner import Average, Learner
from armillary.training.loop import Course


def network(parts: Parts, n_vocab: int) -> LanguageNetwork:
    """Initialised from the recipe's seed alone; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(parts.recipe.seed, "initialisation"))
        return LanguageNetwork(parts.backbone, n_vocab, **network_options(parts))


def network_options(parts: Parts) -> dict[str, Any]:
    """What a recipe says of a network beside its backbone."""
    objective = parts.objective
    return {
        "tied": parts.recipe.model.tied,
        "n_extra": objective.n_extra_embeddings,
        "is_told_targets": "target_positions" in objective.needs,
        "has_encoder": "encoder" in objective.needs,
    }


def learner(parts: Parts, n_vocab: int, device: torch.device, start_from: Path | None = None) -> Learner:
    """start_from: a checkpoint whose weights it begins with."""
    training = parts.recipe.training
    if device.type == "mps" and "float64" in parts.objective.needs:
        name = parts.recipe.objective.name
        raise Refusal(f"training.device: {name} computes in float64, which mps lacks; set training.device=cpu")
    net = network(parts, n_vocab).to(device)
    if start_from is not None:
        checkpoints.load_for_use(net, start_from)
    arithmetic = precision.resolve(training.precision, device)
    return Learner(
        network=net,
        objective=parts.objective,
        optimizers=parts.optimizer.build(net.named_parameters()),
        average=Average(net, training.ema) if training.ema is not None else None,
        scaler=precision.scaler(arithmetic, device),
    )


def batch_rows(parts: Parts) -> int:
    training = parts.recipe.training
    if training.batch_rows is not None:
        return training.batch_rows
    assert training.batch_tokens is not None
    return max(1, training.batch_tokens // parts.recipe.packing.window)


def batches(parts: Parts, packed: dict[str, Packed]) -> Batches:
    """Training batches of a recipe."""
    return Batches(
        {name: p.split("train") for name, p in packed.items()},
        parts.recipe.mixture,
        batch_rows(parts),
        parts.recipe.seed,
        parts.recipe.packing.isolate_documents,
    )


def course(parts: Parts, packed: dict[str, Packed], device: torch.device) -> Course:
    training = parts.recipe.training
    return Course(
        batches=batches(parts, packed),
        settings=training,
        arithmetic=precision.resolve(training.precision, device),
        seed=parts.recipe.seed,
        factor=lambda step: parts.schedule.factor(step, training.steps),
    )


@dataclass(frozen=True)
class OpenModel:
    """A trained model, ready to be asked. The network is in evaluation mode."""

    run: RunFolder
    parts: Parts
    tokenizer: Tokenizer
    tokenizer_sha256: str
    network: LanguageNetwork
    step: int
    checkpoint: str

    @cached_property
    def sampled_from(self) -> LanguageNetwork:
        """The network in the precision that its recipe samples in; figures are measured on the network as it is."""
        if self.parts.recipe.sampling.precision != "bf16":
            return self.network
        return copy.deepcopy(self.network).bfloat16()


def open_model(
    run: RunFolder, checkpoint: str = "best", device: str = "auto", overrides: Sequence[str] = ()
) -> OpenModel:
    """checkpoint: "best" (on validation; the last where there was none), "last", or a step.
    overrides: "a.b=c" on the run's recipe, for its sections evaluation and sampling.

    Raises Refusal where there is no valid checkpoint, or the tokenizer is not the one the run was trained with.
    """
    parts = parts_of.resolve(recipe.override(run.recipe(), overrides))
    facts = run.facts()
    wanted = facts.get("tokenizer", {}).get("sha256")
    loaded = tokenizers.load(run.tokenizer, expected_sha256=wanted, part_folders=parts.folders)
    folder = _checkpoint_folder(run, checkpoint, facts.get("best_step"))
    net = network(parts, loaded.tokenizer.n_vocab)
    checkpoints.load_for_use(net, folder)
    place = pick_device(device)
    needs_cpu = place.type == "mps" and "float64" in parts.objective.needs
    net.eval().requires_grad_(False).to("cpu" if needs_cpu else place)
    step = int(folder.name.removeprefix("step-"))
    return OpenModel(run, parts, loaded.tokenizer, loaded.sha256, net, step, checkpoint)


def pick_device(asked: str) -> torch.device:
    """auto: cuda, then mps, then cpu. Raises Refusal for one that is not there, or that torch was not built for."""
    if asked != "auto":
        usable, why = system.gpu() if asked.startswith("cuda") else ("cuda", "")
        if usable != "cuda":
            raise Refusal(f"--device {asked}: cannot be used here (GPU {why})")
        try:
            return torch.zeros(0, device=asked).device
        except (RuntimeError, AssertionError):
            raise Refusal(f"--device {asked}: cannot be used here; `armillary doctor` says why") from None
    return torch.device(system.gpu()[0] or "cpu")


def _checkpoint_folder(run: RunFolder, checkpoint: str, best_step: int | None) -> Path:
    steps = run.checkpoint_steps()
    if checkpoint == "best" and best_step in steps:
        artefact.read(run.checkpoint(best_step), "checkpoint")
        return run.checkpoint(best_step)
    if checkpoint in ("best", "last"):
        rejected: list[str] = []
        newest = checkpoints.newest_valid(run, rejected)
        if newest is None:
            raise Refusal(rejected[0] if rejected else f"{run.path}: has no checkpoint yet; train it first")
        return newest
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise Refusal(f"--checkpoint {checkpoint}: {run.name} has best, last and the steps {steps}")
    artefact.read(run.checkpoint(int(checkpoint)), "checkpoint")
    return run.checkpoint(int(checkpoint))
