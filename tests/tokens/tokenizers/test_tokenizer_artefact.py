"""A tokenizer on disk: its hash is checked at every load, and a copy is the same artefact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armillary import artefact
from armillary.refusal import Refusal
from armillary.tokens import tokenizer as tokenizers
from armillary.tokens.tokenizers.bpe import Bpe
from armillary.tokens.tokenizers.character import Character
from armillary.tokens.tokenizers.word import Word

TEXTS = ["the ring turns inside the ring", "the sphere <eos>", ""]
FACTS = {"corpus": "abc", "split": "train"}


@pytest.fixture
def made(tmp_path) -> tokenizers.LoadedTokenizer:
    part = Bpe(vocabulary=266, markers=("<|im_end|>",))
    return tokenizers.train("bpe", part, iter(TEXTS), tmp_path / "bpe-1", FACTS)


def test_the_manifest_says_what_it_is(made):
    about = artefact.read(made.folder, "tokenizer").about
    assert about == {
        "part": "bpe",
        "fields": {"vocabulary": 266, "min_frequency": 2, "markers": ["<|im_end|>"]},
        "n_vocab": 266,
        "is_lossless": True,
        "specials": {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3},
        "markers": {"<|im_end|>": 265},
        "model_file": "tokenizer.json",
        "sha256": artefact.sha256_of(made.folder / "tokenizer.json"),
        "trained_on": FACTS,
    }
    assert (made.sha256, made.name, made.fields) == (about["sha256"], "bpe", about["fields"])


def test_loading_gives_the_same_ids(made):
    again = tokenizers.load(made.folder, made.sha256)
    assert again.tokenizer is not made.tokenizer
    assert (again.sha256, again.fields, again.name) == (made.sha256, made.fields, made.name)
    assert again.tokenizer.encode("the <eos> ring<|im_end|>") == made.tokenizer.encode("the <eos> ring<|im_end|>")


def test_training_twice_gives_the_same_artefact(made, tmp_path):
    part = Bpe(vocabulary=266, markers=("<|im_end|>",))
    again = tokenizers.train("bpe", part, TEXTS, tmp_path / "other", FACTS)
    for name in ("tokenizer.json", artefact.MANIFEST):
        assert (again.folder / name).read_bytes() == (made.folder / name).read_bytes()


def test_a_tampered_model_file_is_refused(made):
    file = made.folder / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"<eos>", b"<eoS>"))
    with pytest.raises(Refusal, match=r"tokenizer\.json.*SHA-256"):
        tokenizers.load(made.folder)
    with pytest.raises(Refusal, match=r"tokenizer\.json"):
        tokenizers.copy(made, made.folder.parent / "run")
    assert not (made.folder.parent / "run").exists()


def test_an_edited_hash_is_refused(made):
    path = made.folder / artefact.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["about"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(Refusal, match="edited"):
        tokenizers.load(made.folder)


def test_another_tokenizer_is_refused_with_both_hashes(made):
    with pytest.raises(Refusal) as refused:
        tokenizers.load(made.folder, "f" * 64)
    assert made.sha256[:12] in str(refused.value) and "f" * 12 in str(refused.value)
    assert str(made.folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_copy_is_the_same_artefact(made, tmp_path):
    copied = tokenizers.copy(made, tmp_path / "runs" / "one" / "tokenizer")
    assert copied.folder == tmp_path / "runs" / "one" / "tokenizer"
    assert sorted(p.name for p in copied.folder.iterdir()) == [artefact.MANIFEST, "tokenizer.json"]
    assert (copied.folder / artefact.MANIFEST).read_bytes() == (made.folder / artefact.MANIFEST).read_bytes()
    assert tokenizers.load(copied.folder, made.sha256).sha256 == made.sha256


def test_a_copy_of_what_changed_since_is_refused(made, tmp_path):
    tokenizers.train("bpe", Bpe(vocabulary=263), TEXTS, made.folder, FACTS)
    with pytest.raises(Refusal, match="changed since it was loaded"):
        tokenizers.copy(made, tmp_path / "run")


@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.parametrize("part", [Bpe(), Character(), Word()])
def test_empty_training_text_is_refused_and_leaves_nothing(texts, part, tmp_path):
    with pytest.raises(Refusal, match="empty"):
        tokenizers.train("any", part, texts, tmp_path / "one", {})
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_from_outside_the_package_loads_through_its_folder(tmp_path: Path):
    room = tmp_path / "parts" / "tokens" / "tokenizers"
    room.mkdir(parents=True)
    source = Path(tokenizers.__file__).with_name("tokenizers") / "character.py"
    (room / "letters.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    tokenizers.train("letters", Character(), TEXTS, tmp_path / "one", {})
    with pytest.raises(Refusal, match="letters"):
        tokenizers.load(tmp_path / "one")
    loaded = tokenizers.load(tmp_path / "one", part_folders=[tmp_path / "parts"])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the ring ö")) == "the ring ö"


def test_inspect_counts_what_it_says():
    tokenizer = Word(vocabulary=2, markers=("<|im_end|>",)).train(["ring ring ring the the é"])
    seen = tokenizers.inspect(tokenizer, iter(["ring the é", " ring"]))
    # units: "ring" (one use in training: spelled), " the", " é" (spelled in 3 bytes), " ring"
    assert seen["n_characters"] == 15 and seen["n_bytes"] == 16
    assert seen["n_tokens"] == 4 + 1 + 3 + 1
    assert seen["characters_per_token"] == 15 / 9 and seen["bytes_per_token"] == 16 / 9
    assert seen["byte_token_share"] == 7 / 9
    assert seen["vocabulary_used"] == 9 / tokenizer.n_vocab
    assert seen["longest_tokens"][:2] == [" ring", " the"]


def test_inspect_of_nothing():
    seen = tokenizers.inspect(Character().train(["ab"]), [])
    assert seen["n_tokens"] == 0 and seen["characters_per_token"] is None and seen["longest_tokens"] == []
