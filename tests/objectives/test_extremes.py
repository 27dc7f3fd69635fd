"""Single precision, large vocabularies, and the ends of every schedule: finite, and close to float64."""

from __future__ import annotations

import pytest
import torch
from tiny import Told, batch_of

from armillary.nn.head import VocabularyHead
from armillary.registry import make

V = 8192
SCHEDULES = [
    {"name": "log_linear"},
    {"name": "cosine"},
    {"name": "polynomial", "power": 3},
    {"name": "polynomial", "power": 20},
    {"name": "geometric"},
    {"name": "log_linear", "floor": 0.001},
]
LEVELS = torch.tensor([0.0, 1e-7, 1e-4, 0.01, 0.5, 0.99, 1 - 1e-6, 1 - 2**-24])
HIDDEN = torch.randn(len(LEVELS), 2, 16, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(V, 16, generator=torch.Generator().manual_seed(1))
U = torch.tensor([[0.0, 1 - 1e-9]], dtype=torch.float64).expand(len(LEVELS), -1)
"""The first token stays as long as any does, the second goes as soon as any does."""


def told(dtype):
    network = Told(2, lambda tokens, level: HIDDEN.to(dtype).repeat(len(tokens) // len(LEVELS), 1, 1))
    network.n_vocab, network.head = V, VocabularyHead(HEAD.to(dtype))
    return network


@pytest.mark.parametrize(("name", "fields"), [("uniform_diffusion", {}), ("score_entropy", {"process": "uniform"})])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@torch.no_grad()
def test_noise_in_single_precision(name, fields, schedule):
    if name == "score_entropy" and schedule["name"] != "geometric" and "floor" not in schedule:
        pytest.skip("refused: its rate has no end")
    objective = make("objectives", name, fields | {"schedule": schedule})
    batch = batch_of(torch.tensor([[5, 8000]]).expand(len(LEVELS), -1))
    found = objective.score(told(torch.float32), batch, {"level": LEVELS, "u": U})
    exact = objective.score(told(torch.float64), batch, {"level": LEVELS.double(), "u": U})
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all()) and bool((found >= -1e-4).all())
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=1e-3)  # the last t is rounded


@pytest.mark.parametrize("schedule", SCHEDULES[:5], ids=str)
@pytest.mark.parametrize("pairs", [False, True])
@torch.no_grad()
def test_masks_by_time_in_single_precision(schedule, pairs):
    objective = make("objectives", "masked_diffusion", {"estimator": "time", "pairs": pairs, "schedule": schedule})
    batch = batch_of(torch.tensor([[5, 8000]]).expand(len(LEVELS), -1))
    loss = objective.loss(told(torch.float32), batch, {"level": LEVELS, "u": U.float()})
    assert torch.isfinite(loss.total) and float(loss.nats) > 0


@torch.no_grad()
def test_weights_are_not_rounded_to_the_arithmetic_of_the_network():
    """128 / 127 in bfloat16 is 1.0078: hidden states may be rounded, weights of the bound are not."""
    n = 128
    weight = torch.eye(2, dtype=torch.float32)
    network = Told(2, lambda tokens, level: torch.zeros(*tokens.shape, 2, dtype=torch.bfloat16))
    network.head = VocabularyHead(weight)
    level = (torch.arange(n) + 0.5) / n
    for name, fields in (("masked_diffusion", {"pairs": False}), ("block_diffusion", {"block": n, "pairs": False})):
        objective = make("objectives", name, fields)
        draws = objective.draw(n, n, torch.Generator().manual_seed(0))
        draws["level"] = level.view(draws["level"].shape)
        batch = batch_of(torch.zeros(n, n, dtype=torch.long))
        score = objective.score(network, batch, draws).sum(1)
        torch.testing.assert_close(score, torch.full((n,), n * 0.6931472), rtol=1e-6, atol=0)
