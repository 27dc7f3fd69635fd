"""`armillary tokenizer`: corpus → tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import Data, DryRun, Json, LogLevel, RecipeName, Root, Set
from armillary.cli.screen import Screen, show_json, table

app = typer.Typer(help="Corpus → tokenizer.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def train(
    recipe: RecipeName,
    data: Data = None,
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Trains the recipe's tokenizer on the training split, and keeps it as an artefact."""
    from armillary.assemble import stages
    from armillary.cli.options import read_recipe

    screen = Screen(log_level)
    parts, given = read_recipe(recipe, overrides, data, None)
    if dry_run:
        show_json({"tokenizer": parts.recipe.tokenizer.model_dump(), "would_write": str(root / "artefacts")})
        return
    corpora = stages.build_corpora(parts, root, screen.say, given)
    loaded = stages.build_tokenizer(parts, root, screen.say, given, list(corpora.values()))
    if as_json:
        show_json({"folder": str(loaded.folder), "sha256": loaded.sha256, "n_vocab": loaded.tokenizer.n_vocab})
    else:
        print(loaded.folder)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A tokenizer artefact.")],
    corpus: Annotated[Path, typer.Option(help="A corpus artefact to measure it on.")],
    split: Annotated[str, typer.Option(help="A split of that corpus.")] = "validation",
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Characters and bytes per token, and how much of the vocabulary is used."""
    from armillary.text.corpus import open_corpus
    from armillary.tokens import tokenizer as tokenizers

    loaded = tokenizers.load(folder)
    facts = tokenizers.inspect(loaded.tokenizer, open_corpus(corpus).documents(split))
    if as_json:
        show_json(facts)
    else:
        print(
            table([(name, f"{value:.3f}" if isinstance(value, float) else str(value)) for name, value in facts.items()])
        )
