"""Checkpoints: written beside, synced, hashed, renamed; the newest valid one wins. Nothing is pickled.

A checkpoint holds no random state: every draw is a function of (seed, purpose, step).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from armillary import artefact
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training.learner import Learner

MODEL, OPTIMIZER, AVERAGE, STATE = "model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"


def save(learner: Learner, folder: Path, about: dict[str, Any], origin: dict[str, Any]) -> None:
    """about: plain facts of the run that a resume needs (the best validation so far, patience spent). origin: what a
    reader wants to know of weights found alone (epoch, seed, the tokenizer's SHA-256), for the manifest."""
    with artefact.writing(folder, "checkpoint", {"step": learner.step, **origin}) as beside:
        _save(learner.network.state_dict(), beside / MODEL)
        _save(learner.optimizers.state_tensors(), beside / OPTIMIZER)
        if learner.average is not None:
            _save(learner.average.weights, beside / AVERAGE)
        state = {
            "step": learner.step,
            "n_tokens": learner.n_tokens,
            "skipped": learner.skipped,
            "scaler": learner.scaler.state_dict(),
            "about": about,
        }
        (beside / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def load(learner: Learner, folder: Path) -> dict[str, Any]:
    """Puts everything back and returns `about`. The folder must have been verified (see newest_valid)."""
    load_weights(learner.network, load_file(folder / MODEL), folder / MODEL)
    learner.optimizers.load_state_tensors(load_file(folder / OPTIMIZER))
    if learner.average is not None:
        if not (folder / AVERAGE).is_file():
            raise Refusal(f"{folder}: holds no averaged weights, the recipe asks for training.ema; start a new run")
        learner.average.load(load_file(folder / AVERAGE))
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    learner.step, learner.n_tokens, learner.skipped = state["step"], state["n_tokens"], state["skipped"]
    if state["scaler"] and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(state["scaler"])
    return state["about"]


def load_weights(network: nn.Module, found: dict[str, Tensor], file: Path) -> None:
    """Weights (and persistent buffers) by name into a network of the same shape.

    Raises Refusal with the first name that does not fit; file: where they came from.
    """
    wanted = network.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        side = "has no" if name in wanted else "has an unknown"
        raise Refusal(f"{file}: {side} weight '{name}': it belongs to another recipe; give the run it came from")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if found[name].shape != tensor.shape:
                shapes = f"{list(found[name].shape)}, the recipe's model {list(tensor.shape)}"
                raise Refusal(f"{file}: '{name}' has shape {shapes}; give the run it came from")
            tensor.copy_(found[name])


def load_for_use(network: nn.Module, folder: Path) -> None:
    """The averaged weights where they are kept, else the model's own."""
    weights = load_file(folder / MODEL)
    if (folder / AVERAGE).is_file():
        weights |= load_file(folder / AVERAGE)
    load_weights(network, weights, folder / MODEL)


def newest_valid(run: RunFolder, rejected: list[str]) -> Path | None:
    """The newest checkpoint that verifies; why each newer one did not is appended to `rejected`."""
    for step in reversed(run.checkpoint_steps()):
        try:
            artefact.read(run.checkpoint(step), "checkpoint")
        except Refusal as refusal:
            rejected.append(str(refusal))
        else:
            return run.checkpoint(step)
    return None


def sweep(run: RunFolder, step: int) -> None:
    """Removes what lies beyond the step a run goes on from: rejected checkpoints, and what a killed writer left.

    So the order of steps is the order of age, and pruning never takes a fresh checkpoint for an old one.
    """
    for later in run.checkpoint_steps():
        if later > step:
            shutil.rmtree(run.checkpoint(later))
    for torn in run.checkpoints.glob(".step-*"):
        shutil.rmtree(torn, ignore_errors=True)


def prune(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Leaves the newest `keep` and the best one."""
    for step in run.checkpoint_steps()[:-keep]:
        if step != best_step:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # says what the system said, and loses the file
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else error from None
