"""WikiText-2 from files and from the hub."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from armillary import registry
from armillary.refusal import Refusal
from armillary.text import corpus

SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def wikitext2(**fields: Any) -> Any:
    return registry.make("text/sources", "wikitext2", fields)


def write(folder: Path, release: str, suffix: str = "") -> None:
    for name in SPLITS:
        data = f" \n = {name} {release} = \n \n".encode()
        (folder / f"wiki.{name}.{release}{suffix}").write_bytes(gzip.compress(data) if suffix else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_line_of_every_split_is_a_document(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, "tokens", suffix)
    source = wikitext2(path=str(tmp_path))
    assert source.boundary == "newline"
    assert [(d.split, d.text) for d in source.read()] == [
        (split, text) for name, split in SPLITS.items() for text in (" ", f" = {name} tokens = ", " ")
    ]


def test_auto_takes_raw_only_where_all_of_it_is_there(tmp_path: Path) -> None:
    write(tmp_path, "tokens")
    write(tmp_path, "raw")
    assert wikitext2(path=str(tmp_path)).fingerprint()["release"] == "raw"
    assert wikitext2(path=str(tmp_path), release="tokens").fingerprint()["release"] == "tokens"
    (tmp_path / "wiki.train.raw").unlink()
    assert wikitext2(path=str(tmp_path)).fingerprint()["release"] == "tokens"
    with pytest.raises(Refusal, match=r"wiki\.train\.raw not here"):
        wikitext2(path=str(tmp_path), release="raw").fingerprint()


def test_a_missing_folder_or_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no such folder"):
        wikitext2(path=str(tmp_path / "nowhere")).fingerprint()
    with pytest.raises(Refusal, match=r"wiki\.train\.tokens, wiki\.valid\.tokens, wiki\.test\.tokens not here"):
        wikitext2(path=str(tmp_path)).fingerprint()


def test_accounting_is_the_published_one(data: Path, tmp_path: Path) -> None:
    source = wikitext2(path=str(data / "wikitext-2"))
    built = corpus.build("wikitext-2", source, 0.05, tmp_path)
    assert built.splits == ("train", "validation", "test")
    assert (built.about["split_rule"], built.boundary) == ("own", "newline")
    assert built.about["source"]["fingerprint"]["release"] == "tokens"  # the raw release is there for test only
    words = {split: built.facts(split).n_words for split in built.splits}
    assert words == {"train": 2_088_628, "validation": 217_646, "test": 245_569}
    test = built.facts("test")
    assert (test.n_documents, test.n_words - test.n_documents, test.n_bytes) == (4_358, 241_211, 1_256_449)
    with gzip.open(data / "wikitext-2" / "wiki.test.tokens.gz") as file:
        whole = file.read()
    assert "".join(line + "\n" for line in built.documents("test")).encode() == whole
    assert test.n_characters == len(whole.decode())


def test_the_hub_gives_the_same_lines_as_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "raw")
    asked = []

    def load_dataset(name: str, config: str, *, revision: str | None, streaming: bool) -> Any:
        asked.append((name, config))
        # The hub keeps newlines and empties blank lines.
        rows = {split: [{"text": ""}, {"text": f" = {name} raw = \n"}, {"text": ""}] for name, split in SPLITS.items()}
        return {split: FakeSplit(records) for split, records in rows.items()}

    class FakeSplit(list):
        column_names = ("text",)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(wikitext2().read()) == list(wikitext2(path=str(tmp_path)).read())
    list(wikitext2(release="tokens").read())
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1"), ("Salesforce/wikitext", "wikitext-2-v1")]
