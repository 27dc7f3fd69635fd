"""The error of a stratified estimate from the spread of its own draws, as if they were independent.

Source: Cochran 1977, Sampling Techniques, section 5.6 (what strata take out of the variance).
"""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import torch

from armillary.audit._finding import Finding
from armillary.audit._road import pack_texts
from armillary.audit._worlds import Urn, batch_of
from armillary.contracts import EOS
from armillary.evaluation.likelihood import Windowing, measure
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.tokens.packed import Packed
from armillary.tokens.tokenizers.word import Word

N_WINDOWS, WIDTH, N_PASSES, N_TRIALS = 12, 16, 8, 200
NORMAL = 1.96


def reproduce() -> Finding:
    """The bound of a text whose value is known, measured over and over: how often its 95 % interval holds it."""
    with tempfile.TemporaryDirectory() as folder:
        packed = _text(Path(folder) / "road")
        network = Urn(packed.about["n_vocab"], each=4)
        tokens = torch.from_numpy(packed.split("test").tokens[1:].astype("int64")).view(N_WINDOWS, WIDTH)
        truth = sum(network.nats(row) for row in tokens)
        n_naive = n_right = 0
        generator = torch.Generator().manual_seed(0)
        for trial in range(N_TRIALS):
            n_naive += _naive_holds(network, tokens, truth, generator)
            windowing = Windowing(WIDTH, WIDTH, N_WINDOWS, samples=N_PASSES, seed=trial)
            found = measure(network, MaskedDiffusion(), (packed, "test"), windowing).likelihood
            n_right += abs(found.nats - truth) < (found.margin_nats or 0.0)
    wrong, right = 100 * n_naive / N_TRIALS, 100 * n_right / N_TRIALS

    def holds(coverage: float) -> bool:
        return abs(coverage - 95) <= 3

    return Finding(
        about=f"how often a 95 % interval of the bound holds the true value, in {N_TRIALS} measurements",
        wrong=wrong,
        right=right,
        unit="% covered",
        error=100 * math.sqrt(0.95 * 0.05 / N_TRIALS),
        is_caught=holds(right) and not holds(wrong),
        how_caught="intervals from independent passes must cover 95 ± 3 %",
        source="Cochran 1977, Sampling Techniques, section 5.6",
    )


def _text(folder: Path) -> Packed:
    """Windows of the same words in other orders, so that only the draws make a difference between them."""
    draw = random.Random(0)
    words = [word for _ in range(N_WINDOWS) for word in draw.sample(["a"] * (WIDTH - 1) + ["b"], WIDTH)]
    text = " ".join(words[:-1])  # the end of the text is the last token
    return pack_texts(folder, dict.fromkeys(("train", "validation", "test"), text), Word(unknown="unk"), "file")


def _naive_holds(network: Urn, tokens: torch.Tensor, truth: float, generator: torch.Generator) -> bool:
    """All draws of all passes in one pot."""
    assert int(tokens[-1, -1]) == EOS
    passes = [MaskedDiffusion().draw(N_WINDOWS, WIDTH, generator) for _ in range(N_PASSES)]
    draws = {name: torch.cat([drawn[name] for drawn in passes]) for name in passes[0]}
    rows = MaskedDiffusion().score(network, batch_of(tokens.repeat(N_PASSES, 1)), draws).sum(1)
    error = float(rows.std()) / math.sqrt(len(rows))
    return abs(float(rows.mean()) - truth / N_WINDOWS) < NORMAL * error
