"""Files of text on disk, plain or compressed: their lines, checked as UTF-8, and the rows of a Parquet file."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from armillary import artefact
from armillary.refusal import Refusal, nearest

COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20


def inner_suffix(path: Path) -> str:
    """ ".jsonl" of both "a.jsonl" and "a.jsonl.gz"."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of the file as it is stored."""
    return {"bytes": path.stat().st_size, "sha256": artefact.sha256_of(path)}


def lines(path: Path) -> Iterator[str]:
    r"""Lines with their "\n"; the last one may lack it. Only "\n" ends a line: "\r" and U+2028 are text.

    A byte-order mark at the start is dropped. Raises Refusal with the byte that is not UTF-8
    (counted in the uncompressed text).
    """
    n_before = 0
    for line in _byte_lines(chunks(path)):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refusal(f"{path}: is not UTF-8 at byte {n_before + error.start}; save it as UTF-8") from None
        yield text.removeprefix("\ufeff") if n_before == 0 else text
        n_before += len(line)


def chunks(path: Path) -> Iterator[bytes]:
    """The uncompressed bytes. Raises Refusal where a compressed file is torn."""
    try:
        with path.open("rb") as file:
            match path.suffix.lower():
                case ".gz":
                    with gzip.open(file) as unpacked:
                        yield from _pieces(unpacked)
                case ".zst":
                    yield from _unpacked_zstd(file)
                case _:
                    yield from _pieces(file)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise Refusal(f"{path}: is not a whole {path.suffix} file; fetch or compress it again") from None


def parquet_rows(path: Path, column: str) -> Iterator[Any]:
    """Values of one column, row by row."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Refusal(f"{path}: Parquet needs pyarrow; run: pip install armillary[text]") from None
    is_plain = path.suffix.lower() not in COMPRESSIONS
    try:
        # A Parquet file is read from its end, so a compressed one is unpacked in memory.
        file = pyarrow.parquet.ParquetFile(path if is_plain else io.BytesIO(b"".join(chunks(path))))
    except pyarrow.ArrowInvalid:
        raise Refusal(f"{path}: is not a whole Parquet file; fetch it again") from None
    with file:
        columns = file.schema_arrow.names
        if column not in columns:
            raise Refusal(f"{path}: no column is called '{column}'; {nearest(column, columns)} set text_field")
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield from batch.column(0).to_pylist()


def _pieces(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK_BYTES), b"")


def _unpacked_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame. zstandard's own reader takes a torn file for a whole one and stops at the first frame."""
    try:
        import zstandard
    except ImportError:
        raise Refusal(f"{file.name}: .zst needs zstandard; run: pip install armillary[text]") from None
    frame = None
    for chunk in _pieces(file):
        rest = chunk
        while rest:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(rest)
            except zstandard.ZstdError:
                raise EOFError from None
            rest = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError


def _byte_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            yield b"".join([*held, end, b"\n"])
            held = []
        held.append(rest)
    if last := b"".join(held):
        yield last
