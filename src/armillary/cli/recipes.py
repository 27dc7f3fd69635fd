"""`armillary recipes`: which there are, and one of them resolved."""

from __future__ import annotations

import typer

from armillary.cli.options import Json, LogLevel, RecipeName, Set
from armillary.cli.screen import show_json, table

app = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(as_json: Json = False, log_level: LogLevel = "info") -> None:
    """Names of the recipes, and what each is for."""
    from armillary import recipe

    rows = [(name, str(recipe.raw(name).get("about", ""))) for name in recipe.shipped()]
    if as_json:
        show_json([{"name": name, "about": about} for name, about in rows])
    else:
        print(table(rows))


@app.command()
def show(name: RecipeName, overrides: Set = None, as_json: Json = False, log_level: LogLevel = "info") -> None:
    """The whole recipe, after `extends` and --set, every default filled in."""
    from armillary import recipe
    from armillary.assemble import parts

    complete = parts.resolve(recipe.raw(name, overrides or [])).recipe
    if as_json:
        show_json(complete.model_dump(mode="json"))
    else:
        print(complete.as_yaml(), end="")
