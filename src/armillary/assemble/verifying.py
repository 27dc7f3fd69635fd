"""What is on disk against its manifest, and a trained model against what a model of its objective must do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary import artefact
from armillary.assemble import build, compatibility, stages
from armillary.contracts import SPECIAL_TOKENS, Batch, Layout
from armillary.model.network import LanguageNetwork
from armillary.refusal import Refusal
from armillary.run_folder import open_run

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
        batch = build.batches(model.parts, packed).at(0).rows(slice(0, 4))
        checks += promised(model.network, model.parts.objective, batch)
    return checks


def _against_manifest(folder: Path) -> Check:
    try:
        manifest = artefact.read(folder)
    except Refusal as refusal:
        return Check(str(folder), False, str(refusal))
    n_bytes = sum(facts["bytes"] for facts in manifest.files.values())
    return Check(str(folder), True, f"{manifest.kind}, {len(manifest.files)} files, {n_bytes:,} bytes")


@torch.inference_mode()
def promised(network: LanguageNetwork, objective: Any, batch: Batch) -> Iterator[Check]:
    """What holds for every objective, then what each view that the model offers promises."""
    batch = dataclasses.replace(batch, segments=None, positions=None)
    tokens = batch.tokens[:, 1:]
    knows = "noise_level" in objective.needs
    t = torch.full((tokens.shape[0], 1), 0.5) if knows else None
    log_p = network(tokens, Layout("full"), t)
    wanted = (*tokens.shape, network.n_vocab)
    yield Check("shapes", tuple(log_p.shape) == wanted, f"log_p of {list(tokens.shape)} tokens is {list(log_p.shape)}")
    worst = float((log_p.double().exp().sum(-1) - 1).abs().max())
    yield Check("probabilities", worst < 1e-4, f"sum to one within {worst:.1e}")
    for view in objective.views:
        if view in PROMISES:
            yield from PROMISES[view](network, compatibility.offering(objective, view), batch)


def _next_token(network: LanguageNetwork, objective: Any, batch: Batch) -> Iterator[Check]:
    inputs, targets, scored = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.scored[:, 1:]
    log_p = network(inputs, Layout("causal"))
    middle = inputs.shape[1] // 2
    moved = (network(_other(inputs, middle, network), Layout("causal")) - log_p).abs().amax((0, 2))
    before, after = float(moved[:middle].max()), float(moved[middle:].max())
    detail = f"changing token {middle} moves log_p before it by {before:.1e}, from it on by up to {after:.1e}"
    yield Check("causality", before < TOLERANCE < after, detail)
    nats = objective.score(network, batch, {})
    by_hand = torch.where(scored, -log_p.gather(2, targets[..., None])[..., 0], 0.0)
    gap = float((nats - by_hand).abs().max())
    yield Check("shift", gap < 1e-3, f"the objective scores token t + 1 from those up to t, within {gap:.1e} nats")
    nll, same = by_hand[scored].mean(), -log_p.gather(2, inputs[..., None])[..., 0][scored].mean()
    beyond = -log_p[:, :-1].gather(2, targets[:, 1:, None])[..., 0][scored[:, 1:]].mean()
    detail = f"nats/token of the next token {nll:.3f}, of the same one {same:.3f}, of the one after next {beyond:.3f}"
    # Labels shifted twice would make the one after next likelier; labels not shifted at all, the same one. In a text
    # of independent words the first two are equal, so they are only held apart by what a mistake would cost.
    yield Check("predicts the next token", bool(nll < 1.05 * beyond and same > nll / 2), detail)


def _hides(network: LanguageNetwork, objective: Any, batch: Batch) -> Iterator[Check]:
    """Of a denoiser that sees MASK where a token is hidden, whole rows or blocks."""
    everywhere = torch.ones_like(batch.scored[:, 1:])

    def nats(tokens: Tensor) -> Tensor:
        return objective.score_where(network, dataclasses.replace(batch, tokens=tokens), everywhere, everywhere)

    yield _moves_none_before("hidden tokens stay hidden", nats, network, batch, -1)


def _reads_in_order(network: LanguageNetwork, objective: Any, batch: Batch) -> Iterator[Check]:
    order = torch.arange(batch.tokens.shape[1] - 1).expand_as(batch.tokens[:, 1:])
    batch = dataclasses.replace(batch, scored=torch.ones_like(batch.scored))  # or what is given would come first

    def nats(tokens: Tensor) -> Tensor:
        return objective.score_in_order(network, dataclasses.replace(batch, tokens=tokens), order)

    # The last one of an order is never read.
    yield _moves_none_before("no token is read before its turn", nats, network, batch, -2)


def _moves_none_before(
    name: str, nats: Callable[[Tensor], Tensor], network: LanguageNetwork, batch: Batch, place: int
) -> Check:
    """Another token there changes its own nats, and those of no token before it."""
    moved = (nats(_other(batch.tokens, place, network)) - nats(batch.tokens)).abs()
    others, own = float(moved[:, :place].max()), float(moved[:, place].max())
    detail = f"another token {-place} from the end moves its nats by {own:.1e}, none before by over {others:.1e}"
    return Check(name, others < TOLERANCE < own, detail)


def _other(tokens: Tensor, place: int, network: LanguageNetwork) -> Tensor:
    """The tokens with another one at that place, and no special one."""
    changed = tokens.clone()
    n_special = len(SPECIAL_TOKENS)
    changed[:, place] = n_special + (tokens[:, place] + 1) % (network.n_vocab - n_special)
    return changed


PROMISES: dict[str, Callable[[LanguageNetwork, Any, Batch], Iterator[Check]]] = {
    "next_token": _next_token,
    "absorbing": _hides,
    "blocks": _hides,
    "any_order": _reads_in_order,
}
