"""`armillary data`: text → corpus artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.options import DryRun, Json, LogLevel, Root, Set
from armillary.cli.screen import Screen, show_json, table

app = typer.Typer(help="Text → corpus.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def make(
    path: Annotated[Path, typer.Argument(help="A file or folder of text.")],
    document: Annotated[
        str, typer.Option(help="What a document is: auto, line, blank_line, article, file, jsonl.")
    ] = "auto",
    validation_fraction: Annotated[float, typer.Option(help="Share held out where the text brings no splits.")] = 0.05,
    overrides: Set = None,
    root: Root = Path(),
    as_json: Json = False,
    dry_run: DryRun = False,
    log_level: LogLevel = "info",
) -> None:
    """Reads text, splits it into documents and into train and validation, and keeps it as a corpus."""
    from armillary import recipe, registry
    from armillary.assemble import stages

    screen = Screen(log_level)
    source = registry.make(
        "text/sources", "files", {"path": str(path), "document": document, **recipe.override({}, overrides or [])}
    )
    if dry_run:
        found = {"source": source.fingerprint(), "would_write": str(root / "artefacts" / "corpora")}
        show_json(found)
        return
    corpus = stages.build_corpus("files", source, validation_fraction, root, screen.say)
    if as_json:
        show_json({"folder": str(corpus.folder), "fingerprint": corpus.fingerprint, **corpus.about})
    else:
        print(corpus.folder)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A corpus artefact.")],
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Sizes of its splits, lengths of documents, and the beginnings of a few."""
    from armillary.text import corpus as corpora

    facts = corpora.inspect(corpora.open_corpus(folder))
    if as_json:
        show_json(facts)
        return
    for split, found in facts["splits"].items():
        print(f"{split}\n{table([(f'  {k}', str(v)) for k, v in found.items()])}")
