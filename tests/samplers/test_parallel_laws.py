"""Every parallel sampler draws from the law it claims: χ² against that law, enumerated in float64, by step count."""

from __future__ import annotations

import itertools
import math
from functools import partial

import parallel_oracle as exact
import pytest
import torch
from parallel_oracle import Oracle, given_of, last, p_value

from armillary.corruption.absorbing import Absorbing
from armillary.corruption.schedules import Cosine, LogLinear, Polynomial
from armillary.corruption.uniform import Uniform
from armillary.samplers.ancestral import Ancestral
from armillary.samplers.confident import Confident
from armillary.samplers.first_hitting import FirstHitting
from armillary.samplers.remasking import Remasking

V, L, N_ROWS = 3, 3, 20_000
NOTHING = (None, None, None)
TABLE = exact.random_table(V, L, seed=45)  # in which all ways of choosing differ much
GENERATORS = [torch.Generator() for _ in range(N_ROWS)]


def drawn(sampler, view, pattern=NOTHING, n_rows=N_ROWS):
    """The last state of many rows, the generator of each seeded anew."""
    generators = GENERATORS[:n_rows]
    for row, generator in enumerate(generators):
        generator.manual_seed(row)
    return last(sampler.run(view, given_of(pattern, n_rows), generators)).tokens


def always(table):
    return lambda t: table


def reversal(corruption, law, states, position, t, s):
    alphas = exact.alpha_of(corruption, t), exact.alpha_of(corruption, s)
    return exact.bayes(states[:, position], law(t)[:, position], *alphas, exact.prior_of(corruption))


def ancestral_law(corruption, law, n_steps, pattern=NOTHING):
    return exact.chain(corruption, partial(reversal, corruption, law), pattern, n_steps)


def order_mixture(table, pattern=NOTHING):
    """The law of rows revealed one position at a time, in an order drawn at random."""
    states = exact.all_states(V + 1, L).tolist()
    index = {tuple(state): i for i, state in enumerate(states)}
    law = torch.zeros(len(states), dtype=torch.float64)
    open_ = [i for i, token in enumerate(pattern) if token is None]
    for order in itertools.permutations(open_):
        for tokens in itertools.product(range(V), repeat=len(open_)):
            state = [V if token is None else token for token in pattern]
            p = 1 / math.factorial(len(open_))
            for position, token in zip(order, tokens, strict=True):
                p *= float(table[index[tuple(state)], position, token])
                state[position] = token
            law[index[tuple(state)]] += p
    return law


def total_variation(p, q):
    return float((p - q).abs().sum() / 2)


@pytest.mark.parametrize(
    ("steps", "schedule", "pattern"),
    [
        (1, LogLinear(), NOTHING),
        (2, Cosine(), NOTHING),
        (5, LogLinear(floor=0.1), NOTHING),
        (None, Polynomial(power=2), (None, 1, None)),
    ],
)
def test_ancestral_follows_its_finite_step_law(steps, schedule, pattern):
    corruption = Absorbing(V, schedule)
    tokens = drawn(Ancestral(steps=steps), Oracle(corruption, TABLE), pattern)
    n_steps = steps if steps is not None else sum(token is None for token in pattern)
    assert p_value(tokens, ancestral_law(corruption, always(TABLE), n_steps, pattern), V + 1) > 1e-3


def test_ancestral_asks_a_network_that_knows_the_noise_level_at_the_step_s_own_time():
    corruption = Absorbing(V)

    def law(t):
        return torch.softmax(TABLE.log() * (0.2 + 2 * t), dim=-1)

    tokens = drawn(Ancestral(steps=3), Oracle(corruption, law))
    assert p_value(tokens, ancestral_law(corruption, law, 3), V + 1) > 1e-3
    assert p_value(tokens, ancestral_law(corruption, always(law(1.0)), 3), V + 1) < 1e-6


@pytest.mark.parametrize(("steps", "pattern"), [(1, NOTHING), (3, NOTHING), (4, (2, None, None))])
def test_ancestral_from_uniform_noise(steps, pattern):
    corruption = Uniform(V, Cosine())
    law = exact.leave_one_out(exact.random_joint(V, L, seed=2), V, L, corruption.schedule.alpha)
    tokens = drawn(Ancestral(steps=steps), Oracle(corruption, law), pattern)
    assert p_value(tokens, ancestral_law(corruption, law, steps, pattern), V) > 1e-3


@pytest.mark.parametrize("corruption", [Absorbing(V, Cosine()), Uniform(V, Cosine())])
def test_the_corruption_s_posterior_is_that_of_bayes(corruption):
    z = torch.arange(corruption.n_states)
    p0 = exact.random_table(V, 1, seed=3)[: corruption.n_states, 0]
    t, s = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    alphas = exact.alpha_of(corruption, 0.7), exact.alpha_of(corruption, 0.4)
    expected = exact.bayes(z, p0, *alphas, exact.prior_of(corruption))
    torch.testing.assert_close(corruption.posterior(z, p0, t, s), expected)


