"""Modified Kneser–Ney, order 5, on tokenised WikiText-2, beside the published 219.

Usage: python benchmarks/kneser_ney_wikitext2.py FOLDER_OF_WIKITEXT_2

The closed vocabulary is that of the training text: 33,277 words and <eos>. Every line, blank ones too, ends in <eos>.
"""

from __future__ import annotations

import gzip
import math
import sys
import time
from pathlib import Path

import numpy as np

from armillary.evaluation.ngram import KneserNey

EOS, UNK = 2, 3
PUBLISHED = 219


def read_lines(folder: Path, split: str) -> list[list[str]]:
    """The words of each line of wiki.SPLIT.tokens or wiki.SPLIT.tokens.gz."""
    path = folder / f"wiki.{split}.tokens"
    raw = path.read_bytes() if path.is_file() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    return [line.split() for line in raw.decode("utf-8").removesuffix("\n").split("\n")]


def as_stream(lines: list[list[str]], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with one <eos> a line, and where each line starts. A new word is given the next id."""
    ids: list[int] = []
    starts: list[int] = []
    for words in lines:
        starts.append(len(ids))
        ids.extend(vocabulary.setdefault(word, len(vocabulary) + EOS) for word in words)
        ids.append(EOS)
    return np.array(ids), np.array(starts)


def test_perplexity(folder: Path, crosses_lines: bool) -> tuple[float, int, int]:
    """exp(nats / tokens) of the test split, its number of tokens, and the number of types."""
    vocabulary = {"<eos>": EOS, "<unk>": UNK}
    train = as_stream(read_lines(folder, "train"), vocabulary)
    n_types = len(vocabulary)
    held_out = as_stream(read_lines(folder, "test"), vocabulary)
    if len(vocabulary) != n_types:
        raise SystemExit(f"{folder}: the test split has {len(vocabulary) - n_types} words that training has not")
    model = KneserNey.fit(*train, n_vocab=n_types + EOS, order=5, crosses_documents=crosses_lines)
    return math.exp(model.nll(*held_out).sum() / len(held_out[0])), len(held_out[0]), n_types


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for crosses_lines in (False, True):
        start = time.perf_counter()
        perplexity, n_tokens, n_types = test_perplexity(Path(sys.argv[1]), crosses_lines)
        seconds = time.perf_counter() - start
        print(
            f"context {'crosses' if crosses_lines else 'ends at'} line ends: perplexity {perplexity:.2f} "
            f"(published: {PUBLISHED}) on {n_tokens:,} tokens, {n_types:,} types, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
