"""Refusals in the words of whoever called: the rooms below name an option as the command line does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from armillary.refusal import Refusal

COMMAND_OR_OPTION = re.compile(r"`[^`]*`|\btorchrun .*|(?<!\S)--resume auto\b|(?<![\w-])--[a-z]+(?:-[a-z]+)*")
OTHERWISE = {"--resume auto": "resume=True", "--set": "overrides"}
"""Options that Python has under a name of its own; --max-new-tokens is max_new_tokens, and so on."""


@contextmanager
def in_python_words(**otherwise: str) -> Iterator[None]:
    """Around a function of the Python surface. otherwise: what this one has in the place of an option."""
    names = OTHERWISE | {f"--{option}": argument for option, argument in otherwise.items()}

    def argument(found: re.Match[str]) -> str:
        if not found[0].startswith("--"):  # a whole command stays one
            return found[0]
        return names.get(found[0], found[0].removeprefix("--").replace("-", "_"))

    try:
        yield
    except Refusal as refusal:
        raise Refusal(COMMAND_OR_OPTION.sub(argument, str(refusal))) from None
