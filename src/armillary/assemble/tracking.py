"""Numbers sent along to TensorBoard or Weights & Biases, where a recipe asks for it. Neither is needed to import."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armillary.refusal import Refusal
from armillary.run_folder import RunFolder

NEEDS = {"tensorboard": ("tensorboard",), "wandb": ("wandb", "dotenv")}


class Tracker:
    """All trackers of a run as one; without any, it does nothing."""

    def __init__(self) -> None:
        self._tracks: list[Callable[[int, dict[str, float]], Any]] = []
        self._closers: list[Callable[[], Any]] = []

    def track(self, step: int, record: Mapping[str, Any], group: str) -> None:
        """Sends the record's fractions as "group/name"."""
        numbers = {f"{group}/{name}": value for name, value in record.items() if isinstance(value, float)}
        for track in self._tracks:
            track(step, numbers)

    def add(self, track: Callable[[int, dict[str, float]], Any], close: Callable[[], Any]) -> None:
        self._tracks.append(track)
        self._closers.append(close)

    def close(self) -> None:
        for close in self._closers:
            close()


def refuse_missing(names: Sequence[str]) -> None:
    """Raises Refusal where a tracker's package is not installed."""
    for name in names:
        if any(importlib.util.find_spec(package) is None for package in NEEDS[name]):
            raise Refusal(f"training.track: {name} is not installed; pip install 'armillary[track]', or leave it out")


def open_trackers(names: Sequence[str], run: RunFolder) -> Tracker:
    """Weights & Biases takes its credentials from the environment, or from a `.env` file in the current folder."""
    tracker = Tracker()
    for name in names:
        {"tensorboard": _tensorboard, "wandb": _wandb}[name](tracker, run)
    return tracker


def _tensorboard(tracker: Tracker, run: RunFolder) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"))

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    tracker.add(track, writer.close)


def _wandb(tracker: Tracker, run: RunFolder) -> None:
    import wandb  # type: ignore[import-not-found]
    from dotenv import load_dotenv  # type: ignore[import-not-found]

    load_dotenv(".env")
    project = os.environ.get("WANDB_PROJECT", "armillary")
    # The id is the run's name, so that a resumed run goes on where it was.
    session: Any = wandb.init(
        project=project, id=run.name, name=run.name, dir=str(run.path), config=run.recipe(), resume="allow"
    )
    tracker.add(lambda step, numbers: session.log(numbers, step=step), session.finish)
