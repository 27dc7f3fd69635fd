"""Every tokenizer: round trips, specials that text never reaches, batches, saving, and small vocabularies."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary import contracts, registry
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.tokens.tokenizers.bpe import Bpe

ROOM = "tokens/tokenizers"
MARKERS = ("<|im_start|>", "<|im_end|>")
SENTENCES = [
    " the sphere turns inside the ring , and the ring turns inside the sphere .",
    "The <unk> of the armillary sphere, it's said, don't turn.\n\nWhat turns? <eos> <|im_start|> 1234 times\n",
    "A ring is a model of the heavens: small enough to hold, café naïve über.",
    " = Rings and spheres = \n",
    "Turning\tand \x00 turning \u2581 in\u2585 \U0001f30d <pad> <bos> <unk> <unk> <0x41> [INST]",
]
TEXTS = [f"{a}{b}" for a, b in itertools.product(SENTENCES, SENTENCES)]
PARTS = {
    "bpe": ("bpe", {"vocabulary": 330}),
    "unigram": ("sentencepiece", {"vocabulary": 330}),
    "sentencepiece-bpe": ("sentencepiece", {"vocabulary": 330, "model_type": "bpe"}),
    "character": ("character", {}),
    "few-characters": ("character", {"vocabulary": 6}),
    "word": ("word", {"vocabulary": 40}),
    "closed-words": ("word", {"vocabulary": 40, "unknown": "unk"}),
}
LOSSLESS = [name for name in PARTS if name != "closed-words"]
HARD = [
    *("", " ", "  ", "\n", "\r\n", "\n\n a \n", "\t", "\x00", "\x00\x00 a\x00", "\ufeffa", "a\x1c\x1d b\x85c\u3000d"),
    *(
        "\u2581",
        " \u2581 \u2581\u2581a",
        "\u2585",
        "<0xE2><0x96>",
        "e\u0301 \u0301",
        "\U0001f468\u200d\U0001f469",
        "\ufffd",
    ),
    *("  two  spaces  ", "\u00a0 x", "Ġthe Ċ", "it's  they'll\n 's", "\U0010ffff\ue000", "中文 한국어 العربية"),
]
SPECIAL_LOOKING = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    " <unk> ",
    *MARKERS,
    "<0x41>",
    "\u2581",
    " ",
    "\n",
    "<",
    "|>",
    "é",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TEXT = ANY_TEXT | st.lists(st.sampled_from(SPECIAL_LOOKING) | ANY_TEXT).map("".join)


def part(name: str, **fields: object) -> contracts.TokenizerPart:
    file, own = PARTS[name]
    return registry.make(ROOM, file, {"markers": MARKERS} | own | fields)


@pytest.fixture(scope="module")
def trained() -> dict[str, contracts.Tokenizer]:
    return {name: part(name).train(TEXTS) for name in PARTS}


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory) -> dict[str, contracts.Tokenizer]:
    """As a fresh process sees them."""
    again = {}
    for name, tokenizer in trained.items():
        folder = tmp_path_factory.mktemp(name)
        assert tokenizer.save(folder).parent == folder
        again[name] = part(name).load(folder)
    return again


def forbidden(tokenizer: contracts.Tokenizer) -> set[int]:
    return {0, 1, 2, 3, *tokenizer.markers.values()}


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_any_text_round_trips_and_never_reaches_a_special(loaded, name, texts):
    tokenizer = loaded[name]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids.tolist()
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert not forbidden(tokenizer) & set(ids.tolist())


@pytest.mark.parametrize("name", LOSSLESS)
def test_hard_texts_round_trip(trained, loaded, name):
    texts = [*HARD, *SPECIAL_LOOKING, *TEXTS]
    batch = loaded[name].encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        assert loaded[name].decode(ids) == text
        assert not forbidden(loaded[name]) & set(ids.tolist())
        assert trained[name].encode(text) == ids.tolist()


@pytest.mark.parametrize("name", PARTS)
def test_ids_are_laid_out_as_promised(loaded, name):
    tokenizer = loaded[name]
    assert isinstance(tokenizer, contracts.Tokenizer)
    assert tokenizer.is_lossless == (name != "closed-words")
    n = tokenizer.n_vocab
    assert tokenizer.markers == {MARKERS[0]: n - 2, MARKERS[1]: n - 1}
    assert all(tokenizer.token_bytes(i) == b"" for i in forbidden(tokenizer))
    assert all(tokenizer.token_bytes(i) for i in range(n) if i not in forbidden(tokenizer))
    ids = tokenizer.encode("the ring")
    assert tokenizer.decode([contracts.BOS, *ids, contracts.EOS, contracts.PAD, n - 1]) == "the ring"
    with pytest.raises(IndexError):
        tokenizer.decode([n])


@pytest.mark.parametrize("name", ["bpe", "unigram", "sentencepiece-bpe"])
def test_vocabulary_counts_every_id(trained, name):
    assert trained[name].n_vocab == 330


@pytest.mark.parametrize("name", PARTS)
def test_training_twice_gives_equal_bytes(trained, name, tmp_path):
    first = trained[name].save(tmp_path).read_bytes()
    assert part(name).train(iter(TEXTS)).save(tmp_path).read_bytes() == first


@pytest.mark.parametrize("name", PARTS)
def test_a_lone_surrogate_is_refused(trained, name):
    with pytest.raises(Refusal, match=r"character 3 is the lone surrogate U\+D800"):
        trained[name].encode_batch(["fine", "abc\ud800"])
    with pytest.raises(Refusal, match="lone surrogate"):
        part(name).train(["fine", "abc\ud800"])


@pytest.mark.parametrize("name", PARTS)
def test_what_goes_wrong_in_the_texts_comes_through(name):
    def texts():
        yield "some text"
        raise Refusal("line 7: is not JSON; remove that line")

    with pytest.raises(Refusal, match="line 7"):
        part(name).train(texts())


@pytest.mark.parametrize("name", PARTS)
def test_other_markers_are_refused_at_load(trained, name, tmp_path):
    trained[name].save(tmp_path)
    with pytest.raises(Refusal, match="markers"):
        part(name, markers=MARKERS[::-1]).load(tmp_path)
    with pytest.raises(Refusal, match="markers"):
        part(name, markers=()).load(tmp_path)


@pytest.mark.parametrize("markers", [("<eos>",), ("a", "a"), ("",)])
def test_impossible_markers_are_refused(markers):
    with pytest.raises(Refusal, match="markers must differ"):
        registry.make(ROOM, "bpe", {"markers": markers})


@pytest.mark.parametrize(
    ("name", "marker"), [("bpe", "e"), ("unigram", "t"), ("unigram", "<0x41>"), ("sentencepiece-bpe", "t")]
)
def test_a_marker_that_text_makes_is_refused(name, marker):
    with pytest.raises(Refusal, match="marker"):
        part(name, markers=(marker,), vocabulary=320).train(TEXTS)


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [("bpe", 5), ("bpe", 261), ("unigram", 5), ("unigram", 270), ("sentencepiece-bpe", 5), ("sentencepiece-bpe", 270)],
)
def test_a_vocabulary_below_the_alphabet_is_refused_with_the_least(name, vocabulary):
    with pytest.raises(Refusal, match=r"smaller than the alphabet; give at least \d+$") as refused:
        part(name, vocabulary=vocabulary).train(TEXTS)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    assert least > vocabulary
    if name == "bpe" or vocabulary > 5:  # with 5, only the bytes are counted: the characters of the text are not known
        assert part(name, vocabulary=least).train(TEXTS).n_vocab == least
        with pytest.raises(Refusal, match=f"at least {least}"):
            part(name, vocabulary=least - 1).train(TEXTS)


@pytest.mark.parametrize("name", ["bpe", "unigram", "sentencepiece-bpe"])
def test_text_too_small_for_the_vocabulary_warns_with_both_numbers(name):
    with pytest.warns(ArmillaryWarning, match=r"gives \d+ tokens, vocabulary asks for 9,000"):
        tokenizer = part(name, vocabulary=9000).train(["a small text, a small ring"])
    assert tokenizer.decode(tokenizer.encode("anything <eos>")) == "anything <eos>"


@pytest.mark.parametrize("name", ["unigram", "sentencepiece-bpe"])
def test_sentencepiece_refuses_text_without_text(name):
    with pytest.raises(Refusal, match="empty"):
        part(name).train(["", "\n"])


@settings(max_examples=200, deadline=None)
@given(text=TEXT | st.text(" \n\t\r\x1c\x85\xa0\u3000a1,'s", max_size=30))
def test_bpe_in_units_equals_bpe_in_one_call(loaded, text):
    tokenizer = loaded["bpe"]
    assert tokenizer.encode(text) == tokenizer._rust.encode(text, add_special_tokens=False).ids


@pytest.mark.filterwarnings("ignore::armillary.refusal.ArmillaryWarning")
@pytest.mark.parametrize("white", [chr(c) for c in range(0x110000) if chr(c).isspace()])
def test_bpe_cuts_units_only_where_its_pattern_does(white):
    text = f"!{white}" * 9
    rust = (tokenizer := Bpe(vocabulary=261, min_frequency=1).train([text]))._rust
    assert tokenizer.encode(text) == rust.encode(text, add_special_tokens=False).ids


def test_bpe_remembers_a_bounded_number_of_units(trained, monkeypatch):
    monkeypatch.setattr("armillary.tokens.tokenizers.bpe.MOST_KNOWN", 3)
    tokenizer = trained["bpe"]
    for _ in range(3):
        assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
        assert tokenizer.decode(tokenizer.encode("ring")) == "ring"
    assert len(tokenizer._known) < 40


def test_bpe_takes_the_frequency_it_is_given():
    assert Bpe(vocabulary=261, min_frequency=3).train(["abab", "ab"]).token_bytes(260) == b"ab"
    with pytest.warns(ArmillaryWarning):
        assert Bpe(vocabulary=262, min_frequency=4).train(["abab", "ab"]).n_vocab == 260


@pytest.mark.filterwarnings("ignore::armillary.refusal.ArmillaryWarning")
def test_sentencepiece_keeps_a_newline_as_one_token_and_trains_beside_its_own_signs(loaded):
    for name in ("unigram", "sentencepiece-bpe"):
        tokenizer = loaded[name]
        assert len(tokenizer.encode("\n\n")) == 2
        assert len(tokenizer.encode("\u2581")) == 3
        # "turning" and "in" occur only in the line with NUL, U+2581 and U+2585, which the trainer alone would drop
        alone = part(name, vocabulary=300, markers=()).train([SENTENCES[4]] * 20)
        assert len(alone.encode(" turning")) < 8


@pytest.mark.filterwarnings("ignore::armillary.refusal.ArmillaryWarning")
def test_sentencepiece_drops_no_long_line():
    line = "ring " * 5000 + "x" * 9000
    tokenizer = part("unigram", vocabulary=275).train([line])
    assert len(tokenizer.encode(" ring ring ring")) <= 6


def test_unigram_learns_words_that_a_space_always_follows(data: Path):
    with gzip.open(data / "wikitext-2" / "wiki.valid.tokens.gz", "rt", encoding="utf-8", newline="\n") as file:
        lines = file.read().split("\n")[:1000]
    tokenizer = part("unigram", vocabulary=2000).train(lines)
    assert [len(tokenizer.encode(word)) for word in (" and", " @-@", " which")] == [1, 1, 1]


def test_characters_are_ranked_by_frequency(trained):
    few = part("few-characters", vocabulary=2).train(["bbbaac"])
    assert few.encode("abc") == [261, 260, 4 + ord("c")]
    assert few.n_vocab == 4 + 256 + 2 + 2
    assert len(trained["character"].encode(TEXTS[0])) == len(TEXTS[0])


def test_words_are_ranked_by_frequency_then_string_order():
    tokenizer = part("closed-words", vocabulary=2, markers=()).train(["b c a b c", "b\n<unk> <unk>  <unk> <unk>"])
    assert [tokenizer.token_bytes(i) for i in range(4, tokenizer.n_vocab)] == [b" b", b" c"]
    open_words = part("word", vocabulary=3, markers=()).train(["x a x b", "x a\nx"])
    assert [open_words.token_bytes(i) for i in range(260, 263)] == [b"x", b" a", b" b"]
    assert open_words.encode("x a\nb") == [260, 261, 14, 4 + ord("b")]


def test_closed_words_know_nothing_else(loaded):
    tokenizer = loaded["closed-words"]
    assert tokenizer.encode(" the  <unk>\n<eos> <|im_start|> zebra the") == [
        *tokenizer.encode("the"),
        *[contracts.UNK] * 4,
        *tokenizer.encode("the"),
    ]
    assert tokenizer.decode(tokenizer.encode("\n the  ring\n turns ")) == "the ring turns"
    assert tokenizer.encode_batch(["the ring", ""])[1].shape == (0,)


def test_closed_words_of_reserved_spelling_are_never_learnt():
    tokenizer = part("closed-words").train(["<unk> <eos> <|im_end|> ring " * 9])
    assert tokenizer.n_vocab == 4 + 1 + 2
    assert tokenizer.encode("<eos> <|im_end|> ring") == [3, 3, 4]


def test_a_words_file_of_the_other_kind_is_refused(trained, tmp_path):
    trained["word"].save(tmp_path)
    with pytest.raises(Refusal, match="unknown: bytes"):
        part("closed-words").load(tmp_path)


def test_wikitext_words_are_its_official_count(data: Path):
    with gzip.open(data / "wikitext-2" / "wiki.test.tokens.gz", "rt", encoding="utf-8", newline="\n") as file:
        lines = file.read().split("\n")[:-1]
    tokenizer = part("closed-words", vocabulary=50_000, markers=()).train(lines)
    ids = tokenizer.encode_batch(lines)
    assert sum(map(len, ids)) == 241_211
    n_unk = sum(int((row == contracts.UNK).sum()) for row in ids)
    assert n_unk == sum(line.split().count("<unk>") for line in lines) > 10_000
