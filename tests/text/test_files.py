"""The source of files and folders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from armillary import registry
from armillary.records import Document, Rejected
from armillary.refusal import ArmillaryWarning, Refusal


def files(**fields: Any) -> Any:
    return registry.make("text/sources", "files", fields)


def texts(source: Any) -> list[str]:
    return [item.text for item in source.read() if isinstance(item, Document)]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    if suffix == ".zst":
        return pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return data


def parquet(values: list[Any], path: Path, column: str = "text") -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"id": list(range(len(values))), column: values}), path
    )
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".tokens", ".raw", ".text", ".jsonl", ".json", ".parquet"])
def test_every_suffix_is_read(tmp_path: Path, suffix: str, compression: str) -> None:
    wanted = ["α\r\nb\u2028", "two"]
    match suffix:
        case ".parquet":
            data = parquet(wanted, tmp_path / "raw")
        case ".jsonl":
            data = "".join(json.dumps({"text": t}) + "\n" for t in wanted).encode()
        case ".json":
            data = json.dumps([{"text": wanted[0]}, wanted[1]]).encode()
        case ".md":
            wanted = ["# α\r\nb\u2028\n\ntwo\n"]
            data = wanted[0].encode()
        case _:
            data = "\n\n".join(wanted).encode()
    (tmp_path / f"a{suffix}{compression}").write_bytes(compress(data, compression))
    assert texts(files(path=str(tmp_path))) == wanted
    assert texts(files(path=str(tmp_path / f"a{suffix}{compression}"))) == wanted


def test_json_may_hold_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert texts(files(path=str(tmp_path))) == ["a", "b"]
    (tmp_path / "a.json").write_text('[{"text": "a"},')
    with pytest.raises(Refusal, match=r"a\.json: is not JSON"):
        texts(files(path=str(tmp_path)))


def test_bad_rows_are_rejected_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(["x", None], tmp_path / "raw"))
    (tmp_path / "b.json").write_text('["y", {"body": 1}]')
    rejected = [item for item in files(path=str(tmp_path)).read() if isinstance(item, Rejected)]
    assert [(item.file, item.line) for item in rejected] == [("a.parquet", 2), ("b.json", 2)]


def test_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(["x"], tmp_path / "raw", column="texts"))
    with pytest.raises(Refusal, match=r"no column is called 'text'; did you mean 'texts'\?"):
        texts(files(path=str(tmp_path)))


def test_auto_cuts_a_lone_text_at_blank_lines_and_keeps_several_whole(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b1\n\nb2\n")
    assert texts(files(path=str(tmp_path))) == ["b1", "b2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("a1\n\na2\n")
    (tmp_path / "c.txt").write_text("c1\n<|endoftext|>\nc2\n\nc3\n")
    assert texts(files(path=str(tmp_path))) == ["a1\n\na2\n", "b1\n\nb2\n", "c1", "c2\n\nc3"]
    assert texts(files(path=[str(tmp_path / "c.txt"), str(tmp_path / "a")], document="line", )) == [
        "c1", "<|endoftext|>", "c2", "", "c3", "a1", "", "a2",
    ]  # fmt: skip


def test_boundary_is_a_newline_for_lines_only(tmp_path: Path) -> None:
    kinds = ["auto", "line", "blank_line", "article", "separator", "file", "jsonl"]
    boundaries = {kind: files(path=str(tmp_path), document=kind).boundary for kind in kinds}
    assert [kind for kind, boundary in boundaries.items() if boundary == "newline"] == ["line"]


def test_own_splits_by_field(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    paths = {name: str(tmp_path / f"{file}.txt") for name, file in (("test", "c"), ("train", "a"), ("validation", "b"))}
    assert {item.split: item.text for item in files(splits=paths).read()} == {
        "train": "a",
        "validation": "b",
        "test": "c",
    }


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.txt", "dev.txt", "test.txt"], ["train", "validation", "test"]),
        (["train-00.txt", "train-01.txt", "x.valid.txt"], ["train", "train", "validation"]),
        (["train/a.txt", "val/test.txt"], ["train", "validation"]),
        (["train.txt", "other.txt"], [None, None]),
        (["valid.txt", "test.txt"], [None, None]),
        (["contest.txt", "trainer.txt"], [None, None]),
    ],
)
def test_names_say_splits_where_train_and_another_are_there(
    tmp_path: Path, names: list[str], splits: list[str | None]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    got = {item.text: item.split for item in files(path=str(tmp_path), document="file").read()}
    assert got == dict(zip(names, splits, strict=True))


def test_what_a_folder_leaves_out_is_told(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "README.md", "picture.png", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    with pytest.warns(ArmillaryWarning, match=r"2 files are left out .*picture\.png, README\.md"):
        assert texts(files(path=str(tmp_path))) == ["train.txt", "valid.txt"]


def test_fingerprint_follows_the_text_and_not_the_place(tmp_path: Path) -> None:
    prints = []
    for folder, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)
        prints.append(files(path=str(tmp_path / folder)).fingerprint())
    assert prints[0] == prints[1] != prints[2]
    assert str(tmp_path) not in json.dumps(prints)


def test_bad_paths_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"nowhere: no such file or folder"):
        files(path=str(tmp_path / "nowhere")).fingerprint()
    with pytest.raises(Refusal, match=r"no file here can be read; known suffixes: \.txt .*\.parquet"):
        files(path=str(tmp_path)).fingerprint()
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(Refusal, match=r"a\.pdf: cannot be read by its suffix"):
        files(path=str(tmp_path / "a.pdf")).fingerprint()


def test_records_cannot_be_cut_as_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(Refusal, match="holds records; set document to auto or jsonl"):
        texts(files(path=str(tmp_path), document="line"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of path and splits"),
        ({"path": "a", "splits": {"train": "b"}}, "exactly one of path and splits"),
        ({"splits": {"test": "b"}}, "'train' is missing"),
        ({"splits": {"trian": "b"}}, "splits"),
        ({"path": "a", "document": "separator", "separator": "\n"}, "separator"),
        ({"path": "a", "document": "file", "separator": "<s>"}, "has no meaning"),
        ({"path": "a", "documents": "file"}, "did you mean 'document'"),
    ],
)
def test_fields_that_contradict_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        files(**fields)
