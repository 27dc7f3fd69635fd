"""Figures as inline SVG, drawn by matplotlib in the colours of the page, so that they follow light and dark.

Differs: colours are drawn as place-holders and become CSS variables; text stays text in the page's own font.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from armillary.reporting import formats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from armillary.reporting.results import Measured

N_COLOURS = 6
MAX_POINTS = 1200

_INK, _SOFT, _GRID, _CARD, _REFERENCE = "#010101", "#010102", "#010103", "#010104", "#010105"
_RUNS = [f"#0101a{i}" for i in range(N_COLOURS)]
_VARIABLES = {_INK: "ink", _SOFT: "soft", _GRID: "grid", _CARD: "card", _REFERENCE: "reference"} | {
    colour: f"run-{i}" for i, colour in enumerate(_RUNS)
}


@dataclass(frozen=True)
class History:
    """What a run wrote while it trained: its records of kind "train" and "validation", in order of steps."""

    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]


def bars(rows: Sequence[Measured]) -> str:
    """Bits per byte of models and references, one bar each, with the 95 % interval; a bound is hollow."""
    rows = [row for row in rows if row.bits_per_byte is not None]
    figure, axes = _figure(width=8.6, height=0.62 + 0.42 * len(rows))
    highest = max([row.bits_per_byte or 0 for row in rows] + [row.interval[1] for row in rows if row.interval])
    for place, row in enumerate(rows):
        bits = row.bits_per_byte or 0.0
        colour = _REFERENCE if row.run is None else _RUNS[row.run % N_COLOURS]
        axes.barh(place, bits, 0.62, facecolor=_CARD if row.is_bound else colour, edgecolor=colour, linewidth=1.3)
        end = bits
        if row.interval:
            low, high = row.interval
            error = [[max(0.0, bits - low)], [max(0.0, high - bits)]]
            axes.errorbar(
                bits, place, xerr=error, fmt="none", color=_INK, ecolor=_INK, elinewidth=1.1, capsize=3, capthick=1.1
            )
            end = max(bits, high)
        text = f"{'≤ ' if row.is_bound else ''}{bits:.3f}"
        axes.text(end + highest * 0.012, place, text, va="center", color=_INK, size=10.5)
    names = [textwrap.fill(formats.visible(row.label), 34) for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False, color=_INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, highest * 1.1)
    axes.set_xlabel("bits per byte (lower is better)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    return _svg(figure, "bars")


def loss_curves(histories: Sequence[History]) -> str:
    """Loss against steps: training raw (light) and smoothed, validation as points, the best one ringed.

    Tokens stand on the upper axis where there is one run. Ticks at the bottom mark steps whose loss was not finite.
    """
    figure, axes = _figure(width=8.6, height=3.7)
    for colour, history in zip(_colours(histories), histories, strict=True):
        steps, losses = _points(history.train, "loss")
        finite = [(s, y) for s, y in zip(steps, losses, strict=True) if math.isfinite(y)]
        axes.plot(*_thin(steps, losses), color=colour, alpha=0.22 if len(histories) > 1 else 0.3, linewidth=0.8)
        if finite:
            axes.plot(*_thin([s for s, _ in finite], _smooth([y for _, y in finite])), color=colour, linewidth=1.7)
        lost = [s for s, y in zip(steps, losses, strict=True) if not math.isfinite(y)]
        if lost:
            axes.plot(lost, [0.0] * len(lost), "|", color=_INK, markersize=9, transform=axes.get_xaxis_transform())
        for corpus in dict.fromkeys(r.get("corpus") for r in history.validation):
            own = [r for r in history.validation if r.get("corpus") == corpus]
            _validation(axes, own, "loss", colour)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(frame(histories))
    axes.set_xlim(left=0)
    _short_ticks(axes.xaxis, "step")
    if len(histories) == 1:
        _tokens_above(axes, histories[0].train)
    return _svg(figure, "loss")


def panel(histories: Sequence[History], kind: str, key: str, label: str, is_log: bool = False) -> str | None:
    """One small picture of a quantity against steps; None where no run has it."""
    lines = [_points(h.train if kind == "train" else h.validation, key) for h in histories]
    if not any(math.isfinite(y) for _, values in lines for y in values):
        return None
    from matplotlib.ticker import LogLocator

    figure, axes = _figure(width=4.2, height=2.3)
    for colour, history, (steps, values) in zip(_colours(histories), histories, lines, strict=True):
        if kind == "validation":
            _validation(axes, history.validation, key, colour)
        else:
            axes.plot(*_thin(steps, values), color=colour, linewidth=1.2, alpha=0.8 if len(histories) > 1 else 1.0)
    if is_log and all(y > 0 for _, values in lines for y in values if math.isfinite(y)):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif kind == "train":
        axes.set_ylim(bottom=0)
    _short_ticks(axes.yaxis, key)
    axes.set_title(label, loc="left", color=_INK, size=10.5)
    axes.set_xlim(left=0)
    _short_ticks(axes.xaxis, "step")
    return _svg(figure, f"{kind}-{key}")


def _validation(axes: Axes, records: Sequence[Mapping[str, Any]], key: str, colour: str) -> None:
    steps, values = _points(records, key)
    style = {"color": colour, "markerfacecolor": _CARD, "markeredgewidth": 1.3, "zorder": 4}
    axes.plot(*_thin(steps, values), "o--", markersize=4.5, linewidth=0.9, **style)
    best = [r for r in records if r.get("is_best") and r.get(key) is not None]
    if best:
        axes.plot(best[-1]["step"], best[-1][key], "o", markersize=8.5, color=colour, zorder=5)


def frame(histories: Sequence[History]) -> tuple[float, float] | None:
    """Lowest and highest loss of the figure; None where no loss is known.

    The first twentieth falls so steeply that it would flatten the rest: what lies above the rest is cut, and said.
    """
    late = []
    for history in histories:
        last = max((r["step"] for r in history.train), default=0)
        late += [y for s, y in zip(*_points(history.train, "loss"), strict=True) if s > 0.05 * last]
        late += _points(history.validation, "loss")[1]
    late = [y for y in late if math.isfinite(y)]
    room = 0.06 * (max(late) - min(late)) or 0.1 if late else 0.0
    return (min(late) - room, max(late) + room) if late else None


def _tokens_above(axes: Axes, train: Sequence[Mapping[str, Any]]) -> None:
    """Round numbers of tokens at the steps that saw them, read from the records, whatever the size of a batch."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    known = [(r["step"], r["n_tokens"]) for r in train if r.get("n_tokens")]
    if not known:
        return
    steps, tokens = zip((0, 0), *known, strict=True)
    ticks = [tick for tick in MaxNLocator(6).tick_values(0, tokens[-1]) if tick <= tokens[-1]]
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(ticks, tokens, steps).tolist(), [formats.short(tick) for tick in ticks])
    above.set_xlabel("tokens seen", color=_SOFT, size=10)
    above.tick_params(colors=_SOFT, labelsize=9.5, length=3)
    above.spines["top"].set_visible(False)


