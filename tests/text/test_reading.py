"""Files on disk: compression, torn files, UTF-8."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from armillary.refusal import Refusal
from armillary.text import reading

TEXT = "line\r\nß\u2028x\n\nlast"


def stored(folder: Path, suffix: str, data: bytes) -> Path:
    path = folder / f"a.txt{suffix}"
    if suffix == ".gz":
        data = gzip.compress(data)
    elif suffix == ".zst":
        data = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_are_the_text(tmp_path: Path, suffix: str) -> None:
    path = stored(tmp_path, suffix, TEXT.encode())
    assert list(reading.lines(path)) == ["line\r\n", "ß\u2028x\n", "\n", "last"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_do_not_depend_on_the_chunk(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 2)
    path = stored(tmp_path, suffix, TEXT.encode())
    assert list(reading.lines(path)) == ["line\r\n", "ß\u2028x\n", "\n", "last"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_concatenated_files_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = stored(tmp_path, suffix, b"one\n")
    path.write_bytes(path.read_bytes() * 2)
    assert list(reading.lines(path)) == ["one\n", "one\n"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_torn_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = stored(tmp_path, suffix, "".join(f"{i * 7919}\n" for i in range(9000)).encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(Refusal, match=rf"a\.txt\{suffix}: is not a whole"):
        list(reading.lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("zstandard")
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("plain text")
    with pytest.raises(Refusal, match="is not a whole"):
        list(reading.lines(path))


def test_bytes_that_are_not_utf8_are_told_by_place(tmp_path: Path) -> None:
    path = stored(tmp_path, ".gz", b"good\nab\xffc\n")
    with pytest.raises(Refusal, match=r"a\.txt\.gz: is not UTF-8 at byte 7;"):
        list(reading.lines(path))


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = stored(tmp_path, "", "\ufeffa\n\ufeffb".encode())
    assert list(reading.lines(path)) == ["a\n", "\ufeffb"]


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"x")
    with pytest.raises(Refusal, match=r"pip install armillary\[text\]"):
        list(reading.lines(path))
    with pytest.raises(Refusal, match=r"pip install armillary\[text\]"):
        list(reading.parquet_rows(tmp_path / "a.parquet", "text"))
