"""What a person sees on stderr: lines, and one live line of progress. stdout is for results."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from typing import Any

from armillary.cli.options import Level

QUIET_LINE_SECONDS = 10.0
"""Where stderr is no terminal, the live line becomes a line of the log this often."""


class Screen:
    """The main process draws; the other ranks are silent."""

    def __init__(self, level: Level = "info") -> None:
        self.level = level if is_main() else "quiet"
        self.is_live = sys.stderr.isatty()
        self._last_line = -math.inf
        self._has_live_line = False

    def say(self, line: str) -> None:
        if self.level != "quiet":
            self._clear()
            print(line, file=sys.stderr, flush=True)

    def insist(self, line: str) -> None:
        """Said at every level: why something ended."""
        self._clear()
        if is_main():
            print(line, file=sys.stderr, flush=True)

    def debug(self, line: str) -> None:
        if self.level == "debug":
            self.say(line)

    def live(self, line: str) -> None:
        """Drawn over the last live line; a terminal gets each, a log file one every ten seconds."""
        if self.level == "quiet":
            return
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{line[:width]}", end="", file=sys.stderr, flush=True)
            self._has_live_line = True
        elif time.monotonic() - self._last_line >= QUIET_LINE_SECONDS:
            self._last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        self.live(f"{what} {done:,}/{total:,}")

    def end_live(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._has_live_line:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._has_live_line = False


def is_main() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def show_json(value: Any) -> None:
    """The one document of stdout. Infinity and NaN are no JSON: they come as null."""
    from armillary.run_folder import finite

    print(json.dumps(finite(value), indent=2, ensure_ascii=False))


def printable(text: str) -> str:
    """Model text can hold anything: control characters would move the terminal's cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def seconds(value: float) -> str:
    """1:05 or 2:03:09."""
    whole = round(value)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
