"""The corpus artefact: documents in splits as gzipped JSON lines, equal bytes for equal input.

    artefacts/corpora/NAME-HASH8/  manifest.json  train-00000.jsonl.gz ...  quarantine.jsonl (where records were bad)

Accounting: with boundary "newline" the newline that ends each document is text: it counts one byte, one character and
one word (WikiText's convention). With "end_of_text" an end has no bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from armillary import artefact, records
from armillary.records import Rejected
from armillary.refusal import ArmillaryWarning, Refusal, nearest
from armillary.registry import Part
from armillary.text import splitting

if TYPE_CHECKING:
    from armillary.contracts import Source  # contracts imports torch, this room does not

Boundary: TypeAlias = Literal["newline", "end_of_text"]

SPLITS = ("train", "validation", "test")
FORMAT = 1
SHARD_BYTES = 64 * 2**20
GZIP_LEVEL = 3  # twice as fast as 6, for 5 % more disk


def n_words(text: str, boundary: Boundary) -> int:
    """Whitespace-separated words and line ends of one document."""
    return len(text.split()) + text.count("\n") + (boundary == "newline")


def n_bytes(text: str, boundary: Boundary) -> int:
    """UTF-8 bytes of one document."""
    return len(text.encode()) + (boundary == "newline")


@dataclass(frozen=True)
class SplitFacts:
    """Sums over a split's documents. text_sha256: of each document's bytes followed by its end: a newline, or 0x00."""

    n_documents: int
    n_bytes: int
    n_words: int
    n_characters: int
    text_sha256: str


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. about: the manifest's facts (name, boundary, split_rule, source, n_rejected, splits)."""

    folder: Path
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def boundary(self) -> Boundary:
        return self.about["boundary"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those it has, in the order train, validation, test."""
        return tuple(split for split in SPLITS if split in self.about["splits"])

    @property
    def fingerprint(self) -> str:
        """Of what can be scored: the boundary and the text of every split, wherever it came from."""
        text = {split: self.facts(split).text_sha256 for split in self.splits}
        return records.fingerprint({"boundary": self.boundary, "text_sha256": text})

    def facts(self, split: str) -> SplitFacts:
        about = self._split(split)
        return SplitFacts(**{name: about[name] for name in SplitFacts.__dataclass_fields__})

    def documents(self, split: str) -> Iterator[str]:
        for shard in self._split(split)["shards"]:
            with gzip.open(self.folder / shard) as lines:
                yield from (json.loads(line)["text"] for line in lines)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.about["splits"]:
            raise Refusal(f"corpus '{self.name}': has no split '{split}'; {nearest(split, self.splits)}")
        return self.about["splits"][split]


def open_corpus(folder: Path) -> Corpus:
    """Raises Refusal where a file differs from its manifest."""
    about = artefact.read(folder, "corpus").about
    if about.get("format") != FORMAT:
        raise Refusal(f"{folder}: has format {about.get('format')}, this version reads {FORMAT}; build it again")
    return Corpus(folder, about)


def build(
    name: str,
    source: Source,
    validation_fraction: float,
    artefacts: Path,
    progress: Callable[[str], None] | None = None,
) -> Corpus:
    """The corpus of a source, under ARTEFACTS/corpora. One that is there already, and whole, is taken as it is.

    Documents without a split belong to train. Where the source brings no validation split, `validation_fraction` of
    train becomes one (see splitting). A source may yield `Rejected` beside documents: they are counted and listed in
    quarantine.jsonl. Filters, de-duplication and budgets of later storeys stand between `source.read()` and the
    writing, inside `_gather`; what configures them belongs into `made_from`, and so into the folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise Refusal(f"corpus '{name}': the name becomes a folder; use letters, digits, dot, dash and underscore")
    if not 0 <= validation_fraction < 1:
        raise Refusal(f"corpus '{name}': validation_fraction is {validation_fraction}; give one from 0 to below 1")
    made_from = {"part": _part_name(source), "fields": _fields(source), "fingerprint": source.fingerprint()}
    about = {"source": made_from, "validation_fraction": validation_fraction, "format": FORMAT}
    folder = artefacts / "corpora" / f"{name}-{records.fingerprint(about)[:8]}"
    if folder.exists():
        try:
            return open_corpus(folder)
        except Refusal as fault:
            warnings.warn(f"{fault}: it is made again now", ArmillaryWarning, stacklevel=2)
    about |= {"name": name, "boundary": source.boundary}
    with artefact.writing(folder, "corpus", about) as beside:
        _fill(beside, source, about, progress or (lambda message: None))
    if about["n_rejected"]:
        message = f"corpus '{name}': {about['n_rejected']:,} records were rejected; see {folder / 'quarantine.jsonl'}"
        warnings.warn(message, ArmillaryWarning, stacklevel=2)
    if validation_fraction and "validation" not in about["splits"]:
        message = f"corpus '{name}': its one document is too short to be cut, so it has no validation split"
        warnings.warn(message, ArmillaryWarning, stacklevel=2)
    return open_corpus(folder)


def inspect(corpus: Corpus) -> dict[str, Any]:
    """Plain data for a person to look at: per split the sums, lengths of documents and how the first ones begin."""
    splits = {}
    for split in corpus.splits:
        lengths, openings = [], []
        for text in corpus.documents(split):
            lengths.append(len(text))
            if len(openings) < 3 and text.strip():
                openings.append(text[:200])
        lengths.sort()
        splits[split] = asdict(corpus.facts(split)) | {
            "p50_characters": lengths[(len(lengths) - 1) // 2],
            "p90_characters": lengths[(len(lengths) - 1) * 9 // 10],
            "openings": openings,
        }
    known = ("name", "boundary", "split_rule", "n_rejected", "source")
    return {key: corpus.about[key] for key in known} | {"fingerprint": corpus.fingerprint, "splits": splits}


def _part_name(source: Source) -> str:
    # The module of a part from outside the package is called "armillary_parts.text.sources.NAME:PATH".
    return type(source).__module__.partition(":")[0].rpartition(".")[2]


def _fields(source: Source) -> dict[str, Any]:
    """Without fields that only say where the text lies: those are declared with exclude=True."""
    return source.model_dump(mode="json") if isinstance(source, Part) else {}


def _fill(folder: Path, source: Source, about: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Writes all shards and completes `about`. The source is read once; memory stays flat."""
    fraction, boundary = about["validation_fraction"], about["boundary"]
    waiting = folder / "waiting.jsonl"
    with contextlib.ExitStack() as stack:
        writers: dict[str, _SplitWriter] = {}

        def write(split: str, text: str) -> None:
            if split not in writers:
                writers[split] = stack.enter_context(contextlib.closing(_SplitWriter(folder, split, boundary, tell)))
            writers[split].add(text)

        # Training text waits on disk until it is known whether the source brings validation text of its own.
        tally = _gather(source, about, waiting, folder / "quarantine.jsonl", write)
        with waiting.open(encoding="utf-8") as lines:
            texts = (json.loads(line) for line in lines)
            if "validation" in writers:
                rule, divided = "own", (("train", text) for text in texts)
            else:
                rule, divided = splitting.divide(
                    texts, tally.n_waiting, tally.n_chosen, fraction, can_cut=boundary == "end_of_text"
                )
            for split, text in divided:
                write(split, text)
    waiting.unlink()
    if not ("train" in writers and writers["train"].has_text):
        raise Refusal(f"corpus '{about['name']}': has no text to train on; {tally.hint}")
    about |= {
        "split_rule": rule,
        "n_rejected": tally.n_rejected,
        "splits": {split: writers[split].about() for split in SPLITS if split in writers},
    }


@dataclass
class _Tally:
    """What reading a source once has found. n_waiting: documents for training; n_chosen: of them, by hash."""

    n_waiting: int = 0
    n_chosen: int = 0
    n_rejected: int = 0
    hint: str = "give a source with some"


def _gather(
    source: Source, about: dict[str, Any], waiting: Path, quarantine: Path, write: Callable[[str, str], None]
) -> _Tally:
    tally = _Tally()
    with waiting.open("w", encoding="utf-8") as train, quarantine.open("w", encoding="utf-8") as bad:
        for item in source.read():
            if isinstance(item, Rejected):
                if not tally.n_rejected:
                    tally.hint = f"the first rejected record is {item.file}, line {item.line}: {item.reason}"
                tally.n_rejected += 1
                bad.write(json.dumps(asdict(item)) + "\n")
                continue
            split = _checked_split(item, about["name"], about["boundary"])
            if split != "train":
                write(split, item.text)
                continue
            train.write(json.dumps(item.text) + "\n")
            tally.n_waiting += 1
            tally.n_chosen += splitting.is_chosen(item.text, about["validation_fraction"])
    if not tally.n_rejected:
        quarantine.unlink()
    return tally


def _checked_split(document: records.Document, name: str, boundary: Boundary) -> str:
    opening = repr(document.text[:40])
    if boundary == "newline" and "\n" in document.text:
        raise Refusal(f"corpus '{name}': a document of one line holds a newline: {opening}; mend its source")
    try:
        document.text.encode()
    except UnicodeEncodeError:
        raise Refusal(f"corpus '{name}': a document holds half a surrogate pair: {opening}; mend its source") from None
    split = document.split or "train"
    if split not in SPLITS:
        raise Refusal(f"corpus '{name}': its source brings a split '{split}'; {nearest(split, SPLITS)}")
    return split


class _SplitWriter:
    """Shards of one split, and the sums over it."""

    def __init__(self, folder: Path, split: str, boundary: Boundary, tell: Callable[[str], None]):
        self._folder, self._split, self._tell = folder, split, tell
        self._boundary: Boundary = boundary
        self._end = b"\n" if boundary == "newline" else b"\0"
        self._digest = hashlib.sha256()
        self._shards: list[str] = []
        self._file: gzip.GzipFile | None = None
        self._n_shard_bytes = 0
        self._sums = {"n_documents": 0, "n_bytes": 0, "n_words": 0, "n_characters": 0}
        self.has_text = False

    def add(self, text: str) -> None:
        if self._file is None or self._n_shard_bytes >= SHARD_BYTES:
            self._next_shard()
        data = text.encode()
        self._digest.update(data + self._end)
        self._sums["n_documents"] += 1
        self._sums["n_bytes"] += n_bytes(text, self._boundary)
        self._sums["n_words"] += n_words(text, self._boundary)
        self._sums["n_characters"] += len(text) + (self._boundary == "newline")
        self._n_shard_bytes += len(data)
        self.has_text = self.has_text or bool(text.strip())
        assert self._file is not None
        self._file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def about(self) -> dict[str, Any]:
        return self._sums | {"text_sha256": self._digest.hexdigest(), "shards": self._shards}

    def _next_shard(self) -> None:
        self.close()
        shard = f"{self._split}-{len(self._shards):05d}.jsonl.gz"
        if self._shards:
            self._tell(f"writing {shard}, after {self._sums['n_documents']:,} documents")
        self._shards.append(shard)
        self._n_shard_bytes = 0
        self._file = gzip.GzipFile(
            self._folder / shard, "wb", compresslevel=GZIP_LEVEL, mtime=0
        )  # no time in the bytes