def test_finite_steps_come_nearer_to_the_order_mixture():
    infinite = order_mixture(TABLE)
    distances = [
        total_variation(ancestral_law(Absorbing(V), always(TABLE), n), infinite) for n in (1, 2, 4, 16, 64, 256)
    ]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.05 and distances[-1] < 0.005


def test_one_step_is_seen_to_follow_another_law_than_infinitely_many():
    tokens = drawn(Ancestral(steps=1), Oracle(Absorbing(V), TABLE))
    assert p_value(tokens, order_mixture(TABLE), V + 1) < 1e-9


@pytest.mark.parametrize("pattern", [NOTHING, (None, None, 0)])
def test_first_hitting_follows_the_order_mixture(pattern):
    tokens = drawn(FirstHitting(), Oracle(Absorbing(V), TABLE), pattern)
    assert p_value(tokens, order_mixture(TABLE, pattern), V + 1) > 1e-3


@pytest.mark.parametrize("schedule", [Cosine(), LogLinear(floor=0.2)])
def test_first_hitting_tells_the_network_when(schedule):
    view = Oracle(Absorbing(V, schedule), TABLE)
    drawn(FirstHitting(), view)
    hidden = torch.full((N_ROWS,), 1 - exact.alpha_of(view.corruption, 1.0), dtype=torch.float64)
    for n, t in zip((3, 2, 1), view.times, strict=True):
        now = 1 - schedule.alpha(t)
        u = (now / hidden) ** n
        counts = (u * 20).long().clamp(0, 19)[:, None]
        assert p_value(counts, torch.full((20,), 1 / 20, dtype=torch.float64), 20) > 1e-3
        hidden = now


def tempered(p, temperature):
    if temperature == 0:
        return [float(x == max(p)) for x in p]
    weights = [x ** (1 / temperature) for x in p]
    return [w / sum(weights) for w in weights]


SURE = {
    "confidence": max,
    "margin": lambda p: sorted(p)[-1] - sorted(p)[-2],
    "entropy": lambda p: sum(x * math.log(x) for x in p),
}


def confident_law(by, chosen, n_each, temperature):
    """n_each: positions written at each step."""
    states = [tuple(state) for state in exact.all_states(V + 1, L).tolist()]
    index = {state: i for i, state in enumerate(states)}
    law = {(V,) * L: 1.0}
    for n in n_each:
        after: dict[tuple[int, ...], float] = {}
        for state, p in law.items():
            table = TABLE[index[state]].tolist()
            hidden = [i for i in range(L) if state[i] == V]
            surest = sorted(hidden, key=lambda i, table=table: -SURE[by](table[i]))[:n]
            for tokens in itertools.product(range(V), repeat=len(hidden)):
                of = dict(zip(hidden, tokens, strict=True))
                q = math.prod(tempered(table[i], temperature)[of[i]] for i in hidden)
                kept = surest
                if chosen == "after":
                    kept = sorted(hidden, key=lambda i, table=table, of=of: -table[i][of[i]])[:n]
                to = tuple(of[i] if i in kept else state[i] for i in range(L))
                after[to] = after.get(to, 0.0) + p * q
        law = after
    return torch.tensor([law.get(state, 0.0) for state in states], dtype=torch.float64)


@pytest.mark.parametrize(
    ("by", "chosen", "steps", "n_each", "temperature"),
    [
        ("confidence", "before", None, [1, 1, 1], 1.0),
        ("confidence", "before", 1, [3], 1.0),
        ("margin", "before", 2, [1, 2], 1.0),
        ("entropy", "before", 9, [1, 1, 1], 0.6),
        ("confidence", "after", None, [1, 1, 1], 1.0),
        ("confidence", "after", 2, [1, 2], 1.7),
        ("entropy", "before", None, [1, 1, 1], 0.0),
    ],
)
def test_confident_follows_its_choices(by, chosen, steps, n_each, temperature):
    sampler = Confident(by=by, chosen=chosen, steps=steps, temperature=temperature)
    tokens = drawn(sampler, Oracle(Absorbing(V), TABLE))
    assert p_value(tokens, confident_law(by, chosen, n_each, temperature), V + 1) > 1e-3


def test_the_ways_of_being_confident_are_seen_to_differ():
    laws = [confident_law(by, "before", [1, 1, 1], 1.0) for by in SURE] + [
        confident_law("confidence", "after", [1, 1, 1], 1.0)
    ]
    assert all(total_variation(p, q) > 0.2 for p, q in itertools.combinations(laws, 2))


