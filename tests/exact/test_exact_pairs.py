"""What every objective promises on every backbone. A new one of either joins by its file name."""

from __future__ import annotations

import pytest
import torch
from tiny import TINY, Overheard, network_for

from armillary.contracts import BOS, EOS, Batch, Objective
from armillary.registry import make, names

T, VOCABULARY = 5, 6
CASES = {
    "any_order": [{}],
    "autoregressive": [{}, {"hidden_inputs": 0.4}],
    "block_diffusion": [{"block": 2}, {"block": 2, "pairs": False}, {"block": 1}],
    "embedding_flow": [{}],
    "masked_diffusion": [{}, {"pairs": False}, {"estimator": "time"}, {"estimator": "rate", "rate": 0.5}],
    "mixture": [
        {
            "terms": {
                "left": {"weight": 1.0, "objective": {"name": "autoregressive"}},
                "masks": {"weight": 0.5, "objective": {"name": "masked_diffusion"}},
            }
        },
        {
            "terms": {
                "noise": {"weight": 1.0, "objective": {"name": "uniform_diffusion"}},
                "left": {"weight": 0.25, "objective": {"name": "autoregressive"}},
            }
        },
    ],
    "score_entropy": [{}, {"pairs": False}, {"process": "uniform"}],
    "uniform_diffusion": [{}, {"schedule": {"name": "log_linear", "floor": 0.1}}],
}
PARAMETERS = [
    pytest.param(backbone, name, fields, id=f"{backbone}-{name}-{number}")
    for backbone in names("backbones")
    for name, cases in CASES.items()
    for number, fields in enumerate(cases)
    if name != "embedding_flow" or backbone == "bijective"
]
every_pair = pytest.mark.parametrize(("backbone", "name", "fields"), PARAMETERS)


def test_every_objective_and_every_backbone_is_here():
    assert set(names("objectives")) == set(CASES)
    assert set(names("backbones")) == set(TINY)


def pair(backbone, name, fields):
    objective = make("objectives", name, fields)
    assert isinstance(objective, Objective)
    return objective, network_for(backbone, objective, VOCABULARY)


