"""Labels shifted twice, by the batch and by the loss: the model learns the token after the next one.

Source: known from training scripts that shift labels for a model that shifts them itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from armillary.assemble.verifying import promised
from armillary.audit._finding import Finding
from armillary.contracts import SPECIAL_TOKENS, Batch, Layout
from armillary.model.network import LanguageNetwork
from armillary.registry import make

PERIOD, N_TOKENS, N_STEPS = 7, 16, 50
N_VOCAB = len(SPECIAL_TOKENS) + PERIOD

Loss = Callable[[LanguageNetwork, Batch], Tensor]


def reproduce() -> Finding:
    """A text that counts round and round, so that both losses become small."""
    objective = make("objectives", "autoregressive", {})
    shifted = _train(_shifted_twice)
    sound = _train(lambda network, batch: objective.loss(network, batch, {}).total / batch.scored.sum())
    batch = _cycle(torch.Generator().manual_seed(99), 4)
    with torch.no_grad():
        wrong = float(_shifted_twice(shifted, batch))
        right = float(objective.score(shifted, batch, {}).sum() / batch.scored.sum())

    def holds(network: LanguageNetwork) -> bool:
        return all(check.holds for check in promised(network, objective, batch))

    return Finding(
        about="loss of a model trained on labels that were shifted twice, as its own training tells it",
        wrong=wrong,
        right=right,
        unit="nats/token",
        is_caught=holds(sound) and not holds(shifted),
        how_caught="`armillary verify RUN --behaviour`: the next token must be likelier than the one after it",
        source="training scripts that shift labels for a model that shifts them itself",
    )


def _shifted_twice(network: LanguageNetwork, batch: Batch) -> Tensor:
    inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
    log_p = network(inputs, Layout("causal"))
    return -log_p[:, :-1].gather(2, targets[:, 1:, None]).mean()


def _train(loss: Loss) -> LanguageNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LanguageNetwork(make("backbones", "llama", {"d_model": 32, "n_layers": 1, "n_heads": 2}), N_VOCAB)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss(network, _cycle(generator, 16)).backward()
        optimizer.step()
    return network.eval()


def _cycle(generator: torch.Generator, n_rows: int) -> Batch:
    places = torch.randint(PERIOD, (n_rows, 1), generator=generator) + torch.arange(N_TOKENS + 1)
    tokens = len(SPECIAL_TOKENS) + places % PERIOD
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, 0] = False
    return Batch(tokens, scored)
