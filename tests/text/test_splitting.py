"""How validation text is taken out of the training text."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.text.splitting import divide, is_chosen, place_to_cut


def split(texts: list[str], fraction: float, *, can_cut: bool = True) -> tuple[str, list[tuple[str, str]]]:
    n_chosen = sum(is_chosen(text, fraction) for text in texts)
    rule, divided = divide(iter(texts), len(texts), n_chosen, fraction, can_cut=can_cut)
    return rule, list(divided)


def test_hash_keeps_equal_documents_together_whatever_the_order() -> None:
    texts = [f"document {i % 400}" for i in range(800)]
    rule, divided = split(texts, 0.1)
    assert rule == "hash"
    sides = {side: {text for s, text in divided if s == side} for side in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert 20 <= len(sides["validation"]) <= 60
    assert {text for s, text in split(texts[::-1], 0.1)[1] if s == "validation"} == sides["validation"]


def test_the_hash_is_sha256_of_the_text() -> None:
    part = int(hashlib.sha256(b"x").hexdigest()[:16], 16) / 2**64
    assert is_chosen("x", part + 0.01)
    assert not is_chosen("x", part - 0.01)


@given(n=st.integers(2, 99), fraction=st.floats(0.01, 0.99))
def test_few_documents_are_split_by_place_with_one_on_each_side(n: int, fraction: float) -> None:
    texts = [str(i) for i in range(n)]
    rule, divided = split(texts, fraction)
    assert rule == "tail"
    assert [text for _, text in divided] == texts
    sides = [side for side, _ in divided]
    assert sides == sorted(sides)
    assert 1 <= sides.count("validation") <= n - 1
    assert abs(sides.count("validation") - n * fraction) <= 1


def test_many_equal_documents_still_give_both_sides() -> None:
    rule, divided = split(["same"] * 200, 0.1)
    assert rule == "tail"
    assert [side for side, _ in divided].count("validation") == 20


def test_one_document_is_cut_after_the_nearest_newline() -> None:
    text = "".join(f"line {i:04d}\n" for i in range(100))
    rule, divided = split([text], 0.1)
    assert rule == "within_document"
    assert divided == [("train", text[:900]), ("validation", text[900:])]


def test_one_line_is_cut_at_a_space_and_not_at_a_far_newline() -> None:
    text = "Title\n" + "word " * 1000
    at = place_to_cut(text, 0.1)
    assert at is not None
    assert abs(at - 0.9 * len(text)) <= 5
    assert text[at - 1] == " "


@given(st.text(alphabet="ab \n", max_size=60), st.floats(0.01, 0.99))
def test_a_cut_loses_nothing_and_leaves_no_side_blank(text: str, fraction: float) -> None:
    at = place_to_cut(text, fraction)
    if at is not None:
        assert text[:at].strip()
        assert text[at:].strip()
        assert text[at - 1] in "\n "
        assert len(text) - at < 2 * fraction * len(text) + 1


@pytest.mark.parametrize("text", ["word", "", "a\n"])
def test_a_document_too_short_to_cut_is_training_text(text: str) -> None:
    assert split([text], 0.5) == ("none", [("train", text)])


def test_a_line_is_not_cut() -> None:
    assert split(["one line of text"], 0.5, can_cut=False)[0] == "none"
