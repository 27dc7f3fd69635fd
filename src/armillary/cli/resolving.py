"""Texts on their way, shown as they resolve: in the terminal, and as frames on disk."""

from __future__ import annotations

import sys
import textwrap
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from armillary.cli.screen import printable
from armillary.refusal import ArmillaryWarning, Refusal

SECONDS_A_FRAME = 0.05
"""A frame stays at least that long, or a small model is done before anybody has looked."""

COLUMNS = 80
FONT_SIZE = 16
LAST_FRAME_SECONDS = 3.0


class Resolving:
    """Called with all texts as they stand. A context: what was shown or begun is finished at its end.

    is_live: draws on stderr, and wipes it at the end, since the result goes to stdout. frames: a new folder for one
    text file a frame and animation.gif.
    """

    def __init__(self, *, is_live: bool = False, frames: Path | None = None) -> None:
        if frames is not None and frames.exists() and (not frames.is_dir() or any(frames.iterdir())):
            raise Refusal(f"--frames {frames}: is there already and not empty; name a new folder")
        self.frames = frames
        self.shown: list[str] = []
        self._is_live = is_live and sys.stderr.isatty()
        if is_live and not self._is_live:
            warnings.warn("--live: stderr is no terminal; nothing is shown", ArmillaryWarning, stacklevel=2)
        self._live: Any = None

    def __call__(self, texts: list[str]) -> None:
        text = f"\n{'─' * 40}\n".join(printable(text) for text in texts)
        if self.shown and text == self.shown[-1]:
            return
        self.shown.append(text)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(text), refresh=True)
            time.sleep(SECONDS_A_FRAME)
        if self.frames is not None:
            (self.frames / f"frame-{len(self.shown):04}.txt").write_text(text + "\n", encoding="utf-8")

    def __enter__(self) -> Resolving:
        if self.frames is not None:
            self.frames.mkdir(parents=True, exist_ok=True)
        if self._is_live:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self.frames is not None and kind is None and self.shown:
            animate(self.shown, self.frames / "animation.gif")


def animate(texts: list[str], path: Path) -> None:
    """The texts one after the other as a GIF, in a font that every matplotlib brings."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"), FONT_SIZE)
    pages = [_wrapped(text) for text in texts]
    high, wide = int(FONT_SIZE * 1.4), font.getlength("m")
    size = (int(wide * COLUMNS) + 2 * high, high * (max(map(len, pages)) + 2))
    images = []
    for lines in pages:
        image = Image.new("L", size, 250)
        for number, line in enumerate(lines, start=1):
            ImageDraw.Draw(image).text((high, high * number), line, font=font, fill=30)
        images.append(image)
    milliseconds = [int(1000 * max(SECONDS_A_FRAME, 4.0 / len(images)))] * len(images)
    milliseconds[-1] = int(1000 * LAST_FRAME_SECONDS)
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _wrapped(text: str) -> list[str]:
    """Lines of the picture; spaces are kept, so that a word does not move while others resolve."""
    found = [
        textwrap.wrap(line, COLUMNS, drop_whitespace=False, replace_whitespace=False, tabsize=4) or [""]
        for line in text.split("\n")
    ]
    return [line for lines in found for line in lines]
