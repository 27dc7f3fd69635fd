"""Pictures that stand alone as a file, PNG or SVG: panels of lines and points, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armillary.refusal import Refusal

COLOURS = ("#1f5f8b", "#b4532a", "#4a7c59", "#7b4f8f", "#a07d1c", "#4d6a73")
"""Those of the report on paper."""
INK, SOFT, GRID = "#1d1c1a", "#6a665e", "#ece9e1"
KINDS = (".png", ".svg")


def refuse_kind(path: Path) -> None:
    if path.suffix.lower() not in KINDS:
        raise Refusal(f"{path}: a picture is a {' or '.join(KINDS)} file; end its name in one of them")


def draw(panels: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel: x_label, y_label, perhaps is_log_x and is_log_y, and lines; a legend above it where there are two.

    A line: label, mark (matplotlib's: "-", "o", "o-"), x, y, and perhaps low and high, the band around it. Lines
    without points are left out, and panels without lines; where nothing remains, nothing is written.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    refuse_kind(path)
    panels = [{**panel, "lines": [line for line in panel["lines"] if line["x"]]} for panel in panels]
    panels = [panel for panel in panels if panel["lines"]]
    if not panels:
        return
    figure = Figure(figsize=(4.6 * len(panels), 3.5), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for colour, line in zip(COLOURS * len(panel["lines"]), panel["lines"], strict=False):
            axes.plot(
                line["x"], line["y"], line["mark"], color=colour, label=line["label"], markersize=4, linewidth=1.3
            )
            if "low" in line:
                axes.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            if panel.get(f"is_log_{name}"):
                axes.set(**{f"{name}scale": "log"})
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(panel["x_label"], color=SOFT)
        axes.set_ylabel(panel["y_label"], color=SOFT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, which="both", labelsize=9)
        axes.grid(visible=True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        if len(panel["lines"]) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
