"""What every parallel sampler keeps to, whatever its law: given tokens, independent rows, evaluations, when it ends."""

from __future__ import annotations

import math

import parallel_oracle as exact
import pytest
import torch
from parallel_oracle import Oracle, given_of, last

from armillary import registry
from armillary.contracts import Given, ParallelSampler
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.categorical import draw
from armillary.corruption.schedules import Cosine
from armillary.corruption.uniform import Uniform
from armillary.refusal import Refusal
from armillary.samplers._guidance import guided
from armillary.samplers._parallel import tempered
from armillary.samplers.ancestral import Ancestral
from armillary.samplers.confident import Confident
from armillary.samplers.first_hitting import FirstHitting
from armillary.samplers.remasking import Remasking

V, L = 3, 5
MASK = V
TABLE = exact.random_table(V, L, seed=7)
UNIFORM_LAW = exact.leave_one_out(exact.random_joint(V, L, seed=8), V, L, Cosine().alpha)
PATTERNS = [
    (None,) * L,
    (1, 2, None, None, None),
    (None, None, None, 0, 2),
    (None, 0, None, 1, None),
    (2, None, None, None, 2),
    (0, 1, 2, 0, 1),
]
SAMPLERS = [
    Ancestral(),
    Ancestral(steps=2, guidance=1.0, temperature=0.7),
    FirstHitting(),
    FirstHitting(guidance=0.5),
    Confident(),
    Confident(steps=2, temperature=0),
    Confident(by="margin", steps=3),
    Confident(by="entropy", guidance=0.5),
    Confident(chosen="after", steps=3),
    Remasking(rule="cap", eta=0.5),
    Remasking(rule="rescale", eta=0.9, steps=12, guidance=1.0),
]
CASES = [pytest.param(sampler, "absorbing", id=f"{type(sampler).__name__}-{i}") for i, sampler in enumerate(SAMPLERS)]
CASES += [
    pytest.param(sampler, "uniform", id=f"{type(sampler).__name__}-uniform-{i}")
    for i, sampler in enumerate(SAMPLERS[:2])
]


def view_of(process):
    if process == "uniform":
        return Oracle(Uniform(V, Cosine()), UNIFORM_LAW)
    return Oracle(Absorbing(V), TABLE)


def mixed():
    """One row of each pattern."""
    rows = [given_of(pattern, 1) for pattern in PATTERNS]
    return Given(torch.cat([row.tokens for row in rows]), torch.cat([row.is_given for row in rows]))


def seeded(rows):
    return [torch.Generator().manual_seed(1000 + row) for row in rows]


def some(given, rows):
    return Given(given.tokens[rows], given.is_given[rows])


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("ancestral", ("absorbing", "uniform")),
        ("first_hitting", ("absorbing",)),
        ("confident", ("absorbing",)),
        ("remasking", ("absorbing",)),
    ],
)
def test_each_is_a_part_by_the_name_of_its_file(name, views):
    sampler = registry.make("samplers", name, {})
    assert isinstance(sampler, ParallelSampler) and sampler.views == views


@pytest.mark.parametrize(("sampler", "process"), CASES)
def test_given_tokens_never_change_and_all_others_are_decided(sampler, process):
    given = mixed()
    states = list(sampler.run(view_of(process), given, seeded(range(len(PATTERNS)))))
    for state in states:
        assert torch.equal(state.tokens[given.is_given], given.tokens[given.is_given])
    assert states[-1].tokens.max() < V  # neither MASK nor anything beyond it


@pytest.mark.parametrize(("sampler", "process"), CASES)
def test_a_row_does_not_depend_on_the_rows_beside_it(sampler, process):
    given, everyone = mixed(), list(range(len(PATTERNS)))
    generators = seeded(everyone)
    together = last(sampler.run(view_of(process), given, generators)).tokens
    for rows in [[row] for row in everyone] + [everyone[::-1], [1, 4], [3, 3, 0]]:
        own = seeded(rows)
        tokens = last(sampler.run(view_of(process), some(given, rows), own)).tokens
        assert torch.equal(tokens, together[rows])
        # Where a row's next block begins does not depend on its neighbours either.
        assert all(torch.equal(g.get_state(), generators[row].get_state()) for g, row in zip(own, rows, strict=True))


