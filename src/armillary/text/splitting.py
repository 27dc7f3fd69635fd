"""How validation text is taken out of the training text, where a source brings none of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

Rule: TypeAlias = Literal["own", "hash", "tail", "within_document", "none"]
"""own: the source's. hash: by the text of each document, so that equal documents stay together. tail: the last
documents. within_document: the end of the only one. none: all is training text."""

N_FEW = 100


def is_chosen(text: str, fraction: float) -> bool:
    """Whether the rule "hash" puts a document into validation: a fact of its text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def divide(
    texts: Iterable[str], n_documents: int, n_chosen: int, fraction: float, *, can_cut: bool
) -> tuple[Rule, Iterator[tuple[str, str]]]:
    """The rule, and each document with its split.

    n_chosen: how many of them `is_chosen`. can_cut: whether a document may be cut in two (a line may not).
    Fewer than 100 documents are split by place, and so are more where the hash would leave a side empty.
    """
    if not fraction:
        return "none", (("train", text) for text in texts)
    if n_documents == 1:
        (text,) = texts
        at = place_to_cut(text, fraction) if can_cut else None
        if at is None:
            return "none", iter([("train", text)])
        return "within_document", iter([("train", text[:at]), ("validation", text[at:])])
    if n_documents >= N_FEW and 0 < n_chosen < n_documents:
        return "hash", (("validation" if is_chosen(text, fraction) else "train", text) for text in texts)
    n_train = n_documents - min(n_documents - 1, max(1, round(n_documents * fraction)))
    return "tail", (("train" if i < n_train else "validation", text) for i, text in enumerate(texts))


def place_to_cut(text: str, fraction: float) -> int | None:
    """After the newline nearest to 1 - fraction of the characters, or the space where no newline is near.

    None where there is neither. Near: validation gets less than twice its fraction, and neither side is blank.
    """
    n_wanted = round(len(text) * fraction)
    target = len(text) - n_wanted
    for mark in ("\n", " "):
        before = text.rfind(mark, max(0, target - n_wanted), target)
        after = text.find(mark, target)
        near = [i for i in (before, after) if i >= 0 and text[: i + 1].strip() and text[i + 1 :].strip()]
        if near:
            return min(near, key=lambda i: abs(i - target)) + 1
    return None
