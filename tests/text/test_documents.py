"""How lines become documents, and which records are rejected."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from armillary.records import Rejected
from armillary.text import reading
from armillary.text.documents import cut, records


def lines_of(text: str) -> list[str]:
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\nb", ["a", "b"]),
        ("\n", [""]),
        ("a\r\nb\u2028c\x0bd\x85e\n", ["a\r", "b\u2028c\x0bd\x85e"]),
        ("", []),
    ],
)
def test_a_line_ends_at_a_newline_and_nowhere_else(text: str, documents: list[str]) -> None:
    assert list(cut(lines_of(text), "line")) == documents


def test_blank_lines_part_groups_and_inner_newlines_stay() -> None:
    assert list(cut(lines_of("\n a\nb\n\n \t\n\nc\n"), "blank_line")) == [" a\nb", "c"]
    assert list(cut(lines_of("a\r\nb\r\n\r\nc"), "blank_line")) == ["a\r\nb", "c"]


def test_an_article_begins_at_a_title_that_stands_alone() -> None:
    text = " \n = One = \n \n W = 1 \n = Losses , L = \n = = Part = = \n \n x\n \n = Two = \n \n y\n \n"
    assert list(cut(lines_of(text), "article")) == [
        " = One = \n \n W = 1 \n = Losses , L = \n = = Part = = \n \n x",
        " = Two = \n \n y",
    ]


def test_a_markdown_comment_in_code_is_no_title() -> None:
    text = "before\n# One\nx\n## Part\n```sh\n# not a title\n```\n# Two\ny\n#hashtag\n"
    assert list(cut(lines_of(text), "article")) == [
        "before",
        "# One\nx\n## Part\n```sh\n# not a title\n```",
        "# Two\ny\n#hashtag",
    ]


def test_wikitext_has_the_published_number_of_articles(data: Path) -> None:
    for split, n_articles in {"valid": 60, "test": 60}.items():
        path = data / "wikitext-2" / f"wiki.{split}.tokens.gz"
        assert len(list(cut(reading.lines(path), "article"))) == n_articles


def test_a_separator_parts_documents_on_its_own_line_and_within_one() -> None:
    text = "a\nb\n<|end|>\nc<|end|>d\n\n<|end|>\n<|end|>\n"
    assert list(cut(lines_of(text), "separator", "<|end|>")) == ["a\nb", "c", "d"]


def test_tinystories_is_cut_at_its_separator(data: Path) -> None:
    path = data / "tinystories" / "tinystories-cased-2MiB.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        n_stories = sum(bool(story.strip()) for story in file.read().split("<|endoftext|>"))
    stories = list(cut(reading.lines(path), "separator", "<|endoftext|>"))
    assert len(stories) == n_stories > 2000
    assert not any("<|endoftext|>" in story for story in stories)


def test_a_file_is_kept_byte_for_byte() -> None:
    assert list(cut(["\n", " a\r\n", "b\n"], "file")) == ["\n a\r\nb\n"]
    assert list(cut([" \n"], "file")) == []


def test_bad_records_are_told_by_line_and_good_ones_kept() -> None:
    lines = [
        '{"text": "a\\nb"}\n',
        "\n",
        "{torn\n",
        '{"body": "x", "id": 1}\n',
        '{"text": 3}\n',
        '"a bare string"\n',
        '{"text": "\\ud800"}\n',
        '{"text": ""}',
    ]
    items = list(records(lines, "text", "f.jsonl"))
    assert [item for item in items if isinstance(item, str)] == ["a\nb", "a bare string", ""]
    assert [(item.line, item.reason) for item in items if isinstance(item, Rejected)] == [
        (3, "is not JSON"),
        (4, "has no field 'text' (it has: body, id)"),
        (5, "holds int where the text should be"),
        (7, "holds half of a surrogate pair, which is not text"),
    ]
