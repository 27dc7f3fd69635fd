"""`armillary evaluate`: the likelihood of a run on held-out text, with its kind and its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from armillary.cli.options import Checkpoint, Data, Device, DryRun, Json, LogLevel, Root, RunName, Set
from armillary.cli.screen import Screen, seconds, show_json

Samples = Annotated[int | None, typer.Option(min=2, help="Passes over the text, for a bound; 8 unless told otherwise.")]
Exact = Annotated[
    Literal["left_to_right", "random", "adaptive"] | None,
    typer.Option(help="The exact likelihood of one order, in place of a bound: a pass for every token of a window."),
]
Tokens = Annotated[int | None, typer.Option(min=1, help="Stop at the end of the document that reaches so many tokens.")]


def evaluate(
    run: RunName,
    split: Annotated[str | None, typer.Option(help="By default the last split its corpus has.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens a window sees.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens a window scores; the others are context.")] = None,
    samples: Samples = None,
    exact: Exact = None,
    tokens: Tokens = None,
    references: Annotated[bool, typer.Option(help="Baselines on the same text: uniform, unigram, n-gram, xz.")] = False,
    data: Data = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Scores every token of the split once. Writes the result into the run's evaluation folder.

    Another text (--data) without splits of its own is scored on the part held out of it.
    """
    from armillary.assemble import build, evaluating, stages
    from armillary.run_folder import open_run

    screen = Screen(log_level)
    model = build.open_model(open_run(run, root), checkpoint, device, overrides or [])
    wanted = evaluating.Wanted(split, window, stride, references, None, root, samples, exact, tokens)
    evaluating.refuse_idle_samples([model], wanted)
    if dry_run:
        told = evaluating.describe(model, wanted) | {"data": str(data) if data is not None else None}
        show_json(told | ({"network_rows": None} if data is not None else {}))  # that text is not packed yet
        return
    if data is not None:
        wanted = replace(wanted, packed=stages.other_text(model.run, model.parts, data, root, screen.say))
    results = evaluating.evaluate(model, wanted, _progress(screen))
    screen.end_live()
    if as_json:
        show_json(results)
        return
    for result in results:
        print(line(result))


def line(result: dict[str, Any]) -> str:
    """One result for a person."""
    bits, interval = result["bits_per_byte"], result["interval_bits_per_byte"]
    per_byte = f"{bits:.4f} bits/byte" if bits is not None else "no bits/byte (lossy tokenizer)"
    if bits is not None and interval:
        per_byte += f" (95 % {interval[0]:.4f} to {interval[1]:.4f})"
    return (
        f"{result['name']:<16} {per_byte} · word perplexity {result['word_perplexity']:.2f} · "
        f"{result['n_tokens']:,} tokens, {result['n_words']:,} words, {result['n_bytes']:,} bytes of "
        f"{result['protocol']['split']} · {_kind(result)}"
    )


def _kind(result: dict[str, Any]) -> str:
    """The kind; of a bound that depends on draws what they leave open, of an exact figure an order that is unusual."""
    order = result["protocol"]["order"].replace("_", " ")
    if result["kind"] == "exact":
        return "exact" if order in ("left to right", result["name"]) else f"exact, {order}"
    if result["kind"] == "upper_bound":
        return "bound"
    if result["margin_nats"] is None:
        return "Monte-Carlo bound"
    unit = "byte" if result["bits_per_byte"] is not None else "word"
    margin = result["margin_nats"] / math.log(2) / result[f"n_{unit}s"]
    return f"Monte-Carlo bound ± {margin:.2g} bits/{unit}, {result['n_passes']} passes"


def _progress(screen: Screen) -> Callable[[int, int], None]:
    """How many rows are scored, and how long the others will take."""
    started = time.monotonic()

    def told(done: int, total: int) -> None:
        left = (time.monotonic() - started) / max(done, 1) * (total - done)
        screen.live(f"scored rows {done:,}/{total:,}, {seconds(left)} left")

    return told
