"""Documents: how the text of a file is cut into them, and what becomes of a record that holds none."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

from armillary.records import Rejected

Cut: TypeAlias = Literal["line", "blank_line", "article", "separator", "file"]
Split: TypeAlias = Literal["train", "validation", "test"]

WIKITEXT_TITLE = re.compile(r" = [^=](.*[^=])? = \r?\n?$")
MARKDOWN_TITLE = re.compile(r"# +\S")
MARKDOWN_FENCE = re.compile(r"```|~~~")


def cut(lines: Iterable[str], kind: Cut, separator: str = "") -> Iterator[str]:
    r"""Documents from lines that each end in "\n", save perhaps the last.

    line: every line, blank ones too. Only here the newline belongs to the text (boundary "newline"); the bytes
    between documents of all other kinds are dropped (boundary "end_of_text").
    blank_line: groups of lines between blank lines. article: from one level-one title (` = Title = ` with a blank
    line on both sides, as in WikiText, or Markdown's `# Title`) to the next. separator: between occurrences of
    `separator`. file: everything, byte for byte.
    Inner newlines are kept; documents without any visible character are dropped, except blank lines of `line`.
    """
    match kind:
        case "line":
            return (line.removesuffix("\n") for line in lines)
        case "blank_line":
            groups = itertools.groupby(lines, key=lambda line: bool(line.strip()))
            return _visible(list(group) for has_text, group in groups if has_text)
        case "article":
            return _visible(_articles(lines))
        case "separator":
            return _visible(_separated(lines, separator))
        case "file":
            text = "".join(lines)
            return iter([text] if text.strip() else [])


def records(lines: Iterable[str], field: str, file: str) -> Iterator[str | Rejected]:
    """Documents of JSON lines: records with the text under `field`, or strings. Empty lines hold no record."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Rejected(file, number, "is not JSON")
            continue
        yield text_of(value, field, file, number)


def text_of(value: Any, field: str, file: str, number: int) -> str | Rejected:
    """The text of one record (a mapping with `field`, or the text itself)."""
    if isinstance(value, dict):
        if field not in value:
            return Rejected(file, number, f"has no field '{field}' (it has: {', '.join(map(str, value))[:80]})")
        value = value[field]
    if not isinstance(value, str):
        return Rejected(file, number, f"holds {type(value).__name__} where the text should be")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which has no UTF-8 form
        return Rejected(file, number, "holds half of a surrogate pair, which is not text")
    return value


def _articles(lines: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    previous, is_fenced = "", False
    for line, following in itertools.pairwise(itertools.chain(lines, [""])):
        if MARKDOWN_FENCE.match(line):
            is_fenced = not is_fenced
        # WikiText also writes formulas and legends as " = x = "; only a title stands between blank lines.
        is_alone = not previous.strip() and not following.strip()
        is_wikitext = is_alone and WIKITEXT_TITLE.match(line)
        if is_wikitext or (MARKDOWN_TITLE.match(line) and not is_fenced):
            yield held
            held = []
        held.append(line)
        previous = line
    yield held


def _separated(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    held: list[str] = []
    for line in lines:
        *ends, rest = line.split(separator)
        for end in ends:
            yield [*held, end]
            held = []
        held.append(rest)
    yield held


def _visible(groups: Iterable[list[str]]) -> Iterator[str]:
    """Each group as one text, without blank lines at either end and without its last newline; no empty ones."""
    for group in groups:
        visible = [i for i, line in enumerate(group) if line.strip()]
        if visible:
            yield "".join(group[visible[0] : visible[-1] + 1]).removesuffix("\n").removesuffix("\r")
