"""Speculative any-order sampling: the law of the model, whatever was drafted, and no more evaluations than tokens."""

from __future__ import annotations

import itertools

import pytest
import torch

from armillary.contracts import AnyOrder, Given
from armillary.model.any_order import AnyOrderView
from armillary.model.network import LanguageNetwork
from armillary.refusal import Refusal
from armillary.registry import make
from armillary.samplers.speculative import Speculative, _excess

V, L, N, FEW = 3, 3, 20_000, 5_000
SMALL = {
    "gpt": {"d_model": 16, "n_layers": 2, "n_heads": 4, "d_ff": 16, "max_length": 8},
    "llama": {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 16},
}
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=L)))


def model(name="llama", n_vocab=V, seed=1):
    """Its tokens depend on each other, and none is too rare for a test of χ²."""
    torch.manual_seed(seed)
    network = LanguageNetwork(make("backbones", name, SMALL[name]), n_vocab, tied=False, is_told_targets=True)
    for parameter in network.backbone.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.7)
    torch.nn.init.normal_(network.embedding.weight, std=2.0)
    torch.nn.init.normal_(network.output_head.weight, std=0.2)
    return network.double().eval().requires_grad_(False)


def generators(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def nothing_given(n, length=L):
    return Given(torch.zeros(n, length, dtype=torch.long), torch.zeros(n, length, dtype=torch.bool))


def last(sampler, view, given, generators):
    *_, state = sampler.run(view, given, generators)
    return state


def law(view, orders, temperature=1.0):
    """Of every text: the mean over these orders of the product of its conditionals."""
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    everywhere = torch.ones_like(TEXTS, dtype=torch.bool)
    for order in orders:
        order = torch.tensor(order).expand_as(TEXTS).contiguous()
        log_p = torch.log_softmax(view.verify(TEXTS, order, everywhere) / temperature, 1).unflatten(0, TEXTS.shape)
        total += log_p.gather(2, TEXTS.gather(1, order)[..., None]).sum((1, 2)).exp()
    return total / len(orders)


def p_value(tokens, p):
    """Of the χ² test that these texts follow p."""
    code = (tokens * V ** torch.arange(L - 1, -1, -1)).sum(1)
    found, expected = torch.bincount(code, minlength=len(TEXTS)).double(), p * len(tokens)
    assert found[p == 0].sum() == 0
    found, expected = found[p > 0], expected[p > 0]
    assert expected.min() > 5
    statistic = ((found - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(found) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize(
    ("name", "drafts", "temperature"),
    [("gpt", True, 1.0), ("llama", True, 1.0), ("llama", False, 1.0), ("gpt", True, 0.8)],
)
def test_texts_follow_the_mean_law_of_all_orders(name, drafts, temperature):
    view = AnyOrderView(model(name))
    assert isinstance(view, AnyOrder)
    expected = law(view, list(itertools.permutations(range(L))), temperature)
    sampler = Speculative(drafts=drafts, temperature=temperature)
    found = last(sampler, view, nothing_given(N), generators(N))
    assert p_value(found.tokens, expected) > 1e-3


def test_most_drafts_of_this_model_are_refused_somewhere():
    """Otherwise the law above would say nothing of how a refused draft is made good."""
    view = AnyOrderView(model())
    state = last(Speculative(), view, nothing_given(2_000), generators(2_000))
    assert 2.15 < state.n_evaluations < L  # 2 where every draft is kept


@pytest.mark.parametrize("drafts", [True, False])
def test_what_is_given_is_read_first_and_left_as_it_is(drafts):
    view = AnyOrderView(model())
    given = nothing_given(FEW)
    given.tokens[:, 1], given.is_given[:, 1] = 2, True
    expected = law(view, [(1, 0, 2), (1, 2, 0)]) * (TEXTS[:, 1] == 2)
    found = last(Speculative(drafts=drafts), view, given, generators(FEW))
    assert (found.tokens[:, 1] == 2).all()
    assert p_value(found.tokens, expected / expected.sum()) > 1e-3


def test_rows_do_not_depend_on_the_rows_beside_them():
    view, given = AnyOrderView(model("gpt", n_vocab=9)), nothing_given(5, 6)
    given.tokens[1, 2:4], given.is_given[1, 2:4] = 4, True
    given.is_given[2] = True
    for drafts in (True, False):
        together = last(Speculative(drafts=drafts), view, given, generators(5))
        for i in range(5):
            row = Given(given.tokens[i : i + 1], given.is_given[i : i + 1])
            alone = last(Speculative(drafts=drafts), view, row, generators(1, first=i))
            assert torch.equal(alone.tokens[0], together.tokens[i])


def test_a_text_never_costs_more_evaluations_than_it_has_tokens():
    n = 6
    view = AnyOrderView(model("gpt", n_vocab=9))
    alone = [last(Speculative(), view, nothing_given(1, n), generators(1, first=i)).n_evaluations for i in range(50)]
    assert max(alone) <= n and min(alone) < n
    together = last(Speculative(), view, nothing_given(50, n), generators(50)).n_evaluations
    assert together == pytest.approx(sum(alone) / 50)
    assert last(Speculative(drafts=False), view, nothing_given(4, n), generators(4)).n_evaluations == n


def test_where_tokens_do_not_depend_on_each_other_two_evaluations_write_any_text():
    network = model("gpt", n_vocab=9)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    view = AnyOrderView(network)
    assert last(Speculative(), view, nothing_given(20, 7), generators(20)).n_evaluations == 2


def test_at_temperature_zero_drafts_change_nothing_but_the_work():
    view = AnyOrderView(model("llama", n_vocab=9))
    slow = last(Speculative(temperature=0, drafts=False), view, nothing_given(20, 6), generators(20))
    fast = last(Speculative(temperature=0), view, nothing_given(20, 6), generators(20))
    assert torch.equal(fast.tokens, slow.tokens)
    assert fast.n_evaluations < slow.n_evaluations


@pytest.mark.parametrize("drafts", [True, False])
def test_states_fill_up_and_hold_no_forbidden_id(drafts):
    view, n = AnyOrderView(model("gpt", n_vocab=9), forbidden={0, 1, 3}), 6
    given = nothing_given(40, n)
    given.tokens[:, 4], given.is_given[:, 4] = 3, True  # what is given may be anything
    states = list(Speculative(drafts=drafts).run(view, given, generators(40)))
    for before, after in itertools.pairwise(states):
        known = before.tokens < 9
        assert torch.equal(after.tokens[known], before.tokens[known])
        assert after.n_evaluations > before.n_evaluations
    assert (states[0].tokens < 9).sum(1).tolist() == [1] * 40 and states[0].n_evaluations == 0
    written = states[-1].tokens[:, [0, 1, 2, 3, 5]]
    assert (written < 9).all() and not torch.isin(written, torch.tensor([0, 1, 3])).any()


def test_everything_given_costs_nothing():
    given = Given(torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool))
    (state,) = Speculative().run(AnyOrderView(model()), given, generators(2))
    assert torch.equal(state.tokens, given.tokens) and state.n_evaluations == 0


def test_what_a_refused_draft_leaves():
    q, p = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    torch.testing.assert_close(_excess(q, p), torch.tensor([[0.3, 0.1, 0.0]]))
    assert torch.equal(_excess(q, q), q)  # rounding refused it: there is nothing to make good


@pytest.mark.parametrize("drafts", [True, False])
def test_a_broken_network_is_refused(drafts):
    network = model()
    torch.nn.init.constant_(network.embedding.weight, torch.nan)
    with pytest.raises(Refusal, match="NaN weights"):
        last(Speculative(drafts=drafts), AnyOrderView(network), nothing_given(2), generators(2))
