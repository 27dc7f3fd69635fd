"""Text where none is given: made, not collected, and the same every time for one seed and size.

A lexicon of 20,000 words is spelled from syllables, short words first. Each word has four followers of its own; a text
goes on with one of them seven times in ten, and with a word drawn by Zipf's law otherwise. A sentence ends after one
word in twelve, a document after 120 words, on its line. So there are spellings, frequencies and pairs to learn, and
chance that no model can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from armillary.artefact import sha256_of
from armillary.run_folder import write_text

N_WORDS, N_FOLLOWERS, FOLLOWS, ENDS, LENGTH = 20_000, 4, 0.7, 1 / 12, 120
N_AT_ONCE = 256
"""Documents that are drawn together, a word of each at a time."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def lexicon() -> list[str]:
    syllables = [c + v for c in CONSONANTS for v in VOWELS]
    words = list(syllables)
    for word in words:
        if len(words) >= N_WORDS:
            break
        words += [word + syllable for syllable in syllables]
    return words[:N_WORDS]


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Until they hold so many millions of bytes, newlines counted."""
    draw = np.random.Generator(np.random.PCG64(seed))
    words = lexicon()
    weights = 1 / (np.arange(N_WORDS) + 2.7)
    law = np.cumsum(weights) / weights.sum()
    followers = np.searchsorted(law, draw.random((N_WORDS, N_FOLLOWERS)))
    n_bytes = 0
    while True:
        chance = draw.random((4, LENGTH, N_AT_ONCE))
        drawn = np.searchsorted(law, chance[0])
        for place in range(1, LENGTH):
            known = followers[drawn[place - 1], (chance[1, place] * N_FOLLOWERS).astype(int)]
            drawn[place] = np.where(chance[2, place] < FOLLOWS, known, drawn[place])
        for row, ends in zip(drawn.T.tolist(), (chance[3] < ENDS).T.tolist(), strict=True):
            text = "".join(words[i] + (". " if end else " ") for i, end in zip(row, ends, strict=True)).strip()
            yield text
            n_bytes += len(text) + 1
            if n_bytes >= 1e6 * megabytes:
                return


def file(folder: Path, megabytes: float, seed: int = 0) -> tuple[Path, str]:
    """A text file of synthetic documents, a line each, made where it is not there yet; and its SHA-256."""
    path = folder / f"synthetic-{1000 * megabytes:g}kB-seed{seed}.txt"
    if not path.is_file():
        write_text(path, "".join(f"{text}\n" for text in documents(megabytes, seed)))
    return path, sha256_of(path)