@pytest.mark.parametrize(("sampler", "process"), CASES)
def test_a_state_stays_what_it_was(sampler, process):
    kept = []
    for state in sampler.run(view_of(process), mixed(), seeded(range(len(PATTERNS)))):
        kept.append((state.tokens, state.tokens.clone()))
    assert len(kept) > 2 and all(torch.equal(now, then) for now, then in kept)
    assert not torch.equal(kept[0][0], kept[-1][0])


@pytest.mark.parametrize(("sampler", "process"), CASES)
def test_evaluations_are_the_rows_that_the_network_was_asked_for(sampler, process):
    view = view_of(process)
    states = list(sampler.run(view, mixed(), seeded(range(len(PATTERNS)))))
    assert states[0].n_evaluations == 0
    assert states[-1].n_evaluations * len(PATTERNS) == sum(int(asked.sum()) for asked in view.asked) > 0
    asked_of_the_whole_row = torch.stack(view.asked)[:, PATTERNS.index((0, 1, 2, 0, 1))]
    assert not bool(asked_of_the_whole_row.any())


def test_no_evaluation_of_a_row_that_did_not_change():
    view = Oracle(Absorbing(V), TABLE)
    n_rows = 50
    states = list(Ancestral(steps=300).run(view, given_of((None,) * L, n_rows), seeded(range(n_rows))))
    n_asked = torch.stack(view.asked).sum(0)
    assert int(n_asked.max()) <= L and 4 < states[-1].n_evaluations <= L
    for row in range(n_rows):
        seen = [tuple(seen[row].tolist()) for seen, asked in zip(view.seen, view.asked, strict=True) if asked[row]]
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize("sampler", [Ancestral(steps=300), FirstHitting(), Confident(), Remasking(steps=300, eta=0)])
def test_it_stops_when_nothing_is_undecided(sampler):
    states = list(sampler.run(view_of("absorbing"), given_of((None,) * L, 3), seeded(range(3))))
    is_decided = [bool((state.tokens < V).all()) for state in states]
    assert is_decided.count(True) == 1 and is_decided[-1]
    assert len(states) < 300


def test_a_row_that_is_given_whole_comes_back_at_once():
    for sampler in SAMPLERS:
        (state,) = sampler.run(view_of("absorbing"), given_of((0, 1, 2, 0, 1), 2), seeded(range(2)))
        assert state.tokens.tolist() == [[0, 1, 2, 0, 1]] * 2 and state.n_evaluations == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_positions_given_as_mask_stay_masked(sampler):
    """Later blocks of a row that is written in blocks."""
    tokens = last(sampler.run(view_of("absorbing"), given_of((1, None, None, MASK, MASK), 4), seeded(range(4)))).tokens
    assert bool((tokens[:, 3:] == MASK).all()) and bool((tokens[:, :3] < V).all())


def test_one_step_takes_one_evaluation_and_none_spread_over_them():
    given = given_of((None, None, 1, None, None), 8)
    one = last(Confident(steps=1).run(view_of("absorbing"), given, seeded(range(8))))
    assert one.n_evaluations == 1
    counts = [
        int((state.tokens[0] == MASK).sum())
        for state in Confident(steps=3).run(view_of("absorbing"), given, seeded(range(8)))
    ]
    assert counts == [4, 3, 2, 0]
    assert last(Confident(steps=99).run(view_of("absorbing"), given, seeded(range(8)))).n_evaluations == 4


