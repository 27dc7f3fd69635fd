"""Datasets of the hub: what we do around the library, and the library itself on a local folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from armillary import registry
from armillary.records import Rejected
from armillary.refusal import Refusal


class FakeSplit(list):
    column_names = ("text", "id")


def huggingface(**fields: Any) -> Any:
    return registry.make("text/sources", "huggingface", {"dataset": "someone/something"} | fields)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for `datasets`, whose faults are raised before it answers."""

    def load_dataset(*args: Any, **kwargs: Any) -> dict[str, FakeSplit]:
        fake.n_calls += 1
        if fake.faults:
            raise fake.faults.pop()
        return {name: FakeSplit({"text": f"{name} {i}", "id": i} for i in range(3)) for name in fake.splits}

    fake = SimpleNamespace(load_dataset=load_dataset, faults=[], n_calls=0, splits=["train", "test", "extra"])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("armillary.text.sources.huggingface.WAITS_SECONDS", (0.0, 0.0))
    return fake


@pytest.mark.usefixtures("library")
def test_splits_are_the_known_ones_or_the_mapped_ones() -> None:
    assert [(d.split, d.text) for d in huggingface(max_documents=1).read()] == [
        ("train", "train 0"),
        ("test", "test 0"),
    ]
    mapped = huggingface(splits={"train": "train", "validation": "extra"}, max_documents=2).read()
    assert [(d.split, d.text) for d in mapped][2:] == [("validation", "extra 0"), ("validation", "extra 1")]


@pytest.mark.usefixtures("library")
def test_unknown_split_or_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refusal, match=r"no split is called 'trian'; did you mean 'train'\?"):
        list(huggingface(splits={"train": "trian"}).read())
    with pytest.raises(Refusal, match=r"no column is called 'texts'; did you mean 'text'\?"):
        list(huggingface(text_field="texts").read())


@pytest.mark.usefixtures("library")
def test_a_record_without_text_is_rejected_by_number() -> None:
    items = list(huggingface(text_field="id", splits={"train": "train"}).read())
    assert items[1] == Rejected("someone/something:train", 2, "holds int where the text should be")


def test_the_network_gets_another_try_and_a_wrong_name_does_not(library: SimpleNamespace) -> None:
    library.faults = [ConnectionError("reset"), TimeoutError("slow")]
    assert len(list(huggingface().read())) == 6
    assert library.n_calls == 3
    library.faults, library.n_calls = [ConnectionError(f"reset\n{i}") for i in range(9)], 0
    with pytest.raises(Refusal, match=r"cannot be loaded \(reset\); go online"):
        list(huggingface().read())
    assert library.n_calls == 3
    library.faults, library.n_calls = [FileNotFoundError("no such dataset")], 0
    with pytest.raises(Refusal, match=r"cannot be loaded \(no such dataset\); check dataset"):
        list(huggingface().read())
    assert library.n_calls == 1


@pytest.mark.parametrize("part", ["huggingface", "wikitext2"])
def test_without_the_library_the_refusal_says_what_to_install(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = huggingface() if part == "huggingface" else registry.make("text/sources", "wikitext2", {})
    with pytest.raises(Refusal, match=r"pip install armillary\[data\]"):
        source.fingerprint()
    with pytest.raises(Refusal, match=r"pip install armillary\[data\]"):
        list(source.read())


@pytest.mark.parametrize("streaming", [False, True])
def test_the_library_reads_a_local_folder(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `data` (package datasets) is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {i}\n"}) + "\n" for i in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    source = huggingface(dataset=str(folder), streaming=streaming)
    assert [(d.split, d.text) for d in source.read()] == [
        (s, f"{s} {i}\n") for s in ("train", "test") for i in range(3)
    ]
    before = source.fingerprint()
    assert before == source.fingerprint()
    (folder / "train.jsonl").write_text('{"text": "other"}\n')
    assert source.fingerprint() != before
