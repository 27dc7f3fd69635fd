"""Tokenizers side by side on one text: what they cost to train, how fast they encode, how short the text becomes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from armillary import registry
from armillary.benches._found import Desk, Found, spread
from armillary.benches._synthetic import documents
from armillary.records import Rejected
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.text.sources.files import Files

ROOM = "tokens/tokenizers"
FEWEST = 10
"""Texts: one of ten is encoded."""
MADE_MEGABYTES = 5.0


class Tokenizers(Part):
    """Trained on nine documents of ten; the tenth is encoded, by all backends in turn, a round each behind one that is
    not counted, and decoded again. data: a text file or folder; where there is none, synthetic text is made. A text of
    fewer than ten documents is cut by line. megabytes: of synthetic text, 5 by default; of data only the first so many.

    backends: names of tokenizers, all by default. vocabulary: asked of those that take one; the character tokenizer
    has as many ids as the text has characters.
    """

    backends: tuple[str, ...] = ()
    data: str | None = None
    megabytes: float | None = Field(None, gt=0)
    vocabulary: int = Field(8192, ge=300)
    rounds: int = Field(3, ge=1)
    quick: ClassVar = {"megabytes": 0.05, "vocabulary": 400, "rounds": 2}

    def check(self, desk: Desk) -> None:
        self._parts()
        if self.data is not None:
            Files(path=self.data).fingerprint()

    def run(self, desk: Desk) -> Found:
        parts = self._parts()
        texts, notes = self._texts()
        train, held_out = [text for i, text in enumerate(texts) if i % 10], texts[::10]
        found: dict[str, dict[str, Any]] = {}
        seconds: dict[str, list[float]] = {name: [] for name in parts}
        with tempfile.TemporaryDirectory() as root:
            folders = {name: Path(root, name) for name in parts}
            for name, part in parts.items():
                desk.say(f"tokenizers: training {name}")
                found[name] = _fitted(part, train, held_out, folders[name])
            for _ in range(self.rounds):
                for name, part in parts.items():
                    tokenizer = part.load(folders[name])  # anew: some remember the words they have met
                    started = time.perf_counter()
                    tokenizer.encode_batch(held_out)
                    seconds[name].append(time.perf_counter() - started)
        n_characters = sum(map(len, held_out))
        rows = [{"backend": name} | _speeds(found[name], seconds[name], n_characters) for name in parts]
        characters = {"trained_on_characters": sum(map(len, train)), "encoded_characters": n_characters}
        facts = {**characters, "rows": rows, "encode_readings_seconds": seconds}
        return Found(rows, {"metrics.json": facts}, notes, is_ok=all(row["round_trips"] for row in rows))

    def _parts(self) -> dict[str, Any]:
        return {name: self._part(name) for name in self.backends or registry.names(ROOM)}

    def _part(self, name: str) -> Any:
        has = "vocabulary" in registry.find(ROOM, name).model_fields and name != "character"
        return registry.make(ROOM, name, {"vocabulary": self.vocabulary} if has else {})

    def _texts(self) -> tuple[list[str], list[str]]:
        """Documents or lines, and notes of what became of the text."""
        if self.data is None:
            texts, notes = list(documents(self.megabytes or MADE_MEGABYTES)), []
            if len(texts) < FEWEST:
                raise Refusal(f"bench tokenizers: megabytes {self.megabytes}: makes {len(texts)} documents; give more")
            return texts, notes
        rejected: list[Rejected] = []
        texts, is_cut = _first(_documents(self.data, rejected), self.megabytes)
        notes = []
        if len(texts) < FEWEST:
            notes.append(f"the text has {len(texts)} documents: it is cut by line")
            texts, is_shorter = _first((line for text in texts for line in text.split("\n") if line), self.megabytes)
            is_cut = is_cut or is_shorter
        if len(texts) < FEWEST:
            raise Refusal(
                f"bench tokenizers: data: {len(texts)} lines of text; give at least {FEWEST} lines or documents"
            )
        if is_cut:
            notes.append(f"only the first {self.megabytes:g} MB of the text were read")
        if rejected:
            first = f"{rejected[0].file}, line {rejected[0].line}: {rejected[0].reason}"
            notes.append(f"{len(rejected):,} records were rejected, the first is {first}")
        return texts, notes


def _documents(data: str, rejected: list[Rejected]) -> Iterator[str]:
    """Those with text; what is no document is put on the list."""
    for item in Files(path=data).read():
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.text:
            yield item.text


def _first(texts: Iterable[str], megabytes: float | None) -> tuple[list[str], bool]:
    """Until they hold so many millions of bytes, and whether any are left."""
    kept: list[str] = []
    n_bytes = 0
    for text in texts:
        if megabytes is not None and n_bytes >= 1e6 * megabytes:
            return kept, True
        kept.append(text)
        n_bytes += len(text.encode()) + 1
    return kept, False


def _fitted(part: Any, train: list[str], held_out: list[str], folder: Path) -> dict[str, Any]:
    """Trained, saved and tried; encoding for the first time is also the warm-up."""
    started = time.perf_counter()
    tokenizer = part.train(train)
    seconds = time.perf_counter() - started
    folder.mkdir()
    file = tokenizer.save(folder)
    ids = tokenizer.encode_batch(held_out)
    return {
        "fit_seconds": seconds,
        "n_tokens": sum(map(len, ids)),
        "n_vocab": tokenizer.n_vocab,
        "model_bytes": file.stat().st_size,
        "round_trips": [tokenizer.decode(row.tolist()) for row in ids] == held_out,
    }


def _speeds(facts: dict[str, Any], seconds: list[float], n_characters: int) -> dict[str, Any]:
    told = spread(seconds)
    return {
        "fit_seconds": facts["fit_seconds"],
        "encode_seconds": told["median"],
        "tokens_per_second": facts["n_tokens"] / told["median"],
        "characters_per_second": n_characters / told["median"],
        "characters_per_token": n_characters / facts["n_tokens"],
        "n_vocab": facts["n_vocab"],
        "model_bytes": facts["model_bytes"],
        "round_trips": facts["round_trips"],
    }
