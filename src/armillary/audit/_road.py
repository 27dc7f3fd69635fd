"""Text on the real road: files, corpus, tokenizer, packed tokens, and the likelihood of a split."""

from __future__ import annotations

from pathlib import Path

from armillary.audit._worlds import Memoryless
from armillary.contracts import Tokenizer, TokenizerPart
from armillary.evaluation.comparison import Scores
from armillary.evaluation.likelihood import Windowing, measure
from armillary.recipe import Packing
from armillary.registry import make
from armillary.text import corpus
from armillary.text.documents import Cut
from armillary.text.sources.files import Files
from armillary.tokens.packed import Packed
from armillary.tokens.packing import pack

WINDOW = 64


def pack_texts(folder: Path, texts: dict[str, str], tokenizer: TokenizerPart | Tokenizer, document: Cut) -> Packed:
    """texts: of the splits train, validation and test. A tokenizer part is trained on train."""
    (folder / "text").mkdir(parents=True)
    for split, text in texts.items():
        (folder / "text" / f"{split}.txt").write_text(text, encoding="utf-8", newline="")
    made = corpus.build("audit", Files(path=str(folder / "text"), document=document), 0.1, folder / "artefacts")
    if isinstance(tokenizer, TokenizerPart):
        tokenizer = tokenizer.train(made.documents("train"))
    return pack(made, tokenizer, "0" * 64, Packing(window=WINDOW), folder / "packed")


def score(packed: Packed, network: Memoryless) -> Scores:
    """Of the test split."""
    return measure(network, make("objectives", "autoregressive", {}), (packed, "test"), Windowing(WINDOW, WINDOW))
