"""A training run as a person follows it: one live line, and a line for everything worth keeping."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

from armillary.cli.screen import Screen, printable, seconds
from armillary.records import Note, Sample, Step, Validation

if TYPE_CHECKING:
    from armillary.assemble.training_run import TrainingRun


def follow(run: TrainingRun, screen: Screen, command: str) -> dict[str, Any]:
    """Runs it to its end and returns the facts it left, for --json."""
    from armillary.training.loop import NonFinite

    pace = _Pace(run.settings.steps)
    ratio = run.bits_per_byte_of_a_nat_per_token()
    try:
        for happening in run.happenings(command=command):
            pace.count(happening)
            match happening:
                case Step():
                    line = _step_line(happening, pace, ratio)
                    screen.live(line)
                    screen.debug(line)
                case Validation():
                    screen.say(_validation_line(happening))
                case Sample():
                    screen.say(f"  ┆ {happening.prompt}{printable(happening.text)}".replace("\n", " ⏎ "))
                case Note():
                    screen.say(f"  {happening.event}: {happening.detail}")
    except NonFinite as error:
        screen.insist(f"armillary: stopped: {error}")
        sys.exit(1)
    screen.end_live()
    return run.run.facts()


class _Pace:
    """The time left, from the steps of this attempt and what was spent between them."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.n_done = 0
        self.steps: list[float] = []
        self.between = 0.0
        self.mark = time.perf_counter()

    def count(self, happening: object) -> None:
        """Validating, sampling and saving count towards the time left, not towards the speed."""
        now = time.perf_counter()
        spent = now - self.mark
        self.mark = now
        if isinstance(happening, Step):
            self.n_done += 1
            self.steps = [*self.steps[-99:], happening.seconds]
            spent -= happening.seconds
        self.between += max(0.0, spent)

    def left(self, step: Step) -> float:
        if len(self.steps) < 2:
            return math.nan
        typical = sorted(self.steps)[len(self.steps) // 2]
        return (self.n_steps - step.step) * (typical + self.between / self.n_done)


def _step_line(step: Step, pace: _Pace, ratio: float | None) -> str:
    loss = "not finite" if step.loss is None else f"{step.loss:.3f}"
    bits = f" · {step.loss * ratio:.3f} bits/byte" if step.loss is not None and ratio is not None else ""
    left = pace.left(step)
    eta = f" · {seconds(left)} left" if math.isfinite(left) else ""
    done = 100 * step.step / pace.n_steps
    return (
        f"step {step.step:,}/{pace.n_steps:,} ({done:.0f} %) · loss {loss} nats/token{bits} · "
        f"{step.tokens_per_second:,.0f} tokens/s{eta}"
    )


def _validation_line(validation: Validation) -> str:
    bits = f" · {validation.bits_per_byte:.4f} bits/byte" if validation.bits_per_byte is not None else ""
    mark = " · best so far" if validation.is_best else ""
    return f"validation {validation.corpus} at step {validation.step:,}: {validation.loss:.4f} nats/token{bits}{mark}"
