"""`armillary sample`: texts from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.options import Checkpoint, Device, DryRun, Json, LogLevel, Root, RunName, Set
from armillary.cli.screen import Screen, printable, show_json


def sample(
    run: RunName,
    prompt: Annotated[list[str] | None, typer.Option(help="What to go on from. Repeatable.")] = None,
    infill: Annotated[
        list[str] | None, typer.Option(help="Text with holes of so many tokens: 'The <8> of the <4>.' Repeatable.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same texts.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a continuation.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Another sampler than the recipe's; see `compatibility`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps from noise to text.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How much more to heed what is given.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; by default the recipe's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="The smallest set of tokens with this much probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens at least this likely beside the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 makes used tokens less likely.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string. Repeatable.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Show the text resolving in the terminal.")] = False,
    frames: Annotated[Path | None, typer.Option(help="A new folder for each state of the text, and a GIF.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Continues each prompt n times (from the beginning of a text where no prompt is given), or fills holes.

    Which settings there are depends on the sampler; --set sampling.sampler.FIELD=VALUE reaches all of them.
    """
    from armillary.assemble import build, sampling
    from armillary.cli.resolving import Resolving
    from armillary.refusal import Refusal
    from armillary.run_folder import open_run

    if infill and (prompt or max_new_tokens):
        raise Refusal("--infill: holes say where text comes and how much; leave --prompt and --max-new-tokens out")
    fields = {
        "steps": steps,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    chosen = [f"sampling.sampler.name={sampler}"] if sampler is not None else []
    model = build.open_model(open_run(run, root), checkpoint, device, [*chosen, *(overrides or [])])
    prompts = [text for text in (infill or prompt or [""]) for _ in range(n)]
    manner = sampling.settings(model.parts, model.tokenizer, [] if infill else prompts, given, max_new_tokens)
    if infill:
        sampling.template_rows(model, prompts, manner)
    if (live or frames) and manner.view == "next_token":
        raise Refusal("--live, --frames: show texts that resolve everywhere at once; this one comes token after token")
    watch = Resolving(is_live=live, frames=frames) if live or frames else None
    if dry_run:
        show_json({"run": model.run.name, "step": model.step, "prompts": prompts,
                   "settings": manner.sampler.model_dump()})  # fmt: skip
        return
    Screen(log_level).debug(f"{model.run.name}, step {model.step}, {model.network.n_vocab:,} tokens")
    draw = sampling.infill if infill else sampling.from_model
    if watch is None:
        found = draw(model, prompts, manner, seed)
    else:
        with watch:
            found = draw(model, prompts, manner, seed, watch)
    if as_json:
        show_json([_record(prompt, one) for prompt, one in zip(prompts, found, strict=True)])
        return
    for index, (text, one) in enumerate(zip(prompts, found, strict=True)):
        rule = f"\n{'─' * 40}\n" if index else ""
        print(f"{rule}{'' if infill else text}{printable(one.text)}")


def _record(prompt: str, one: Any) -> dict[str, Any]:
    if hasattr(one, "holes"):
        facts = {"template": prompt, "text": one.text, "holes": one.holes, "n_tokens": one.n_tokens}
    else:
        nats = -one.log_p if one.log_p is not None else None
        facts = {"prompt": prompt, "text": one.text, "finish": one.finish, "n_tokens": one.n_tokens, "nats": nats}
    return facts | ({"n_evaluations": one.n_evaluations} if one.n_evaluations is not None else {})
