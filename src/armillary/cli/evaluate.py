"""`armillary evaluate`: the likelihood of a run on held-out text, with its kind and its interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.options import Checkpoint, Data, Device, DryRun, Json, LogLevel, Root, RunName, Set
from armillary.cli.screen import Screen, show_json


def evaluate(
    run: RunName,
    split: Annotated[str | None, typer.Option(help="By default the last split its corpus has.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens a window sees.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens a window scores; the others are context.")] = None,
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
    wanted = evaluating.Wanted(split, window, stride, references, None, root)
    if dry_run:
        show_json(evaluating.describe(model, wanted) | {"data": str(data) if data is not None else None})
        return
    if data is not None:
        wanted = replace(wanted, packed=stages.other_text(model.run, model.parts, data, root, screen.say))
    results = evaluating.evaluate(model, wanted, lambda done, total: screen.progress("scored windows", done, total))
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
    kind = {"exact": "exact", "upper_bound": "bound", "monte_carlo_bound": "Monte-Carlo bound"}[result["kind"]]
    return (
        f"{result['name']:<16} {per_byte} · word perplexity {result['word_perplexity']:.2f} · "
        f"{result['n_tokens']:,} tokens, {result['n_words']:,} words, {result['n_bytes']:,} bytes of "
        f"{result['protocol']['split']} · {kind}"
    )
