"""`armillary pack`: corpus + tokenizer → memory-mapped tokens."""

from __future__ import annotations

from pathlib import Path

from armillary.cli.options import Data, DryRun, Json, LogLevel, RecipeName, Root, Set, TokenizerPath
from armillary.cli.screen import Screen, show_json


def pack(
    recipe: RecipeName,
    data: Data = None,
    tokenizer: TokenizerPath = None,
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Runs the stages before training that are missing, and prints the packed artefact's folder."""
    from armillary.assemble import stages
    from armillary.cli.options import read_recipe

    screen = Screen(log_level)
    parts, given = read_recipe(recipe, overrides, data, tokenizer)
    if dry_run:
        show_json({"packing": parts.recipe.packing.model_dump(), "would_write": str(root / "artefacts")})
        return
    prepared = stages.prepare(parts, root, screen.say, given)
    if as_json:
        show_json({name: {"folder": str(p.folder), **p.about} for name, p in prepared.packed.items()})
    else:
        for packed in prepared.packed.values():
            print(packed.folder)
