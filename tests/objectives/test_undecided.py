"""What an objective that looks ahead must restore: no end of a document is free."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import all_orders
from tiny import Told, counts, each_with_each

from armillary.contracts import BOS, EOS, Batch
from armillary.objectives._masking import layout_of, undecided
from armillary.registry import make

A, V = 3, 4


def row(text):
    tokens = torch.tensor([[BOS, *text]])
    return tokens, (tokens != BOS)


def test_a_bos_behind_a_scored_end_is_restored_too():
    tokens, scored = row([A, EOS, BOS, A, EOS])
    assert undecided(Batch(tokens, scored)).tolist() == [[True] * 5]


def test_a_bos_behind_context_is_given():
    tokens, scored = row([A, EOS, BOS, A, EOS])
    scored[:, :3] = False  # a window whose end lies before: the end of its first document is context
    assert undecided(Batch(tokens, scored)).tolist() == [[False, False, False, True, True]]


def test_isolated_documents_tell_nothing_of_each_other():
    tokens, scored = row([A, EOS, BOS, A, EOS])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert undecided(Batch(tokens, scored, segments)).tolist() == [[True, True, False, True, True]]
    assert undecided(Batch(tokens, scored, torch.zeros_like(segments))).tolist() == [[True] * 5]


def test_unscored_prompts_and_padding_are_given():
    tokens = torch.tensor([[BOS, A, A, A, EOS, 0]])
    scored = torch.tensor([[False, False, False, True, True, False]])
    assert undecided(Batch(tokens, scored)).tolist() == [[False, False, True, True, False]]


def test_places_count_from_what_is_seen():
    """The first token of a row is not seen, so the document it begins is one place further on; others are whole."""
    tokens, scored = row([A, EOS, BOS, A, EOS])
    segments, positions = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    layout = layout_of(Batch(tokens, scored, segments, positions))
    assert layout.positions is not None and layout.positions.tolist() == [[0, 1, 0, 1, 2]]
    assert layout_of(Batch(tokens, scored)).positions is None


ENDS = torch.tensor([[EOS, BOS, A, A], [A, EOS, BOS, A], [A, A, EOS, BOS]])
"""Three texts that differ in where the first document ends, equally likely: log 3 nats each."""


def knowing(tokens, noise_level):
    """The best there is: each token's law given all that is seen. A visible bos tells the whole text."""
    agrees = ((tokens[:, None] == V) | (tokens[:, None] == ENDS)).all(2).double()
    p = agrees / agrees.sum(1, keepdim=True).clamp(min=1e-300)
    law = torch.einsum("bn,nlv->blv", p, torch.nn.functional.one_hot(ENDS, V).double())
    return law.clamp(min=1e-300).log()


@pytest.mark.parametrize("name", ["masked_diffusion", "score_entropy", "block_diffusion"])
def test_the_end_of_a_document_is_not_free(name):
    """A model that knows the corpus pays the entropy of the ends, to the last bit. Given the bos it would pay none."""
    objective = make("objectives", name, {"block": 4} if name == "block_diffusion" else {})
    level = counts(4)[:, None] if name == "block_diffusion" else counts(4)
    draws = each_with_each(level=level, order=all_orders(4))
    n = len(draws["order"])

    def nats(scored_bos):
        tokens = torch.nn.functional.pad(ENDS.repeat_interleave(n, 0), (1, 0), value=BOS)
        scored = tokens != BOS
        segments = None if scored_bos else _apart(tokens)
        told = Told(V, _ratios if name == "score_entropy" else _halved if name == "block_diffusion" else knowing)
        batch = Batch(tokens, scored, segments)
        return float(objective.score(told, batch, {k: torch.cat([v] * 3) for k, v in draws.items()}).sum()) / (3 * n)

    assert nats(True) == pytest.approx(math.log(3), abs=1e-9)
    assert nats(False) == pytest.approx(0, abs=1e-9)  # what a given bos would make of it


def _ratios(tokens, noise_level):
    return knowing(tokens, noise_level) + math.log(V)


def _halved(tokens, noise_level):
    """One block: the noisy half is all there is to see."""
    noisy = tokens[:, : tokens.shape[1] // 2]
    return torch.cat([knowing(noisy, noise_level)] * 2, 1)


def _apart(tokens):
    """Each bos begins a document of its own: it is given."""
    return (tokens == BOS).long().cumsum(1)
