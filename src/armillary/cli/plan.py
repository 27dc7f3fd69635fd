"""`armillary plan`: what a recipe will cost."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.options import Data, Json, LogLevel, RecipeName, Set, TokenizerPath
from armillary.cli.screen import Screen, show_json, table


def plan(
    recipe: RecipeName,
    data: Data = None,
    tokenizer: TokenizerPath = None,
    overrides: Set = None,
    measure: Annotated[bool, typer.Option(help="Time a few steps on random tokens.")] = True,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Parameters, tokens, arithmetic, memory, and time from a short measurement. Writes nothing.

    Without data it uses the recipe's vocabulary size; with it, the real one, and tells the epochs.
    """
    from armillary.assemble import planning
    from armillary.cli.options import read_recipe

    screen = Screen(log_level)
    parts, given = read_recipe(recipe, overrides, data, tokenizer)
    n_vocab, training_tokens = planning.known_sizes(parts, given, data is not None)
    if measure:
        screen.say("measuring a few steps")
    facts = planning.plan(parts, n_vocab, training_tokens, measured=measure)
    if as_json:
        show_json(facts)
    else:
        print(table(planning.as_lines(facts)))
