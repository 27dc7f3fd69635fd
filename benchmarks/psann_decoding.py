"""Decoding at the shape of PSANN-LM's own benchmark, ours and its own package's, side by side.

Usage: python benchmarks/psann_decoding.py FOLDER_OF_PSANN [--rounds 3] [respsann | waveresnet ...] [batch | alone ...]

FOLDER_OF_PSANN is a checkout of github.com/Nickm1128/psann. Batch 8, prompts of 96 characters, 64 new ones, width 512,
8 blocks, 8 heads, characters as vocabulary; fp32, greedy, random weights, reading the prompts in the time. "batch" is
all rows at once with a cache, "alone" one row after the other: ours with the cache, its own without, since it has none
there. Each is what its users call: our left-to-right engine (its steps also compiled, as `sampling.compile` does; what
that costs once is not counted), its `generate_batch` and `generate`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contest import KEPT_ALLOCATOR, SYSTEM_ALLOCATOR, compete, show, work, write
from decoding_speed import Words

BATCH, PROMPT, NEW = 8, 96, 64
SHAPE = {"d_model": 512, "n_layers": 8, "n_heads": 8}
BASES, MANNERS = ("respsann", "waveresnet"), ("batch", "alone")
CONTENDERS = ("armillary", "armillary compiled", "psann")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-/\\ \n"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        folder, name = arguments[1].split("::")
        who, base, manner = name.split("/")
        if who == "psann":
            work(lambda: theirs(Path(folder), base, manner == "batch"), SYSTEM_ALLOCATOR)
        else:
            work(lambda: ours(base, manner == "batch", "compiled" in who), KEPT_ALLOCATOR)
        return
    folder = arguments[0]
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 3
    readings: dict[str, Any] = {}
    for base in [base for base in BASES if base in arguments] or BASES:
        for manner in [manner for manner in MANNERS if manner in arguments] or MANNERS:
            found = compete(__file__, [f"{folder}::{who}/{base}/{manner}" for who in CONTENDERS], n_rounds)
            readings[f"{base} {manner}"] = named = {name.split("::")[1]: one for name, one in found.items()}
            show(named, f"armillary/{base}/{manner}")
    print(write("psann_decoding", readings, "python benchmarks/psann_decoding.py FOLDER_OF_PSANN"))


def ours(base: str, together: bool, compiled: bool) -> Iterator[int]:
    from armillary.model.network import LanguageNetwork
    from armillary.model.next_token import CachedNextToken
    from armillary.registry import make
    from armillary.samplers.left_to_right import LeftToRight

    words: Any = Words(4 + len(LETTERS))
    network = LanguageNetwork(make("backbones", base, SHAPE), words.n_vocab).eval().requires_grad_(False)
    network.embedding.weight[2].zero_()  # eos is never the likeliest
    settings = LeftToRight(temperature=0, max_new_tokens=NEW)
    view = CachedNextToken(network, n_slots=BATCH if together else 1, capacity=PROMPT + NEW, compiled=compiled)
    prompts = [[1, *(4 + LETTERS.index(letter) for letter in text[1:])] for text in _prompts()]
    while True:
        found = settings.generate(view, prompts, [0] * BATCH, words)
        assert all(one.n_tokens == NEW for one in found)
        yield BATCH * NEW


def theirs(folder: Path, base: str, together: bool) -> Iterator[int]:
    """Rows that end early count as whole ones, as in its own benchmark."""
    sys.path[:0] = [str(folder), str(folder / "src")]
    from psannlm.lm import psannLM, psannLMDataPrep  # type: ignore[import-not-found]

    data = psannLMDataPrep([LETTERS * 8], tokenizer="simple", max_length=PROMPT + NEW + 8, val_split=0.0)
    model = psannLM(base=base, **SHAPE, vocab_size=data.vocab_size, positional_encoding="rope")
    model._tokenizer = data.tokenizer
    model._ensure_model(data.vocab_size)
    settings = {"max_new_tokens": NEW, "top_k": 1, "top_p": 1.0, "temperature": 1.0}
    while True:
        if together:
            model.generate_batch(_prompts(), **settings)
        else:
            for text in _prompts():
                model.generate(text, **settings)
        yield BATCH * NEW


def _prompts() -> list[str]:
    return [("kv-cache prompt " + letter * PROMPT)[:PROMPT] for letter in LETTERS[:BATCH]]


if __name__ == "__main__":
    main()
