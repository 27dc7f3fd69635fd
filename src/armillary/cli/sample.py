"""`armillary sample`: texts from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import Checkpoint, Device, DryRun, Json, LogLevel, Root, RunName, Set
from armillary.cli.screen import Screen, printable, show_json


def sample(
    run: RunName,
    prompt: Annotated[list[str] | None, typer.Option(help="What to go on from. Repeatable.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same texts.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a continuation.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; by default the recipe's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="The smallest set of tokens with this much probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens at least this likely beside the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 makes used tokens less likely.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string. Repeatable.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Continues each prompt n times (from the beginning of a text where no prompt is given)."""
    from armillary.assemble import build, sampling
    from armillary.run_folder import open_run

    model = build.open_model(open_run(run, root), checkpoint, device, overrides or [])
    fields = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    prompts = [text for text in (prompt or [""]) for _ in range(n)]
    settings = sampling.settings(model.parts, model.tokenizer, prompts, given, max_new_tokens)
    if dry_run:
        show_json({"run": model.run.name, "step": model.step, "prompts": prompts, "settings": settings.model_dump()})
        return
    Screen(log_level).debug(f"{model.run.name}, step {model.step}, {model.network.n_vocab:,} tokens")
    found = sampling.from_model(model, prompts, settings, seed)
    if as_json:
        rows = [{"prompt": p, "text": c.text, "finish": c.finish, "n_tokens": c.n_tokens, "nats": -c.log_p}
                for p, c in zip(prompts, found, strict=True)]  # fmt: skip
        show_json(rows)
        return
    for index, (text, continuation) in enumerate(zip(prompts, found, strict=True)):
        rule = f"\n{'─' * 40}\n" if index else ""
        print(f"{rule}{text}{printable(continuation.text)}")