def remasking_law(corruption, table, sampler, n_steps, pattern):
    def moves(states, position, t, s):
        alpha_t, alpha_s = exact.alpha_of(corruption, t), exact.alpha_of(corruption, s)
        most = 1.0 if alpha_t <= 1 - alpha_s else (1 - alpha_s) / alpha_t
        sigma = min(sampler.eta, most) if sampler.rule == "cap" else sampler.eta * most
        # A position is hidden at t with probability 1 - alpha_t, and must be with 1 - alpha_s at s.
        stays_hidden = (1 - alpha_s - alpha_t * sigma) / (1 - alpha_t)
        z = states[:, position, None]
        p0 = torch.nn.functional.pad(table[:, position], (0, 1))
        one_hot = torch.nn.functional.one_hot(states[:, position], V + 1).double()
        mask = exact.prior_of(corruption)
        return torch.where(z == V, stays_hidden * mask + (1 - stays_hidden) * p0, sigma * mask + (1 - sigma) * one_hot)

    return exact.chain(corruption, moves, pattern, n_steps)


@pytest.mark.parametrize(
    ("rule", "eta", "steps", "schedule", "pattern"),
    [
        ("cap", 0.3, 1, Cosine(), NOTHING),
        ("cap", 0.5, 4, Polynomial(power=2), NOTHING),
        ("rescale", 0.5, 4, LogLinear(), NOTHING),
        ("rescale", 1.0, 6, LogLinear(floor=0.1), (None, None, 2)),
    ],
)
def test_remasking_follows_its_chain(rule, eta, steps, schedule, pattern):
    corruption, sampler = Absorbing(V, schedule), Remasking(rule=rule, eta=eta, steps=steps)
    tokens = drawn(sampler, Oracle(corruption, TABLE), pattern)
    assert p_value(tokens, remasking_law(corruption, TABLE, sampler, steps, pattern), V + 1) > 1e-3
    if steps > 1:
        other = Remasking(rule="cap" if rule == "rescale" else "rescale", eta=0.5, steps=steps)
        assert p_value(tokens, remasking_law(corruption, TABLE, other, steps, pattern), V + 1) < 1e-3
        assert p_value(tokens, ancestral_law(corruption, always(TABLE), steps, pattern), V + 1) < 1e-6


def test_remasking_at_eta_zero_is_ancestral():
    view = Oracle(Absorbing(V), TABLE)
    tokens = drawn(Ancestral(steps=4), view, n_rows=500)
    assert torch.equal(drawn(Remasking(eta=0, steps=4), view, n_rows=500), tokens)


@pytest.mark.parametrize(("rule", "eta"), [("cap", 0.3), ("rescale", 0.9)])
def test_remasking_keeps_the_marginals(rule, eta):
    joint = exact.random_joint(V, 2, seed=4)
    view = Oracle(Absorbing(V), exact.conditionals(joint, V, 2))
    tokens = drawn(Remasking(rule=rule, eta=eta, steps=5), view, (None, None))
    for position, marginal in enumerate((joint.view(V, V).sum(1), joint.view(V, V).sum(0))):
        assert p_value(tokens[:, position : position + 1], marginal, V) > 1e-3


@pytest.mark.parametrize("sampler", [Ancestral(steps=2, temperature=0.5), FirstHitting(temperature=2.0)])
def test_temperature_is_of_each_token_s_law(sampler):
    table = TABLE ** (1 / sampler.temperature)
    table /= table.sum(-1, keepdim=True)
    law = order_mixture(table)
    if isinstance(sampler, Ancestral):
        law = ancestral_law(Absorbing(V), always(table), 2)
    assert p_value(drawn(sampler, Oracle(Absorbing(V), TABLE)), law, V + 1) > 1e-3


def guided_table(table, states, pattern, prior, weight):
    """By the formula, in probabilities. prior: what stands at the given positions of the unconditional pass."""
    hidden = states.clone()
    for position, token in enumerate(pattern):
        if token is not None:
            hidden[:, position] = prior
    p = table ** (1 + weight) / table[exact.index_of(hidden, int(states.max()) + 1)] ** weight
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("pattern", [(1, None, None), (None, 0, 2)])
def test_guidance_changes_the_law_by_its_formula(pattern):
    corruption = Absorbing(V)
    table = guided_table(TABLE, exact.all_states(V + 1, L), pattern, V, 1.5)
    tokens = drawn(Ancestral(steps=2, guidance=1.5), Oracle(corruption, TABLE), pattern)
    assert p_value(tokens, ancestral_law(corruption, always(table), 2, pattern), V + 1) > 1e-3
    assert p_value(tokens, ancestral_law(corruption, always(TABLE), 2, pattern), V + 1) < 1e-6


def test_guidance_from_uniform_noise_hides_what_is_given_under_one_draw_of_the_prior():
    corruption, pattern = Uniform(V), (1, None, None)
    law = exact.leave_one_out(exact.random_joint(V, L, seed=5), V, L, corruption.schedule.alpha)
    tokens = drawn(Ancestral(steps=2, guidance=2.0), Oracle(corruption, law), pattern)
    states = exact.all_states(V, L)
    laws = [
        ancestral_law(corruption, lambda t, seen=seen: guided_table(law(t), states, pattern, seen, 2.0), 2, pattern)
        for seen in range(V)
    ]
    assert p_value(tokens, torch.stack(laws).mean(0), V) > 1e-3
