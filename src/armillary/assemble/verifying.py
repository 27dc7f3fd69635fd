"""What is on disk against its manifest, and a trained model against what a causal language model must do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from armillary import artefact
from armillary.assemble import build, stages
from armillary.assemble.build import OpenModel
from armillary.contracts import Layout
from armillary.refusal import Refusal
from armillary.run_folder import open_run
from armillary.tokens.batches import Batches

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    name: str
    holds: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(path: str, root: Path, *, behaviour: bool) -> list[Check]:
    """Checks of an artefact, or of every checkpoint and the tokenizer of a run; with behaviour, of its model too."""
    if (Path(path) / artefact.MANIFEST).is_file():
        if behaviour:
            raise Refusal(f"--behaviour: {path} is an artefact; give a run")
        return [_against_manifest(Path(path))]
    run = open_run(path, root)
    folders = [run.tokenizer, *(run.checkpoint(step) for step in run.checkpoint_steps())]
    checks = [_against_manifest(folder) for folder in folders]
    if behaviour:
        model = build.open_model(run, device="cpu")
        packed = stages.reopen(run, model.parts, root).packed
        checks += _behaviour(model, build.batches(model.parts, packed))
    return checks


def _against_manifest(folder: Path) -> Check:
    try:
        manifest = artefact.read(folder)
    except Refusal as refusal:
        return Check(str(folder), False, str(refusal))
    n_bytes = sum(facts["bytes"] for facts in manifest.files.values())
    return Check(str(folder), True, f"{manifest.kind}, {len(manifest.files)} files, {n_bytes:,} bytes")


@torch.inference_mode()
def _behaviour(model: OpenModel, batches: Batches) -> Iterator[Check]:
    batch = batches.at(0).rows(slice(0, 4))
    inputs, targets, scored = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.scored[:, 1:]
    log_p = model.network(inputs, Layout("causal"))
    wanted = (*inputs.shape, model.tokenizer.n_vocab)
    yield Check("shapes", tuple(log_p.shape) == wanted, f"log_p of {list(inputs.shape)} tokens is {list(log_p.shape)}")
    worst = float((log_p.double().exp().sum(-1) - 1).abs().max())
    yield Check("probabilities", worst < 1e-4, f"sum to one within {worst:.1e}")
    middle = inputs.shape[1] // 2
    changed = inputs.clone()
    changed[:, middle] = (changed[:, middle] + 1) % model.tokenizer.n_vocab
    moved = (model.network(changed, Layout("causal")) - log_p).abs().amax((0, 2))
    before, after = float(moved[:middle].max()), float(moved[middle:].max())
    detail = f"changing token {middle} moves log_p before it by {before:.1e}, from it on by up to {after:.1e}"
    yield Check("causality", before < TOLERANCE < after, detail)
    plain = dataclasses.replace(batch, segments=None, positions=None)
    nats = model.parts.objective.score(model.network, plain, {})
    by_hand = torch.where(scored, -log_p.gather(2, targets[..., None])[..., 0], 0.0)
    gap = float((nats - by_hand).abs().max())
    yield Check("shift", gap < 1e-3, f"the objective scores token t + 1 from those up to t, within {gap:.1e} nats")
    nll, same = by_hand[scored].mean(), -log_p.gather(2, inputs[..., None])[..., 0][scored].mean()
    beyond = -log_p[:, :-1].gather(2, targets[:, 1:, None])[..., 0][scored[:, 1:]].mean()
    detail = f"nats/token of the next token {nll:.3f}, of the same one {same:.3f}, of the one after next {beyond:.3f}"
    # Labels shifted twice would make the one after next likelier; labels not shifted at all, the same one. In a text
    # of independent words the first two are equal, so they are only held apart by what a mistake would cost.
    yield Check("predicts the next token", bool(nll < 1.05 * beyond and same > nll / 2), detail)
