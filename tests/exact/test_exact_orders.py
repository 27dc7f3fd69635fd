"""Any-order autoregression: a distribution in every order, in one pass; autoregression: the chain rule."""

from __future__ import annotations

import pytest
import torch
from oracle import all_orders, all_texts
from tiny import L, V, batch_of, for_each_text, mean_loss, network_for, scores

from armillary.contracts import BOS, Batch, Layout
from armillary.objectives.any_order import reading
from armillary.registry import make, names

TEXTS = all_texts(V, L)


def any_order():
    return make("objectives", "any_order", {})


@pytest.fixture(params=names("backbones"))
def network(request):
    return network_for(request.param, any_order())


@torch.no_grad()
def test_it_is_a_distribution_in_every_order_and_another_in_each(network):
    nats = scores(any_order(), network, TEXTS, {"order": all_orders(L)})
    torch.testing.assert_close(nats.neg().exp().sum(0), torch.ones(len(all_orders(L)), dtype=torch.float64))
    assert float(nats.std(1).min()) > 1e-3
    total, own = mean_loss(any_order(), network, TEXTS, {"order": all_orders(L)})
    assert float(total) == pytest.approx(float(nats.mean(1).sum())) == float(own)


@torch.no_grad()
def test_one_pass_is_the_same_as_token_by_token(network):
    """Position after position, the network is shown only what has been read, and where, and what it is asked."""
    for rank in all_orders(L):
        sequence = rank.argsort()  # the place that is read k-th
        nats = any_order().score(network, batch_of(TEXTS), for_each_text({"order": rank[None]}, len(TEXTS)))
        for k, place in enumerate(sequence.tolist()):
            before = sequence[:k]
            read = torch.nn.functional.pad(TEXTS[:, before], (1, 0), value=BOS)
            at = torch.nn.functional.pad(before + 1, (1, 0)).expand(len(TEXTS), -1)
            to = (sequence[: k + 1] + 1).expand(len(TEXTS), -1)
            hidden = network.hidden(read, Layout("causal", positions=at, target_positions=to))[:, -1]
            alone = network.head.nll(hidden, TEXTS[:, place])
            torch.testing.assert_close(nats[:, place], alone, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_target_matters_and_so_does_the_place_of_what_was_read(network):
    sequence = torch.arange(L)[None]
    layout, tokens = reading(sequence), torch.tensor([[BOS, 0, 2]])
    hidden = network.hidden(tokens, layout)
    for field in ("positions", "target_positions"):
        other = {name: getattr(layout, name) for name in ("positions", "target_positions")}
        other[field] = other[field].roll(1, 1)  # not turned round: distances would be the same
        assert not torch.allclose(network.hidden(tokens, Layout("causal", **other)), hidden)


@torch.no_grad()
def test_what_is_given_is_read_first_and_costs_nothing(network):
    scored = torch.tensor([True, False, True])
    nats = scores(any_order(), network, TEXTS, {"order": all_orders(L)}, scored)
    total = nats.neg().exp().view(V, V, V, -1).sum((0, 2))
    given = torch.arange(V) != BOS  # behind a scored token, that one is paid for
    torch.testing.assert_close(total[given], torch.ones(V - 1, 6, dtype=torch.float64))
    assert float(total[BOS].max()) < 1


@torch.no_grad()
def test_isolated_documents_are_read_one_after_the_other(network):
    """Two documents and padding in a row cost what each costs alone."""
    rank = torch.tensor([[3, 1, 0, 2, 4]])
    first, second = torch.tensor([[BOS, 2, 0]]), torch.tensor([[BOS, 0]])
    tokens = torch.cat([first, second, torch.zeros(1, 1, dtype=torch.long)], 1)
    scored = torch.tensor([[False, True, True, False, True, False]])
    segments, positions = torch.tensor([[0, 0, 0, 1, 1, -1]]), torch.tensor([[0, 1, 2, 0, 1, 0]])
    together = any_order().score(network, Batch(tokens, scored, segments, positions), {"order": rank})
    for document, places in ((first, slice(0, 2)), (second, slice(3, 4))):
        n = document.shape[1] - 1
        own = Batch(document, torch.tensor([[False] + [True] * n]))
        alone = any_order().score(network, own, {"order": rank[:, places].argsort(1).argsort(1)})
        torch.testing.assert_close(together[:, places], alone, atol=1e-12, rtol=0)
    assert together[0, 2] == together[0, 4] == 0


def test_the_gradient_is_that_of_the_plain_formula(network):
    rank = any_order().draw(len(TEXTS), L, torch.Generator().manual_seed(0))["order"]
    sequence, parameters = rank.argsort(1), list(network.parameters())
    targets = TEXTS.gather(1, sequence)
    read = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=BOS)
    at = torch.nn.functional.pad(sequence[:, :-1] + 1, (1, 0))
    rows = network.hidden(read, Layout("causal", positions=at, target_positions=sequence + 1))
    log_p = torch.log_softmax(rows @ network.embedding.weight.T, -1)
    plain = torch.autograd.grad(-log_p.gather(2, targets[..., None]).sum(), parameters)
    fast = torch.autograd.grad(any_order().loss(network, batch_of(TEXTS), {"order": rank}).total, parameters)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("backbone", names("backbones"))
@torch.no_grad()
def test_autoregression_is_the_chain_rule(backbone):
    objective = make("objectives", "autoregressive", {})
    network = network_for(backbone, objective)
    nats = objective.score(network, batch_of(TEXTS), {})
    assert float(nats.sum(1).neg().exp().sum()) == pytest.approx(1, abs=1e-12)
    for k in range(L):
        read = torch.nn.functional.pad(TEXTS[:, :k], (1, 0), value=BOS)
        alone = network.head.nll(network.hidden(read, Layout("causal"))[:, -1], TEXTS[:, k])
        torch.testing.assert_close(nats[:, k], alone, atol=1e-12, rtol=0)
