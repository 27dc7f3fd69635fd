"""Byte-level BPE, trained and run by Hugging Face tokenizers (Rust); the model file is its tokenizer.json.

Source: Sennrich et al. 2016, arXiv 1508.07909; over bytes as in Radford et al. 2019 (GPT-2), with its word pattern.
Differs: text that looks like a special token or marker is spelled out, always. A batch is cut where the word pattern
surely cuts, before a space, and what a unit gives is remembered: the same ids, several times faster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, trainers

from armillary.contracts import SPECIAL_TOKENS
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.tokens.tokenizers._vocabulary import (
    N_BYTES,
    N_SPECIALS,
    SPELLED_BYTES,
    FixedBytes,
    Markers,
    refuse_learnt_markers,
    refuse_other_markers,
    refuse_small,
    warn_short,
    well_formed,
)

FILE = "tokenizer.json"
_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
UNIT = re.compile(rf" ?[^{_WHITE}]+|[{_WHITE}]+(?![^{_WHITE}])|[{_WHITE}]+")
"""Whole matches of GPT-2's pattern, joined up to the next space. Python's \\s would also match U+001C to U+001F."""
MOST_KNOWN = 200_000
"""Units remembered before starting afresh: about 50 MB."""


class Bpe(Part):
    """vocabulary: ids in all, specials, 256 bytes and markers included. min_frequency: of a pair that is merged."""

    vocabulary: int = Field(default=8192, ge=1)
    min_frequency: int = Field(default=2, ge=1)
    markers: Markers = ()

    @property
    def planned_vocabulary(self) -> int:
        return self.vocabulary

    def train(self, texts: Iterable[str]) -> BpeTokenizer:
        """Warns where the text has fewer frequent pairs than the vocabulary asks for."""
        refuse_small(self.vocabulary, N_SPECIALS + N_BYTES + len(self.markers))
        rust = tokenizers.Tokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary - len(self.markers),
            min_frequency=self.min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(_bytes_of_letters()),
            show_progress=False,
        )
        rust.train_from_iterator(map(well_formed, texts), trainer)
        refuse_learnt_markers(self.markers, lambda marker: rust.token_to_id(marker) is not None)
        rust.add_special_tokens(list(self.markers))
        tokenizer = BpeTokenizer(rust, self.markers)
        warn_short(self.vocabulary, tokenizer.n_vocab)
        return tokenizer

    def load(self, folder: Path) -> BpeTokenizer:
        rust = tokenizers.Tokenizer.from_file(str(folder / FILE))
        added = [token.content for _, token in sorted(rust.get_added_tokens_decoder().items())]
        refuse_other_markers(folder / FILE, added[N_SPECIALS:], self.markers)
        return BpeTokenizer(rust, self.markers)


class BpeTokenizer(FixedBytes):
    """Merges of bytes."""

    def __init__(self, rust: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
        rust.encode_special_tokens = True  # tokenizer.json does not keep it: without it "<eos>" in a text is EOS
        self._rust = rust
        self._known: dict[str, list[int]] = {}
        _refuse_merged_specials(rust, markers)
        letters = _bytes_of_letters()
        n = rust.get_vocab_size() - len(markers)
        pieces = [rust.id_to_token(i) or "" for i in range(N_SPECIALS, n)]
        table = [b""] * N_SPECIALS + [bytes([letters[letter] for letter in piece]) for piece in pieces]
        super().__init__(table, markers, SPELLED_BYTES)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        units = [UNIT.findall(well_formed(text)) for text in texts]
        known = self._known if len(self._known) < MOST_KNOWN else {}
        new = [unit for unit in dict.fromkeys(chain.from_iterable(units)) if unit not in known]
        encoded = self._rust.encode_batch_fast(new, add_special_tokens=False)
        known.update(zip(new, [encoding.ids for encoding in encoded], strict=True))
        self._known = known
        return [np.fromiter(chain.from_iterable(map(known.__getitem__, found)), dtype=np.int32) for found in units]

    def save(self, folder: Path) -> Path:
        self._rust.save(str(folder / FILE))
        return folder / FILE


def _refuse_merged_specials(rust: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
    """The word pattern keeps "<", "eos" and ">" apart, so no merge makes a special; a foreign file could."""
    merged = {left + right for left, right in json.loads(rust.to_str())["model"]["merges"]}
    if made := merged & {*SPECIAL_TOKENS, *markers}:
        raise Refusal(f"{FILE}: a merge makes the special token '{min(made)}'; train the tokenizer again")


def _bytes_of_letters() -> dict[str, int]:
    """The letter that stands for each byte in tokenizer.json: itself where it can be seen, else one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(N_BYTES) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
