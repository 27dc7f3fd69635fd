"""Checkpoints: written beside, synced, hashed, renamed; the newest valid one wins. Nothing is pickled.

A checkpoint holds no random state: every draw is a function of (seed, purpose, step).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from armillary import artefact
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.training.learner import Learner

MODEL, OPTIMIZER, AVERAGE, STATE = "model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"


def save(learner: Learner, folder: Path, about: dict[str, Any]) -> None:
    """about: plain facts of the run that a resume needs (the best validation so far, patience spent)."""
    with artefact.writing(folder, "checkpoint", {"step": learner.step}) as beside:
        save_file(_weights(learner.network), beside / MODEL)
        save_file(_plain(learner.optimizers.state_tensors()), beside / OPTIMIZER)
        if learner.average is not None:
            save_file(_plain(learner.average.weights), beside / AVERAGE)
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
    load_weights(learner.network, folder / MODEL)
    learner.optimizers.load_state_tensors(load_file(folder / OPTIMIZER))
    if learner.average is not None:
        if not (folder / AVERAGE).is_file():
            raise Refusal(f"{folder}: holds no averaged weights, the recipe asks for training.ema; start a new run")
        learner.average.load(load_file(folder / AVERAGE))
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    learner.step, learner.n_tokens, learner.skipped = state["step"], state["n_tokens"], state["skipped"]
    learner.scaler.load_state_dict(state["scaler"])
    return state["about"]


def load_weights(network: nn.Module, file: Path) -> None:
    """Weights by name into a network of the same shape. Raises Refusal with the first name that does not fit."""
    found, wanted = load_file(file), dict(network.named_parameters())
    for name in sorted(found.keys() ^ wanted.keys()):
        side = "has no" if name in wanted else "has an unknown"
        raise Refusal(f"{file}: {side} weight '{name}': it belongs to another recipe; give the run it came from")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if found[name].shape != parameter.shape:
                shapes = f"{list(found[name].shape)}, the recipe's model {list(parameter.shape)}"
                raise Refusal(f"{file}: '{name}' has shape {shapes}; give the run it came from")
            parameter.copy_(found[name])


def weights_for_use(folder: Path) -> Path:
    """The averaged weights where they are kept, else the model's own."""
    return folder / AVERAGE if (folder / AVERAGE).is_file() else folder / MODEL


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


def prune(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Leaves the newest `keep` and the best one."""
    for step in run.checkpoint_steps()[:-keep]:
        if step != best_step:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return _plain(dict(network.named_parameters()))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
