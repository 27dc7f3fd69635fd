"""Numbers sent along to TensorBoard or Weights & Biases, where a recipe asks for it. Neither is needed to import."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from armillary.refusal import Refusal
from armillary.run_folder import RunFolder

Track = Callable[[int, dict[str, float]], None]


def open_trackers(names: Sequence[str], run: RunFolder) -> tuple[list[Track], Callable[[], None]]:
    """One function a tracker, called with (step, numbers), and one that closes them all.

    Raises Refusal where the package is not installed. Weights & Biases takes its credentials from the environment,
    or from a `.env` file in the current folder.
    """
    tracks, closers = [], []
    for name in names:
        track, close = {"tensorboard": _tensorboard, "wandb": _wandb}[name](run)
        tracks.append(track)
        closers.append(close)

    def close_all() -> None:
        for close in closers:
            close()

    return tracks, close_all


def _tensorboard(run: RunFolder) -> tuple[Track, Callable[[], None]]:
    _need("tensorboard", "tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"))

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return track, writer.close


def _wandb(run: RunFolder) -> tuple[Track, Callable[[], None]]:
    _need("wandb", "wandb")
    import wandb  # type: ignore[import-not-found]
    from dotenv import load_dotenv  # type: ignore[import-not-found]

    load_dotenv(".env")
    project = os.environ.get("WANDB_PROJECT", "armillary")
    session: Any = wandb.init(project=project, name=run.name, dir=str(run.path), config=run.recipe(), resume="allow")
    return lambda step, numbers: session.log(numbers, step=step), session.finish


def _need(package: str, tracker: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Refusal(f"training.track: {tracker} is not installed; pip install 'armillary[track]', or leave it out")