@pytest.mark.parametrize("sampler", [Ancestral, FirstHitting, Confident, Remasking])
def test_guidance_without_weight_or_without_anything_given_is_none(sampler):
    given = given_of((None, 0, None, 1, None), 30)
    plain = last(sampler().run(view_of("absorbing"), given, seeded(range(30))))
    zero = last(sampler(guidance=0.0).run(view_of("absorbing"), given, seeded(range(30))))
    pushed = last(sampler(guidance=3.0).run(view_of("absorbing"), given, seeded(range(30))))
    assert torch.equal(plain.tokens, zero.tokens) and plain.n_evaluations == zero.n_evaluations
    assert not torch.equal(plain.tokens, pushed.tokens) and pushed.n_evaluations > plain.n_evaluations
    nothing = given_of((None,) * L, 30)
    free = last(sampler().run(view_of("absorbing"), nothing, seeded(range(30))))
    alone = last(sampler(guidance=3.0).run(view_of("absorbing"), nothing, seeded(range(30))))
    assert torch.equal(free.tokens, alone.tokens) and free.n_evaluations == alone.n_evaluations


def test_guidance_by_hand():
    p, alone, none = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.0, 0.4, 0.6]])
    weights = [0.5**3 / 0.2**2, 0.3**3 / 0.3**2, 0.2**3 / 0.5**2]
    expected = torch.tensor([[w / sum(weights) for w in weights]])
    torch.testing.assert_close(guided(p.log(), alone.log(), 2.0).exp(), expected)
    torch.testing.assert_close(guided(p.log(), alone.log(), 0.0).exp(), p)
    forbidden = guided(none.log(), none.log(), 2.0).exp()  # an id that nobody may write, on both sides
    torch.testing.assert_close(forbidden, none)
    assert guided(none.log(), alone.log(), 2.0).exp()[0, 0] == 0
    torch.testing.assert_close(guided(p.log(), none.log(), 2.0).exp(), torch.tensor([[1.0, 0.0, 0.0]]))


def test_temperature_by_hand():
    log_p = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]).log()
    assert tempered(log_p, 1.0) is log_p
    assert tempered(log_p, 0.0).exp().tolist() == [[1, 0, 0], [0, 1, 0]]
    torch.testing.assert_close(tempered(log_p, 0.5).exp()[0], torch.tensor([4.0, 1.0, 1.0]) / 6)
    assert tempered(log_p, 0.5)[1, 0] == -math.inf


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_a_law_s_certainty_is_not_one_of_what_was_drawn(by):
    with pytest.raises(Refusal, match="chosen: before"):
        registry.make("samplers", "confident", {"by": by, "chosen": "after"})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ancestral", {"steps": 0}),
        ("ancestral", {"guidance": -1}),
        ("ancestral", {"temperature": float("nan")}),
        ("confident", {"by": "courage"}),
        ("remasking", {"eta": 1.5}),
        ("first_hitting", {"steps": 3}),
    ],
)
def test_other_settings_are_refused(name, fields):
    with pytest.raises(Refusal, match=f"samplers/{name}: .*{next(iter(fields))}"):
        registry.make("samplers", name, fields)


@pytest.mark.parametrize("sampler", [Ancestral(), FirstHitting(), Confident(), Remasking()])
def test_a_model_without_numbers_is_refused(sampler):
    view = Oracle(Absorbing(V), TABLE * math.nan)
    with pytest.raises(Refusal, match="NaN weights"):
        list(sampler.run(view, given_of((None,) * L, 2), seeded(range(2))))


def test_a_generator_for_each_row():
    with pytest.raises(ValueError, match="1 generators for 2 rows"):
        list(Ancestral().run(view_of("absorbing"), given_of((None,) * L, 2), seeded([0])))


def test_a_draw_finds_every_token_of_a_long_tail():
    """Sums in float32 would give eleven in twelve of these tokens nothing: their weights are below its last digit."""
    weights = torch.full((1, 1_000_000), 1e-8, dtype=torch.float64)
    weights[0, 0] = 1.0
    tokens = torch.arange(100_000, 1_000_000, 90_001)
    middles = (1 + 1e-8 * (tokens.double() - 0.5)) / weights.sum()
    assert torch.equal(draw(weights.expand(len(tokens), -1), middles), tokens)
