"""Forward processes, their posteriors and their steps back: against Bayes' rule, and against counts of draws."""

from __future__ import annotations

import itertools

import pytest
import torch

from armillary.corruption import categorical
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.schedules import Cosine, Geometric
from armillary.corruption.uniform import Uniform

V = 4
PROCESSES = [Absorbing(V), Absorbing(V, Cosine()), Uniform(V), Uniform(V, Geometric(low=0.01, high=2.0))]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}-{p.schedule.name}")
PAIRS = [(0.3, 0.1), (0.9, 0.45), (1.0, 0.6), (0.5, 0.0), (1.0, 0.0)]


def at(x):
    return torch.tensor([x], dtype=torch.float64)


def kernel(process, alpha):
    """(S, S), row x: what a token becomes where it stays with probability alpha."""
    n = process.n_states
    noise = torch.full((n,), 1 / V).double() if n == V else torch.nn.functional.one_hot(torch.tensor(V), n).double()
    return alpha * torch.eye(n, dtype=torch.float64) + (1 - alpha) * noise


def is_likely(counts, p, n_sigma=5.0):
    """χ² of counts under p, against its own spread; what cannot happen has not."""
    assert not counts[p == 0].any()
    counts, p = counts[p > 0].double(), p[p > 0]
    chi2 = float(((counts - counts.sum() * p) ** 2 / (counts.sum() * p)).sum())
    df = len(p) - 1
    return chi2 < df + n_sigma * (2 * df) ** 0.5 + 1e-9


@each
@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_corrupt_follows_its_law_over_a_grid_of_u(process, t):
    """A million evenly spaced numbers in place of draws: shares are right to 1e-5."""
    n = 1_000_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for token in range(V):
        z = process.corrupt(torch.full((1, n), token), at(t)[:, None], u[None])[0]
        shares = torch.bincount(z, minlength=process.n_states) / n
        expected = kernel(process, float(process.schedule.alpha(at(t))))[token]
        torch.testing.assert_close(shares.double(), expected, atol=1e-5, rtol=0)


@each
def test_corrupt_follows_its_law_over_draws(process):
    u = torch.rand(1, 50_000, generator=torch.Generator().manual_seed(0))
    z = process.corrupt(torch.full((1, 50_000), 2), torch.tensor([[0.6]]), u)[0]
    alpha = float(process.schedule.alpha(at(0.6)))
    assert is_likely(torch.bincount(z, minlength=process.n_states), kernel(process, alpha)[2])
    assert not is_likely(torch.bincount(z, minlength=process.n_states), kernel(process, alpha - 0.02)[2])


@each
def test_nothing_changes_at_t_zero(process):
    tokens = torch.arange(V).repeat(500)[None]
    u = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    u[0, :4] = 1 - 2**-24
    assert torch.equal(process.corrupt(tokens, torch.zeros(1, 1), u), tokens)


@each
def test_each_position_has_its_own_t(process):
    tokens = torch.zeros(2, 2, dtype=torch.long)
    u = torch.full((2, 2), 0.999)
    z = process.corrupt(tokens, torch.tensor([[0.0, 0.9], [0.9, 0.0]]), u)
    assert (z != 0).tolist() == [[False, True], [True, False]]


@each
def test_the_prior_is_what_all_becomes(process):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5)[None] / 100_000
    shares = torch.bincount(process.prior(u)[0], minlength=process.n_states) / 100_000
    torch.testing.assert_close(shares.double(), kernel(process, 0.0)[0], atol=2e-5, rtol=0)
    top = process.prior(torch.full((1, 1), 1 - 2**-53, dtype=torch.float64))
    assert int(top) < process.n_states


