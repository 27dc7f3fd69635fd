"""Bits per byte from a constant number of bytes per token, in place of the bytes of the text that was scored.

Source: arXiv 2101.00027, section 3.1, for bits per byte.
"""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import torch

from armillary.audit._finding import Finding
from armillary.audit._road import pack_texts, score
from armillary.audit._worlds import Memoryless
from armillary.tokens.tokenizers.bpe import Bpe

PLAIN = "the of and in to was is for on as with by he that it at from his were are which this also be had"
GREEK = "ὁ λόγος ἦν πρὸς τὸν θεόν καὶ φῶς ἐν τῇ σκοτίᾳ φαίνει ἡ δὲ οὐ κατέλαβεν"


def reproduce() -> Finding:
    draw = random.Random(0)
    train = _lines(draw, PLAIN, 200)
    test = _lines(draw, f"{PLAIN} {GREEK}", 60)
    with tempfile.TemporaryDirectory() as folder:
        texts = {"train": train, "validation": _lines(draw, PLAIN, 20), "test": test}
        packed = pack_texts(Path(folder) / "road", texts, Bpe(vocabulary=300), "line")
        n_vocab, facts = packed.about["n_vocab"], packed.about["splits"]
        found = score(packed, Memoryless(torch.zeros(n_vocab, dtype=torch.float64))).likelihood
    bytes_per_token = len(train.encode()) / facts["train"]["n_scored"]
    wrong = found.nats / found.n_tokens / math.log(2) / bytes_per_token
    right = found.bits_per_byte or math.nan

    def holds(bits_per_byte: float) -> bool:
        """Bits per byte times the bytes of the file is the length of the code: log2 V for every token of it."""
        code_bits = facts["test"]["n_scored"] * math.log2(n_vocab)
        return math.isclose(bits_per_byte * len(test.encode()), code_bits, rel_tol=1e-6)

    return Finding(
        about=f"bits per byte with the {bytes_per_token:.2f} bytes per token of the training text, on a test text that "
        f"has {len(test.encode()) / found.n_tokens:.2f}",
        wrong=wrong,
        right=right,
        unit="bits/byte",
        is_caught=holds(right) and not holds(wrong),
        how_caught="bits per byte times the bytes of the file must be the length of the code",
        source="Gao et al. 2020, arXiv 2101.00027, section 3.1",
    )


def _lines(draw: random.Random, words: str, n_lines: int) -> str:
    return "".join(" ".join(draw.choices(words.split(), k=draw.randint(8, 24))) + "\n" for _ in range(n_lines))