def rows(n=4, seed=0):
    """Two documents a row, the second one's beginning after an end that is scored; the last rows have context."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (n, T + 1), generator=g)
    tokens[:, 0] = BOS
    tokens[::2, 2], tokens[::2, 3] = EOS, BOS
    scored = tokens != BOS
    scored[-1, :3] = False
    return Batch(tokens, scored)


def draws_for(objective, n=4, seed=1):
    return objective.draw(n, T, torch.Generator().manual_seed(seed))


@every_pair
def test_two_processes_do_what_one_does(backbone, name, fields):
    """Draws are made for the global batch and sliced; sums add up, also where a slice is one row."""
    objective, network = pair(backbone, name, fields)
    batch, draws = rows(), draws_for(objective)
    assert all(len(draw) == 4 for draw in draws.values())
    parameters = list(network.parameters())
    whole = objective.loss(network, batch, draws)
    parts = [
        objective.loss(network, batch.rows(part), {k: v[part] for k, v in draws.items()})
        for part in (slice(0, 1), slice(1, 4))
    ]
    for field in ("total", "nats", "n_tokens"):
        torch.testing.assert_close(sum(getattr(p, field) for p in parts), getattr(whole, field), atol=1e-9, rtol=0)
    assert int(whole.n_tokens) == int(batch.scored[:, 1:].sum())
    assert not whole.nats.requires_grad and all(not part.requires_grad for part in whole.parts.values())
    for key in whole.parts:
        torch.testing.assert_close(sum(p.parts[key] for p in parts), whole.parts[key], atol=1e-9, rtol=0)
    grads = torch.autograd.grad(whole.total, parameters)
    halves = [torch.autograd.grad(part.total, parameters) for part in parts]
    for together, *apart in zip(grads, *halves, strict=True):
        torch.testing.assert_close(sum(apart), together, atol=1e-9, rtol=1e-9)
        assert bool(together.any()), "a parameter that nothing reaches"


@every_pair
@torch.no_grad()
def test_a_score_is_the_loss_token_by_token_and_zero_where_nothing_is_asked(backbone, name, fields):
    objective, network = pair(backbone, name, fields)
    batch, draws = rows(), draws_for(objective)
    score = objective.score(network, batch, draws)
    free = ~batch.scored[:, 1:]
    if name != "autoregressive" and not (name == "mixture" and next(iter(fields["terms"])) == "left"):
        paid = free & (batch.tokens[:, 1:] == BOS) & batch.scored[:, :-1]
        prices = torch.stack([objective.score(network, batch, draws_for(objective, seed=seed)) for seed in range(6)])
        assert bool((prices.amax(0)[paid] > 0).all()) and int(paid.sum()) == 2, (
            "the bos behind a scored end is not free"
        )
        free = free & ~paid
    assert free.any() and not score[free].any()
    if not fields.keys() & {"hidden_inputs", "estimator"}:
        assert float(score.sum()) == pytest.approx(float(objective.loss(network, batch, draws).nats), rel=1e-9)


@every_pair
@torch.no_grad()
def test_padding_and_the_rows_beside_change_nothing(backbone, name, fields):
    """A short row alone, and padded beside others."""
    objective, network = pair(backbone, name, fields)
    batch, n = rows(), 3
    segments = torch.zeros_like(batch.tokens)
    segments[1, n + 1 :] = -1
    scored = batch.scored & (segments >= 0)
    padded = Batch(torch.where(segments < 0, 0, batch.tokens), scored, segments, torch.arange(T + 1).expand(4, -1))
    draws = draws_for(objective)
    together = objective.score(network, padded, draws)
    alone = Batch(batch.tokens[1:2, : n + 1], batch.scored[1:2, : n + 1])
    own = objective.score(network, alone, {k: _first(k, v[1:2], n, fields) for k, v in draws.items()})
    torch.testing.assert_close(together[1:2, :n], own, atol=1e-9, rtol=0)
    assert not together[1, n:].any()


def _first(name, draw, n, fields):
    if draw.dim() == 1:
        return draw
    if name.endswith("level"):
        return draw[:, : -(-n // fields["block"])]
    return draw[:, :n].argsort(1).argsort(1) if name.endswith("order") else draw[:, :n]


@every_pair
@torch.no_grad()
def test_what_is_given_is_shown_as_it_is(backbone, name, fields):
    """Over many draws: a token that is not asked for is never corrupted, and one that is asked for is."""
    if name in ("any_order", "embedding_flow") or "hidden_inputs" in fields:
        pytest.skip("shows each token once, in another order; shows none, but draws; hides inputs on purpose")
    objective, network = pair(backbone, name, fields)
    batch = rows()
    asked = batch.scored[:, 1:].clone()
    asked[:, 1:] |= (batch.tokens[:, 2:] == BOS) & batch.scored[:, 1:-1]
    was_corrupted = torch.zeros_like(asked)
    for seed in range(12):
        ears = Overheard(network)
        objective.loss(ears, batch, draws_for(objective, seed=seed))
        for tokens, layout, _ in ears.seen:
            if layout.direction == "causal":
                assert torch.equal(tokens, batch.tokens[:, :-1])
                continue
            if layout.direction == "blocks":
                tokens, clean = tokens.chunk(2, dim=1)
                assert torch.equal(clean, batch.tokens[:, 1:].repeat(len(tokens) // 4, 1))
            for shown in tokens.split(4):
                is_changed = shown != batch.tokens[:, 1:]
                assert not (is_changed & ~asked).any()
                was_corrupted |= is_changed
    if name != "autoregressive":
        assert torch.equal(was_corrupted, asked)


@every_pair
def test_in_single_precision_too(backbone, name, fields):
    objective, network = pair(backbone, name, fields)
    batch, draws = rows(), draws_for(objective)
    exact = objective.loss(network, batch, draws)
    loss = objective.loss(network.float(), batch, draws)
    assert loss.total.dtype == loss.nats.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), exact.total.detach(), rtol=1e-3, atol=1e-3)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@every_pair
def test_a_row_in_which_nothing_is_asked_costs_nothing(backbone, name, fields):
    objective, network = pair(backbone, name, fields)
    batch = rows()
    nothing = Batch(batch.tokens, torch.zeros_like(batch.scored))
    loss = objective.loss(network, nothing, draws_for(objective))
    assert float(loss.total.detach()) == float(loss.nats) == 0 and int(loss.n_tokens) == 0
    loss.total.backward()
    assert not any(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("backbone", names("backbones"))
def test_a_mixture_is_the_weighted_sum_of_its_terms(backbone):
    objective, network = pair(backbone, "mixture", CASES["mixture"][0])
    batch, draws = rows(), draws_for(objective)
    left, masks = make("objectives", "autoregressive", {}), make("objectives", "masked_diffusion", {})
    own = {k.removeprefix("masks."): v for k, v in draws.items()}
    found, first, second = (
        objective.loss(network, batch, draws),
        *(o.loss(network, batch, d) for o, d in ((left, {}), (masks, own))),
    )
    torch.testing.assert_close(found.total, first.total + 0.5 * second.total)
    assert torch.equal(found.nats, first.nats)
    assert torch.equal(found.parts["left"], first.nats) and torch.equal(found.parts["masks"], second.nats)
    assert objective.kind == "exact" and objective.views == ("next_token", "absorbing")
    torch.testing.assert_close(objective.score(network, batch, draws), left.score(network, batch, {}))


@pytest.mark.parametrize("backbone", names("backbones"))
@torch.no_grad()
def test_rows_as_long_as_the_learned_positions_fit_with_isolated_documents(backbone):
    """max_length is the window T: the last token of a document that fills its row stands at place T - 1."""
    for name in ("masked_diffusion", "block_diffusion"):
        objective = make("objectives", name, {})
        shape = TINY[backbone] | ({"max_length": T} if backbone == "gpt" else {})
        from armillary.model.network import LanguageNetwork

        network = LanguageNetwork(make("backbones", backbone, shape), VOCABULARY, n_extra=1).double()
        batch = rows()
        whole = Batch(batch.tokens, batch.scored)
        isolated = Batch(batch.tokens, batch.scored, torch.zeros_like(batch.tokens), torch.arange(T + 1).expand(4, -1))
        draws = draws_for(objective)
        apart = objective.score(network, isolated, draws)
        torch.testing.assert_close(apart, objective.score(network, whole, draws), atol=1e-9, rtol=0)