@each
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_the_posterior_is_bayes_rule(process, t, s):
    """For a clean token that is known, and for one that is not."""
    alpha_t, alpha_s = (float(process.schedule.alpha(at(x))) for x in (t, s))
    step, before = kernel(process, alpha_t / alpha_s), kernel(process, alpha_s)
    z = torch.arange(process.n_states)
    for token in range(V):
        truth = before[token][None] * step.T  # (z_t, z_s)
        can_happen = truth.sum(1) > 0
        p0 = torch.nn.functional.one_hot(torch.full_like(z, token), V).double()
        found = process.posterior(z[can_happen], p0[can_happen], at(t), at(s))
        expected = (truth / truth.sum(1, keepdim=True).clamp(min=1e-300))[can_happen]
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # p0 given all other positions: the law of x before this position is looked at.
    p0 = torch.rand(V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p0 = p0 / p0.sum()
    joint = torch.einsum("x,xs,sz->zs", p0, before[:V], step)
    can_happen = joint.sum(1) > 0
    found = process.posterior(z[can_happen], p0.expand(int(can_happen.sum()), -1), at(t), at(s))
    if process.name == "absorbing":  # an unmasked token is certain, whatever p0 says of it
        found, joint, can_happen = found[-1:], joint[-1:], can_happen[-1:]
    torch.testing.assert_close(found, (joint / joint.sum(1, keepdim=True))[can_happen], atol=1e-12, rtol=0)


@each
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_steps_back_with_the_true_clean_token_keep_the_marginals(process, t, s):
    alpha_t, alpha_s = (float(process.schedule.alpha(at(x))) for x in (t, s))
    for token in range(V):
        law = kernel(process, alpha_t)[token]
        states = law.nonzero()[:, 0]
        p0 = torch.nn.functional.one_hot(torch.full_like(states, token), V).double()
        after = law[states] @ process.posterior(states, p0, at(t), at(s))
        torch.testing.assert_close(after, kernel(process, alpha_s)[token], atol=1e-12, rtol=0)


@each
def test_two_steps_back_are_as_good_as_one(process):
    """Chapman-Kolmogorov: with a clean token that is known, t → r → s is t → s."""
    t, r, s = at(0.8), at(0.5), at(0.2)
    z = torch.tensor([V if process.n_states > V else 1])
    p0 = torch.nn.functional.one_hot(torch.tensor([3]), V).double()
    once = process.posterior(z, p0, t, s)[0]
    middle = process.posterior(z, p0, t, r)[0]
    states = middle.nonzero()[:, 0]
    twice = middle[states] @ process.posterior(states, p0.expand(len(states), -1), r, s)
    torch.testing.assert_close(twice, once, atol=1e-12, rtol=0)


@each
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.45), (0.5, 0.0)])
def test_reverse_draws_from_the_posterior_and_nowhere_else(process, t, s):
    """Positions outside `where` stay; two positions of a row are independent."""
    n, g = 40_000, torch.Generator().manual_seed(4)
    noisy = V if process.n_states > V else 1
    tokens = torch.tensor([[noisy, 2, noisy, 3]]).expand(n, -1)
    where = torch.tensor([[True, True, True, False]]).expand(n, -1)
    p0 = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4], [0.05, 0.05, 0.1, 0.8]], dtype=torch.float64)
    u = torch.rand(n, 4, 2, generator=g)
    log_p0 = p0.log().repeat(n, 1)
    out = process.reverse(tokens, where, log_p0, at(t).expand(n), at(s).expand(n), u)
    assert torch.equal(out[:, 3], tokens[:, 3])
    law = process.posterior(tokens[0, :3], p0, at(t), at(s))
    for place in range(3):
        assert is_likely(torch.bincount(out[:, place], minlength=process.n_states), law[place])
    joint = torch.bincount(out[:, 0] * process.n_states + out[:, 2], minlength=process.n_states**2)
    assert is_likely(joint, (law[0][:, None] * law[2][None]).flatten())
    if process.name == "absorbing":
        assert torch.equal(out[:, 1], tokens[:, 1])  # what is revealed stays
    assert process.undecided(tokens[:1]).tolist() == [[process.n_states == V or x == V for x in tokens[0].tolist()]]


def test_a_last_step_reveals_all_and_never_writes_mask():
    u = torch.rand(500, 6, 2, generator=torch.Generator().manual_seed(5))
    u[0] = 1 - 2**-24
    tokens = torch.full((500, 6), V)
    log_p0 = torch.zeros(3000, V).log_softmax(-1)
    for t in (1.0, 0.3, 1e-4):
        out = Absorbing(V).reverse(tokens, tokens == V, log_p0, torch.full((500,), t), torch.zeros(500), u)
        assert int(out.max()) < V


def test_draws_follow_their_weights_and_a_weight_of_zero_is_never_drawn():
    weights = torch.tensor([0.0, 2.0, 0.0, 5.0, 1.0, 0.0])
    u = (torch.arange(80_000, dtype=torch.float64) + 0.5) / 80_000
    counts = torch.bincount(categorical.draw(weights.expand(80_000, -1), u), minlength=6)
    assert counts.tolist() == [0, 20_000, 0, 50_000, 10_000, 0]
    edges = torch.tensor([0.0, 0.26, 0.88, 1 - 2**-53], dtype=torch.float64)
    for scale in (1e-30, 0.7, 3.0, 1e30):
        assert categorical.draw((weights * scale).expand(4, -1), edges).tolist() == [1, 3, 4, 4]


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 7.0])
def test_the_tail_of_a_large_vocabulary_is_drawn(scale):
    """Half of the mass in a hundred thousand tokens of 5e-6 each, which float32 noise would lose."""
    n = 100_000
    weights = torch.cat([torch.ones(1), torch.full((n,), 1 / n)]) * scale
    u = torch.rand(200, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    drawn = torch.cat([categorical.draw(weights.expand(50, -1), part) for part in u.split(50)])
    assert torch.equal(drawn == 0, u < 0.5)
    expected = 1 + ((u[u >= 0.5] - 0.5) * 2 * n).long()
    assert int((drawn[drawn > 0] - expected).abs().max()) <= 1


def test_every_pair_of_times_keeps_tokens_in_range():
    g = torch.Generator().manual_seed(7)
    for process, (t, s) in itertools.product(PROCESSES, [(1.0, 0.0), (1e-3, 0.0), (1.0, 0.999)]):
        tokens = process.prior(torch.rand(50, 3, generator=g))
        where = process.undecided(tokens)
        log_p0 = torch.randn(int(where.sum()), V, generator=g).log_softmax(-1)
        out = process.reverse(
            tokens, where, log_p0, torch.full((50,), t), torch.full((50,), s), torch.rand(50, 3, 2, generator=g)
        )
        assert int(out.min()) >= 0 and int(out.max()) < process.n_states
