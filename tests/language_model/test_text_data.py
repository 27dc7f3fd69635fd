"""Text as windows: nothing is lost, every backend gives it back, and what cannot be read is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from armillary import TextData
from armillary.assemble import build, parts
from armillary.language_model.text_data import ELSE
from armillary.recipe import merge
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.tokens.batches import Batches

TEXTS = [f"document {i} " + "of some words " * (i % 5) for i in range(40)]
HARD = "a\x00\n é \u2581 <eos> \U0001f30d\r"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """One that gives a token a byte: every test can count."""
    data = TextData(TEXTS, tokenizer="simple")
    folder = tmp_path_factory.mktemp("t") / "tokenizer"
    build.tokenizers.copy(data.prepared.tokenizer, folder)
    return folder


def test_two_strings_are_one_shorter_window():
    with pytest.warns(ArmillaryWarning, match="one shorter row"):
        data = TextData(["hello world", "goodnight moon"])
    row = data.dataset[0]
    assert len(data) == 1 and data.tokenizer_backend == "sentencepiece" and data.val_dataset is None
    assert torch.equal(row["labels"][:-1], row["input_ids"][1:])
    whole = [*row["input_ids"].tolist(), int(row["labels"][-1])]
    assert data.tokenizer.decode(whole) == "hello worldgoodnight moon" and data.vocab_size > max(whole)


@pytest.mark.parametrize("window", [2, 7, 64])
def test_windows_are_counted_as_promised(tokenizer, window):
    data = TextData(TEXTS, tokenizer_model_path=tokenizer, max_length=window)
    stream = [token for text in TEXTS for token in [1, *data.tokenizer.encode(text), 2]]
    assert len(data) == len(list(data.dataset)) == max(1, (len(stream) - 1) // window)
    for k, row in enumerate(data.dataset):
        assert row["input_ids"].tolist() == stream[k * window : (k + 1) * window]
        assert row["labels"].tolist() == stream[k * window + 1 : (k + 1) * window + 1]
    assert torch.equal(data.dataset[-1]["labels"], data.dataset[len(data) - 2 :][1]["labels"])


def test_without_packing_every_document_has_rows_of_its_own(tokenizer):
    window = 16
    data = TextData(TEXTS, tokenizer_model_path=tokenizer, max_length=window, pack_sequences=False)
    rows = iter(data.dataset)
    for text in TEXTS:
        ids = [1, *data.tokenizer.encode(text), 2]
        targets = []
        for _ in range(-(-(len(ids) - 1) // window)):
            row = next(rows)
            is_real = row["labels"] != -100
            start = len(targets)
            targets += row["labels"][is_real].tolist()
            assert row["input_ids"][is_real].tolist() == ids[start : start + int(is_real.sum())]
        assert targets == ids[1:]
    assert next(rows, None) is None


def test_what_follows_a_padded_document_counts_for_nothing(tokenizer):
    data = TextData(TEXTS, tokenizer_model_path=tokenizer, max_length=16, pack_sequences=False)
    shape = {"model": {"backbone": {"d_model": 16, "n_layers": 1, "n_heads": 2}}}
    found = parts.resolve(merge(ELSE | data.recipe, shape))
    network = build.network(found, data.vocab_size)
    batch = Batches({"text": data.dataset.split}, [], len(data), 0, isolate_documents="padded").at(0)
    is_padding = batch.segments == -1
    assert is_padding.any() and not batch.scored[is_padding].any()
    nats = found.objective.score(network, batch, {})
    other = replace(batch, tokens=batch.tokens.masked_fill(is_padding, 9))
    assert torch.equal(found.objective.score(network, other, {}), nats)
    alone = sum(len(data.tokenizer.encode(text)) + 1 for text in TEXTS)
    assert int(batch.scored.sum()) == alone


@pytest.mark.parametrize("backend", ["sentencepiece", "tokenizers", "simple"])
def test_every_backend_gives_any_text_back(backend):
    data = TextData([*TEXTS, "a é"], tokenizer=backend, max_length=16)
    assert data.tokenizer_backend == backend and data.tokenizer.is_lossless
    assert data.tokenizer.decode(data.tokenizer.encode(HARD)) == HARD and min(data.tokenizer.encode(HARD)) > 3


def test_auto_falls_through_only_where_a_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert TextData(TEXTS, max_length=16).tokenizer_backend == "tokenizers"
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.warns(ArmillaryWarning, match="every character is a token"):
        assert TextData(TEXTS, max_length=16).tokenizer_backend == "simple"
    with pytest.raises(Refusal, match="pip install tokenizers"):
        TextData(TEXTS, tokenizer="tokenizers")


def test_files_are_read_line_by_line(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo é\r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three", encoding="utf-8")
    for given in ([tmp_path / "a.txt", tmp_path / "b.txt"], [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]):
        data = TextData(given, tokenizer_model_path=tokenizer, max_length=2)
        assert list(map(json.loads, data.text.read_text().splitlines())) == ["one", "two é", "three"]
    lone = TextData(str(tmp_path / "b.txt"), tokenizer_model_path=tokenizer, max_length=2)
    assert json.loads(lone.text.read_text()) == "three"


def test_validation_text_is_taken_out_of_the_training_text(tokenizer):
    data = TextData(TEXTS, tokenizer_model_path=tokenizer, max_length=8, val_split=0.25)
    packed = data.prepared.packed["text"].about["splits"]
    assert (packed["train"]["n_documents"], packed["validation"]["n_documents"]) == (30, 10)
    assert len(data.val_dataset) == max(1, (packed["validation"]["n_tokens"] - 1) // 8)
    everything = TextData(TEXTS * 3, tokenizer_model_path=tokenizer, max_length=8)
    assert everything.prepared.packed["text"].about["splits"]["train"]["n_documents"] == 120


def test_bad_input_is_refused_in_one_line(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('"text"', encoding="utf-8")
    refused = {
        "holds no text": lambda: TextData([]),
        "no text; give": lambda: TextData(["", " \n"]),
        "item 1 is int": lambda: TextData(["a", 1]),  # type: ignore[list-item]
        "no file is called 'nowhere": lambda: TextData([Path("nowhere.txt")]),
        "no file is called 'words'": lambda: TextData([tmp_path / "a.txt", "words"]),
        "holds records": lambda: TextData([tmp_path / "a.jsonl"]),
        "did you mean 'sentencepiece'": lambda: TextData(TEXTS, tokenizer="sentencepeice"),
        "'val_split'": lambda: TextData(TEXTS, val_split=1.0),
        "'max_length'": lambda: TextData(TEXTS, max_length=1),
        "tokenizer is 'None'": lambda: TextData(TEXTS, tokenizer=None),  # type: ignore[arg-type]
        "no tokenizer of ours at": lambda: TextData(TEXTS, tokenizer_model_path=tmp_path),
        "is a character tokenizer": lambda: TextData(TEXTS, tokenizer="tokenizers", tokenizer_model_path=tokenizer),
    }
    for words, call in refused.items():
        with pytest.raises(Refusal) as found:
            call()
        assert words in str(found.value) and "\n" not in str(found.value)
    assert TextData(TEXTS, tokenizer_model_path=tokenizer / "characters.json").tokenizer_backend == "simple"


@pytest.mark.parametrize(
    ("given", "needle"),
    [
        (["no-such-file.txt"], "no file is called 'no-such-file.txt'"),
        (["there.txt", "missing.txt"], "no file is called 'missing.txt'"),
        (["there.txt", "two words"], "no file is called 'two words'"),
        (["folder"], "'folder' is a folder"),
        ([Path("folder"), "there.txt"], "'folder' is a folder"),
        (None, "is NoneType"),
    ],
)
def test_a_path_that_is_not_there_is_no_text(tmp_path, monkeypatch, given, needle):
    monkeypatch.chdir(tmp_path)
    Path("there.txt").write_text("some text\n")
    Path("folder").mkdir()
    with pytest.raises(Refusal, match=re.escape(needle)):
        TextData(given)
