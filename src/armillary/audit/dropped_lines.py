"""Word perplexity of WikiText without its blank lines and line ends, divided by the words and lines of the whole.

Source: Merity et al. 2016, arXiv 1609.07843: every line is scored, and its end is a word.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch

from armillary.audit._finding import Finding
from armillary.audit._road import pack_texts, score
from armillary.audit._worlds import Memoryless
from armillary.evaluation.comparison import Scores, compare
from armillary.records import perplexity
from armillary.refusal import Refusal
from armillary.tokens.tokenizers.word import Word

WORDS = [f"w{number}" for number in range(100)]


def reproduce() -> Finding:
    """Titles, blank lines and paragraphs, as in WikiText, under the frequencies of words and line ends."""
    draw = random.Random(0)
    texts = {split: _articles(draw, n) for split, n in (("train", 40), ("validation", 4), ("test", 12))}
    counts = _events(texts["train"])
    total = counts.total()
    n_events = _events(texts["test"])
    n_ends = n_events["\n"]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Word(unknown="unk").train(texts["train"].split("\n"))
        order = ["<pad>", "<bos>", "\n", "<unk>", *(tokenizer.decode([i]) for i in range(4, tokenizer.n_vocab))]
        # What never comes weighs next to nothing, so that the law is that of the counts.
        network = Memoryless(torch.tensor([counts[event] or 1e-9 for event in order], dtype=torch.float64).log())
        whole = score(pack_texts(Path(folder) / "whole", texts, tokenizer, "line"), network)
        bare = {split: " ".join(text.split()) for split, text in texts.items()}
        dropped = score(pack_texts(Path(folder) / "bare", bare, tokenizer, "file"), network)
    truth = math.exp(-sum(n * math.log(counts[event] / total) for event, n in n_events.items()) / n_events.total())
    right = whole.likelihood.word_perplexity
    wrong = perplexity(dropped.likelihood.nats / whole.likelihood.n_words)

    def holds(figure: float) -> bool:
        return math.isclose(figure, truth, rel_tol=1e-6)

    return Finding(
        about=f"{n_ends} of {n_events.total():,} words are ends of lines, and they are not scored",
        wrong=wrong,
        right=right,
        unit="word perplexity",
        is_caught=holds(right) and not holds(wrong) and _are_refused(whole, dropped),
        how_caught="words and lines counted apart, and a comparison of the two texts is refused",
        source="Merity et al. 2016, arXiv 1609.07843",
    )


def _articles(draw: random.Random, n_paragraphs: int) -> str:
    lines = []
    for _ in range(n_paragraphs):
        words = draw.choices(WORDS, [1 / (rank + 1) for rank in range(len(WORDS))], k=draw.randint(140, 300))
        lines += [" ", f" = {draw.choice(WORDS)} = ", " ", f" {' '.join(words)} . "]
    return "".join(f"{line}\n" for line in lines)


def _events(text: str) -> Counter[str]:
    """Words, and line ends."""
    return Counter(text.split()) + Counter({"\n": text.count("\n")})


def _are_refused(one: Scores, other: Scores) -> bool:
    try:
        compare([one, other])
    except Refusal:
        return True
    return False
