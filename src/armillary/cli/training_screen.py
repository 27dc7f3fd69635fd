"""A training run as a person follows it: one live line, and a line for everything worth keeping."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

from armillary.cli.screen import Screen, seconds
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
            match happening:
                case Step():
                    screen.live(_step_line(happening, pace, ratio))
                case Validation():
                    screen.say(_validation_line(happening))
                case Sample():
                    screen.say(f"  ┆ {happening.prompt}{_printable(happening.text)}")
                case Note():
                    screen.say(f"  {happening.event}: {happening.detail}")
            pace.exclude(happening)
    except NonFinite as error:
        screen.say(f"stopped: {error}")
        sys.exit(1)
    screen.end_live()
    return run.run.facts()


class _Pace:
    """Tokens per second and the time left, from the steps of this attempt."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.spent: list[float] = []
        self.beside = 0.0
        self.mark = time.perf_counter()

    def exclude(self, happening: object) -> None:
        """Validation, samples and saving count towards the time left, not towards the speed."""
        now = time.perf_counter()
        if isinstance(happening, Step):
            self.spent = [*self.spent[-99:], happening.seconds]
        else:
            self.beside += now - self.mark
        self.mark = now

    def left(self, step: Step) -> float:
        if not self.spent:
            return math.nan
        typical = sorted(self.spent)[len(self.spent) // 2]
        return (self.n_steps - step.step) * (typical + self.beside / max(1, step.step))


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


def _printable(text: str) -> str:
    """Model text can hold anything: control characters would move the terminal's cursor."""
    one_line = text.replace("\n", " ⏎ ")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in one_line)
