"""A tokenizer as an artefact: trained, saved, copied into runs; the hash of its model file is checked at every load.

The SHA-256 of the model file is the tokenizer's name for all that is made with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary import artefact, registry
from armillary.contracts import SPECIAL_TOKENS, Tokenizer, TokenizerPart
from armillary.refusal import Refusal

KIND = "tokenizer"
ROOM = "tokens/tokenizers"


@dataclass(frozen=True)
class LoadedTokenizer:
    """sha256: of the model file. folder: the artefact. name and fields: of the part that trained it."""

    tokenizer: Tokenizer
    sha256: str
    folder: Path
    name: str
    fields: dict[str, Any]


def train(name: str, part: TokenizerPart, texts: Iterable[str], folder: Path, facts: dict[str, Any]) -> LoadedTokenizer:
    """Trains, writes the artefact `folder`, and loads it from there.

    name: of the part. facts: what is known of the training text, kept in the manifest. Raises Refusal where the text
    is empty or the vocabulary is smaller than the alphabet; then nothing is written.
    """
    assert isinstance(part, registry.Part)
    tokenizer = part.train(_refuse_none(texts))
    about = {
        "part": name,
        "fields": part.model_dump(mode="json"),
        "n_vocab": tokenizer.n_vocab,
        "is_lossless": tokenizer.is_lossless,
        "specials": {token: i for i, token in enumerate(SPECIAL_TOKENS)},
        "markers": tokenizer.markers,
        "trained_on": facts,
    }
    with artefact.writing(folder, KIND, about) as beside:
        file = tokenizer.save(beside)
        about |= {"model_file": file.name, "sha256": artefact.sha256_of(file)}
    return LoadedTokenizer(part.load(folder), about["sha256"], folder, name, about["fields"])


def load(folder: Path, expected_sha256: str | None = None, part_folders: Sequence[Path] = ()) -> LoadedTokenizer:
    """Opens the artefact. Raises Refusal where a file changed, or is not the one with the expected hash."""
    about, sha256 = _verified(folder)
    if expected_sha256 is not None and sha256 != expected_sha256:
        what = f"has SHA-256 {sha256[:12]}…, what was made with a tokenizer expects {expected_sha256[:12]}…"
        raise Refusal(f"{folder / about['model_file']}: {what}; give that tokenizer, or make it again with this one")
    part = registry.make(ROOM, about["part"], about["fields"], part_folders)
    return LoadedTokenizer(part.load(folder), sha256, folder, about["part"], about["fields"])


def copy(loaded: LoadedTokenizer, folder: Path) -> LoadedTokenizer:
    """The same artefact in another folder, such as a run's; whole or absent."""
    about, sha256 = _verified(loaded.folder)
    if sha256 != loaded.sha256:
        what = f"changed since it was loaded: SHA-256 {sha256[:12]}…, was {loaded.sha256[:12]}…"
        raise Refusal(f"{loaded.folder / about['model_file']}: {what}; load it again")
    if (folder / artefact.MANIFEST).is_file() and _verified(folder)[1] == sha256:
        return dataclasses.replace(loaded, folder=folder)
    with artefact.writing(folder, KIND, about) as beside:
        shutil.copytree(loaded.folder, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artefact.MANIFEST))
    return dataclasses.replace(loaded, folder=folder)


def inspect(tokenizer: Tokenizer, texts: Iterable[str], n_longest: int = 10) -> dict[str, Any]:
    """Counts over texts.

    characters_per_token and bytes_per_token are None where no token came out. vocabulary_used: share of all ids that
    occur. byte_token_share: share of tokens that spell a single byte (in byte-level BPE letters are among them; None
    where the tokenizer does not say). longest_tokens: of those that occur.
    """
    counts: Counter[int] = Counter()
    n_characters = n_bytes = 0
    for batch in _batches(texts):
        n_characters += sum(map(len, batch))
        n_bytes += sum(len(text.encode()) for text in batch)
        for ids in tokenizer.encode_batch(batch):
            counts.update(ids.tolist())
    n_tokens = counts.total()
    byte_tokens: range | None = getattr(tokenizer, "byte_tokens", None)
    longest = sorted(counts, key=lambda token: (-len(tokenizer.token_bytes(token)), token))[:n_longest]
    return {
        "n_characters": n_characters,
        "n_bytes": n_bytes,
        "n_tokens": n_tokens,
        "n_vocab": tokenizer.n_vocab,
        "is_lossless": tokenizer.is_lossless,
        "characters_per_token": n_characters / n_tokens if n_tokens else None,
        "bytes_per_token": n_bytes / n_tokens if n_tokens else None,
        "vocabulary_used": len(counts) / tokenizer.n_vocab,
        "byte_token_share": sum(counts[i] for i in byte_tokens) / max(n_tokens, 1) if byte_tokens is not None else None,
        "longest_tokens": [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in longest],
    }


def _verified(folder: Path) -> tuple[dict[str, Any], str]:
    """What the manifest says, and the hash that its model file was just found to have."""
    manifest = artefact.read(folder, KIND)
    sha256 = manifest.files[manifest.about["model_file"]]["sha256"]
    if sha256 != manifest.about["sha256"]:
        raise Refusal(f"{folder / artefact.MANIFEST}: was edited, its two hashes differ; make the tokenizer again")
    return manifest.about, sha256


def _refuse_none(texts: Iterable[str]) -> Iterator[str]:
    is_empty = True
    for text in texts:
        is_empty = is_empty and not text
        yield text
    if is_empty:
        raise Refusal("tokenizer: the training text is empty; give text to train on")


def _batches(texts: Iterable[str], n: int = 256) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(itertools.islice(texts, n)):
        yield batch
