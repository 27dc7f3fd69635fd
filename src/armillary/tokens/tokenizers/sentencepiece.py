"""SentencePiece with byte fallback, made lossless; the model file is its own protobuf.

Source: Kudo 2018, arXiv 1804.10959 (unigram); Kudo and Richardson 2018, arXiv 1808.06226 (SentencePiece).
Differs: identity normalisation, no dummy prefix, spaces kept, a newline is one token, and a literal U+2581 in a text
(SentencePiece's own sign for a space, which would come back as one) is spelled in its three bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
from pydantic import Field

from armillary.contracts import SPECIAL_TOKENS, UNK
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.tokens.tokenizers._vocabulary import (
    N_BYTES,
    N_SPECIALS,
    FixedBytes,
    Markers,
    refuse_learnt_markers,
    refuse_other_markers,
    refuse_small,
    warn_short,
    well_formed,
)

FILE = "tokenizer.model"
SPACE = "\u2581"
BYTE_PIECES = range(N_SPECIALS + 1, N_SPECIALS + 1 + N_BYTES)  # after the specials and the newline
SIGNS = "\0\u2581\u2585"
"""Characters that the trainer uses as signs of its own: it drops, in silence, every sentence that holds one."""
LONGEST_SENTENCE = 4000
"""Characters; the trainer drops longer ones in silence too."""
SENTENCE = re.compile(rf"[^\n{SIGNS}]{{1,100}}(?![^\s{SIGNS}])|[^\S\n]?[^\s{SIGNS}]{{1,{LONGEST_SENTENCE - 1}}}")
"""What is trained on: up to 100 characters, cut before a space, or one longer word. Short on purpose: the unigram
trainer starts from strings that are followed by different things (or an end). In text where a space follows every
word, such as WikiText's, it loses " and" and others from whole lines, and needs 17 % more tokens."""


class SentencePiece(Part):
    """vocabulary: ids in all, specials, newline, 256 bytes and markers included. Trains on texts held in memory."""

    vocabulary: int = Field(default=32768, ge=1)
    model_type: Literal["unigram", "bpe"] = "unigram"
    markers: Markers = ()

    @property
    def planned_vocabulary(self) -> int:
        return self.vocabulary

    def train(self, texts: Iterable[str]) -> SentencePieceTokenizer:
        """Warns where the text has fewer pieces than the vocabulary asks for."""
        n_markers = len(self.markers)
        refuse_small(self.vocabulary, N_SPECIALS + 1 + N_BYTES + n_markers)
        model = _trained(texts, self.vocabulary, n_markers, self.model_type)
        learnt = sentencepiece.SentencePieceProcessor(model_proto=model)
        refuse_learnt_markers(self.markers, lambda marker: learnt.piece_to_id(marker) != UNK)
        model += b"".join(_control_piece(marker) for marker in self.markers)
        tokenizer = SentencePieceTokenizer(model, self.markers)
        warn_short(self.vocabulary, tokenizer.n_vocab)
        return tokenizer

    def load(self, folder: Path) -> SentencePieceTokenizer:
        tokenizer = SentencePieceTokenizer((folder / FILE).read_bytes(), self.markers)
        refuse_other_markers(folder / FILE, tokenizer.control_pieces(), self.markers)
        return tokenizer


class SentencePieceTokenizer(FixedBytes):
    """Pieces of words, a newline, and bytes for the rest. Encodes on all cores; one long text uses one."""

    def __init__(self, model: bytes, markers: Sequence[str]) -> None:
        self._bytes = model  # SentencePiece would serialise it in another order of fields, with another hash
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        n = self._model.get_piece_size() - len(markers)
        super().__init__([self._piece_bytes(i) for i in range(n)], markers, BYTE_PIECES)
        self._space_sign = [BYTE_PIECES[byte] for byte in SPACE.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._model.encode([well_formed(text) for text in texts], out_type=int)
        for i, text in enumerate(texts):
            if SPACE in text:
                first, *rest = self._model.encode(text.split(SPACE), out_type=int)
                batch[i] = first + [token for stretch in rest for token in self._space_sign + stretch]
        return [np.array(ids, dtype=np.int32) for ids in batch]

    def save(self, folder: Path) -> Path:
        (folder / FILE).write_bytes(self._bytes)
        return folder / FILE

    def control_pieces(self) -> list[str]:
        """The markers that the model file holds."""
        n = self._model.get_piece_size()
        return [self._model.id_to_piece(i) for i in range(N_SPECIALS, n) if self._model.is_control(i)]

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_control(token) or self._model.is_unknown(token):
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()


def _trained(texts: Iterable[str], vocabulary: int, n_markers: int, model_type: str) -> bytes:
    pad, bos, eos, unk = SPECIAL_TOKENS
    model = io.BytesIO()
    sentences = _Sentences(texts)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocabulary - n_markers,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=pad,
            bos_piece=bos,
            eos_piece=eos,
            unk_piece=unk,
            user_defined_symbols=["\n"],
            byte_fallback=True,
            character_coverage=0.9995,  # the rarest characters are bytes: Wikipedia's would fill a small vocabulary
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            max_sentence_length=4 * LONGEST_SENTENCE,
            num_threads=2,  # sums of floats depend on it: fixed, so that equal text gives an equal model
            minloglevel=2,
        )
    except RuntimeError as error:
        if sentences.error is not None:
            raise sentences.error from None
        if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            refuse_small(vocabulary, int(needed[1]) + n_markers)
        if "sentences_.empty()" in str(error):
            raise Refusal("tokenizer: the training text is empty; give text to train on") from None
        raise
    return model.getvalue()


class _Sentences:
    """Stretches of text for the trainer. Keeps what went wrong in the texts: C++ would turn it into its own error."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                yield from SENTENCE.findall(well_formed(text))
        except BaseException as error:
            self.error = error
            raise


def _control_piece(marker: str) -> bytes:
    """A piece that text never gives, to append to a model: protobuf messages are joined by joining their bytes.

    ModelProto.pieces is field 1; in it piece is field 1, score 2 (a float), type 3 (CONTROL is 3).
    """
    name = marker.encode()
    piece = b"\x0a" + _varint(len(name)) + name + b"\x15" + bytes(4) + b"\x18\x03"
    return b"\x0a" + _varint(len(piece)) + piece


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80]) + _varint(n >> 7)
