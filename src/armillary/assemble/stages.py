"""The stages before training: text → corpus → tokenizer → packed tokens, each kept as an artefact and found again.

An artefact's name ends in a hash of everything it was made from, so a stage runs once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary import artefact, registry
from armillary.assemble import parts as parts_of
from armillary.assemble.parts import Parts, artefact_kind
from armillary.contracts import Source
from armillary.records import fingerprint
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder
from armillary.text import corpus as corpora
from armillary.text.corpus import Corpus
from armillary.tokens import tokenizer as tokenizers
from armillary.tokens.packed import Packed, open_packed
from armillary.tokens.packing import pack
from armillary.tokens.tokenizer import LoadedTokenizer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Given:
    """Artefacts to use instead of running a stage."""

    corpus: Path | None = None
    tokenizer: Path | None = None
    packed: Path | None = None


@dataclass(frozen=True)
class Prepared:
    tokenizer: LoadedTokenizer
    packed: dict[str, Packed]


def given(data: Path | None, tokenizer: Path | None) -> tuple[Path | None, Given]:
    """Splits `--data` into text (returned) and an artefact (a corpus or a packed set)."""
    kind = artefact_kind(data) if data is not None else None
    if kind not in (None, "corpus", "packed"):
        fix = "give it as --tokenizer" if kind == "tokenizer" else "give a text, a corpus or packed tokens"
        raise Refusal(f"--data {data}: is a {kind}; {fix}")
    return (
        data if kind is None else None,
        Given(
            corpus=data if kind == "corpus" else None,
            tokenizer=tokenizer,
            packed=data if kind == "packed" else None,
        ),
    )


def refuse_absent(parts: Parts, use: Given, *, needs_text: bool) -> None:
    """Raises Refusal before any stage runs where an artefact given is none, or a source cannot find its text."""
    for path, kind in ((use.corpus, "corpus"), (use.tokenizer, "tokenizer"), (use.packed, "packed")):
        if path is not None:
            artefact.read(path, kind, verify=False)
    if needs_text and use.corpus is None and use.packed is None:
        for source in parts.sources.values():
            source.fingerprint()


def prepare(parts: Parts, root: Path, say: Say, use: Given | None = None) -> Prepared:
    """Runs the missing stages under ROOT/artefacts and opens what they made."""
    use = use or Given()
    if use.packed is not None:
        return _from_packed(parts, use, root)
    made = build_corpora(parts, root, say, use)
    loaded = build_tokenizer(parts, root, say, use, list(made.values()))
    return Prepared(loaded, {name: pack_corpus(parts, root, say, c, loaded) for name, c in made.items()})


def reopen(run: RunFolder, parts: Parts, root: Path) -> Prepared:
    """The artefacts a run was trained on. Raises Refusal where one is gone or changed."""
    facts = run.facts()
    if "packed" not in facts:
        raise Refusal(f"{run.path}: its run.json is gone; restore it, or give --name for a new run")
    loaded = tokenizers.load(run.tokenizer, facts["tokenizer"]["sha256"], parts.folders)
    packed = {}
    for name, where in facts["packed"].items():
        beside = root / "artefacts" / "packed" / Path(where).name
        folder = next((f for f in (Path(where), beside) if f.is_dir()), None)
        if folder is None:
            raise Refusal(f"{where}: the packed tokens of run '{run.name}' are gone; make them again, with --data")
        packed[name] = open_packed(folder, loaded.sha256)
    return Prepared(loaded, packed)


def other_text(run: RunFolder, parts: Parts, data: Path, root: Path, say: Say) -> Packed:
    """Another text packed as the run's own was, with the run's tokenizer: to measure a model away from home."""
    loaded = tokenizers.load(run.tokenizer, part_folders=parts.folders)
    text, use = given(data, None)
    if use.packed is not None:
        return open_packed(use.packed, loaded.sha256)
    if use.corpus is not None:
        return pack_corpus(parts, root, say, corpora.open_corpus(use.corpus), loaded)
    assert text is not None
    own = next(iter(parts.recipe.corpora.values()))
    source = parts_of.source_of(text, own.source.model_dump(), parts.recipe.parts)
    name = source.pop("name")
    part = registry.make("text/sources", name, source, parts.folders)
    corpus = build_corpus(name, part, own.validation_fraction, root, say)
    return pack_corpus(parts, root, say, corpus, loaded)


def build_corpora(parts: Parts, root: Path, say: Say, use: Given) -> dict[str, Corpus]:
    if use.corpus is not None:
        if len(parts.sources) != 1:
            raise Refusal(f"--data {use.corpus}: one corpus is given, the recipe has {len(parts.sources)}")
        return {next(iter(parts.sources)): corpora.open_corpus(use.corpus)}
    specs = parts.recipe.corpora
    return {
        name: build_corpus(specs[name].source.name, source, specs[name].validation_fraction, root, say)
        for name, source in parts.sources.items()
    }


def build_corpus(source_name: str, source: Source, validation_fraction: float, root: Path, say: Say) -> Corpus:
    corpus = corpora.build(_label(source_name, source), source, validation_fraction, root / "artefacts", say)
    facts = [f"{split} {corpus.facts(split).n_bytes:,} bytes" for split in corpus.splits]
    say(f"corpus {corpus.folder.name} ({source_name}): {', '.join(facts)}")
    return corpus


def build_tokenizer(parts: Parts, root: Path, say: Say, use: Given, made: Sequence[Corpus]) -> LoadedTokenizer:
    """Trained on the training splits of all corpora, or the one given."""
    if use.tokenizer is not None:
        return tokenizers.load(use.tokenizer, part_folders=parts.folders)
    choice = parts.recipe.tokenizer
    facts = {"text_sha256": [corpus.facts("train").text_sha256 for corpus in made]}
    hash8 = fingerprint({"part": choice.name, "fields": parts.tokenizer.model_dump(mode="json"), **facts})[:8]  # type: ignore[attr-defined]
    folder = root / "artefacts" / "tokenizers" / f"{choice.name}-{hash8}"
    if (folder / artefact.MANIFEST).is_file():
        loaded = tokenizers.load(folder, part_folders=parts.folders)
    else:
        say(f"training the {choice.name} tokenizer")
        loaded = tokenizers.train(choice.name, parts.tokenizer, _train_texts(made), folder, facts)
    say(f"tokenizer {folder.name}: {loaded.tokenizer.n_vocab:,} entries")
    return loaded


def pack_corpus(parts: Parts, root: Path, say: Say, corpus: Corpus, loaded: LoadedTokenizer) -> Packed:
    packing = parts.recipe.packing
    about = {"corpus": corpus.fingerprint, "tokenizer": loaded.sha256, "packing": packing.model_dump(mode="json")}
    label = f"{corpus.name}-{loaded.name}-{fingerprint(about)[:8]}"
    folder = root / "artefacts" / "packed" / label
    if (folder / artefact.MANIFEST).is_file():
        packed = open_packed(folder, loaded.sha256)
    else:
        say(f"packing {corpus.name}")
        packed = pack(corpus, loaded.tokenizer, loaded.sha256, packing, folder)
    facts = [f"{split} {packed.about['splits'][split]['n_tokens']:,} tokens" for split in packed.splits]
    say(f"packed {folder.name}: {', '.join(facts)}")
    return packed


def _from_packed(parts: Parts, use: Given, root: Path) -> Prepared:
    assert use.packed is not None
    manifest = artefact.read(use.packed, "packed")
    wanted = manifest.about["tokenizer_sha256"]
    folder = use.tokenizer or _tokenizer_with(wanted, root)
    loaded = tokenizers.load(folder, expected_sha256=wanted, part_folders=parts.folders)
    if len(parts.recipe.corpora) != 1:
        raise Refusal(
            f"--data {use.packed}: one packed set is given, the recipe has {len(parts.recipe.corpora)} corpora"
        )
    for key, asked in parts.recipe.packing.model_dump().items():
        has = manifest.about["packing"][key]
        if has != asked:
            raise Refusal(f"{use.packed}: packing.{key} is {has}, the recipe's {asked}; set it to {has} or pack again")
    return Prepared(loaded, {next(iter(parts.recipe.corpora)): open_packed(use.packed, loaded.sha256)})


def _tokenizer_with(sha256: str, root: Path) -> Path:
    for path in sorted((root / "artefacts" / "tokenizers").glob("*/" + artefact.MANIFEST)):
        if artefact.read(path.parent, verify=False).about.get("sha256") == sha256:
            return path.parent
    raise Refusal(
        f"no tokenizer under {root / 'artefacts' / 'tokenizers'} has SHA-256 {sha256[:12]}…; give --tokenizer"
    )


def _train_texts(made: Sequence[Corpus]) -> Iterator[str]:
    for corpus in made:
        yield from corpus.documents("train")


def _label(source_name: str, source: Any) -> str:
    """A name a person recognises: the text's file or folder, else the source's name."""
    path = getattr(source, "path", None)
    stem = Path(path).resolve().name.split(".")[0] if isinstance(path, str) else source_name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or source_name
