"""Ctrl-C and SIGTERM as a wish that the loop grants after the step it is in; a second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Wish:
    """signal_name: which signal asked to stop, None while none has."""

    signal_name: str | None = None


@contextlib.contextmanager
def wishes() -> Iterator[Wish]:
    """Outside the main thread, where signals cannot be caught, the wish stays unset."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if wish.signal_name is not None:
            raise KeyboardInterrupt
        wish.signal_name = signal.Signals(number).name

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