def _points(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values; a value of None (not finite when it was written) becomes NaN, a gap in the line."""
    kept = [r for r in records if key in r and r.get("step") is not None]
    return [r["step"] for r in kept], [math.nan if r[key] is None else float(r[key]) for r in kept]


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    """Every k-th point and the last, so that a long run does not make a large page."""
    k = -(-len(steps) // MAX_POINTS) or 1
    places = list(range(0, len(steps), k))
    if steps and places[-1] != len(steps) - 1:
        places.append(len(steps) - 1)
    return [steps[i] for i in places], [values[i] for i in places]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over about a thirtieth of the run, centred, so that it does not lag where the loss falls fast."""
    sums = [0.0, *itertools.accumulate(values)]
    out = []
    for i in range(len(values)):
        half = min(len(values) // 60, i)
        low, high = i - half, min(len(values), i + half + 1)
        out.append((sums[high] - sums[low]) / (high - low))
    return out


def _colours(histories: Sequence[History]) -> list[str]:
    return [_RUNS[i % N_COLOURS] for i in range(len(histories))]


def _short_ticks(axis: Any, key: str) -> None:
    from matplotlib.ticker import FuncFormatter

    write: Callable[[float], str] = (lambda y: f"{y:.3g}") if key == "bits_per_byte" else formats.short
    axis.set_major_formatter(FuncFormatter(lambda y, _: write(y)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, which="both", labelsize=9.5, length=3)
    axes.xaxis.label.set(color=_SOFT, size=10)
    axes.yaxis.label.set(color=_SOFT, size=10)
    axes.grid(visible=True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page: no name-space, no metadata, no group ids, page colours and fonts."""
    import matplotlib

    out = io.StringIO()
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyphs our font lacks
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    text = f"<svg {view[0] if view else ''}>{rest}"
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    return re.sub(r"(fill|stroke): (#0101\w\w)", lambda m: f"{m[1]}: var(--{_VARIABLES[m[2]]})", text)
