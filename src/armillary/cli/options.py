"""Options that several verbs share, and how a verb finds its recipe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Level = Literal["quiet", "info", "debug"]

Root = Annotated[Path, typer.Option(help="Folder that holds artefacts/ and runs/.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Set a key of the recipe: training.steps=100. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")]


def _hush(level: Level) -> Level:
    if level == "quiet":
        from armillary.refusal import ArmillaryWarning

        warnings.simplefilter("ignore", ArmillaryWarning)
    return level


LogLevel = Annotated[Level, typer.Option(help="How much is said on stderr; quiet: only refusals.", callback=_hush)]
Data = Annotated[Path | None, typer.Option(help="Your text (file or folder), or a corpus or packed artefact.")]
TokenizerPath = Annotated[Path | None, typer.Option("--tokenizer", help="A tokenizer artefact to use instead.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name (see `recipes list`) or file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name under ROOT/runs, or its folder.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Checkpoint = Annotated[str, typer.Option(help="best (on validation), last, or a step.")]


def read_recipe(name: str, overrides: list[str] | None, data: Path | None, tokenizer: Path | None) -> tuple[Any, Any]:
    """(parts, artefacts given instead of stages)."""
    from armillary import recipe
    from armillary.assemble import parts, stages

    raw = recipe.raw(name, overrides or [])
    text, given = stages.given(data, tokenizer)
    if text is not None:
        raw = parts.with_data(raw, text)
    return parts.resolve(raw), given
