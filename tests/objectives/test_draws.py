"""Randomness of a step: stratified over the global batch, fine enough, and as good as promised."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import Told, batch_of, network_for, scores

from armillary.corruption.uniform import Uniform
from armillary.objectives import _masking
from armillary.registry import make

T, N = 128, 64


def masked(**fields):
    return make("objectives", "masked_diffusion", fields)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked_diffusion", {}),
        ("score_entropy", {}),
        ("score_entropy", {"process": "uniform"}),
        ("uniform_diffusion", {}),
        ("block_diffusion", {"block": 4}),
    ],
)
def test_levels_are_stratified_over_the_global_batch(name, fields):
    """One level in each sixteenth, so the halves that two processes get complete each other; for every block apart."""
    level = make("objectives", name, fields).draw(16, 12, seeded(0))["level"].view(16, -1)
    strata = (level.double() * 16).floor().long()
    assert torch.equal(strata.sort(0).values, torch.arange(16)[:, None].expand_as(strata))
    for half in (strata[:8], strata[8:]):
        assert not torch.equal(half.sort(0).values, torch.arange(0, 16, 2)[:, None].expand_as(half))
    if strata.shape[1] > 1:
        assert not torch.equal(strata[:, 0], strata[:, 1])
    assert float(level.max()) < 1 and float(level.min()) >= 0


def test_a_level_is_uniform_within_its_stratum_and_any_row_may_have_any():
    level = torch.stack([_masking.stratified(4, seeded(seed)) for seed in range(4000)])
    for column in (level, level.sort(1).values * 4 - torch.arange(4)):
        counts = torch.histc(column.double()[:, 0], bins=10, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 9 + 5 * math.sqrt(18)


def test_orders_are_permutations_and_each_is_as_likely():
    orders = torch.stack([_masking.random_order(1, 3, seeded(seed))[0] for seed in range(3000)])
    kinds, counts = orders.unique(dim=0, return_counts=True)
    assert len(kinds) == 6
    assert float(((counts - 500) ** 2 / 500).sum()) < 5 + 5 * math.sqrt(10)


@pytest.mark.parametrize(("name", "fields"), [("uniform_diffusion", {}), ("score_entropy", {"process": "uniform"})])
def test_little_noise_can_still_write_any_token(name, fields):
    """In float32, u has 17,000 values above 0.999: fewer than V, and a token out of V is chosen there."""
    u = make("objectives", name, fields).draw(2000, 2000, seeded(0))["u"]
    late = u[u > 0.999]
    assert late.unique().numel() == late.numel() > 3000
    V = 50_257
    written = Uniform(V).corrupt(torch.zeros(1, len(late), dtype=torch.long), torch.full((1, 1), 1e-3), late[None])
    expected = V * (1 - math.exp(-late.numel() / V))  # distinct tokens of as many fair draws
    assert written.unique().numel() == pytest.approx(expected, rel=0.02)


# --- unbiased


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked_diffusion", {}),
        ("masked_diffusion", {"pairs": False}),
        ("block_diffusion", {"block": 2, "pairs": False}),
        ("score_entropy", {}),
        ("any_order", {}),
    ],
)
@torch.no_grad()
def test_draws_are_unbiased(name, fields):
    """Means over the objective's own draws, against all draws enumerated."""
    from oracle import all_orders
    from tiny import counts, each_with_each

    objective = make("objectives", name, fields)
    network = network_for("llama", objective)
    text = torch.tensor([[2, 0, 1]])
    every: dict[str, torch.Tensor] = {"order": all_orders(3)}
    if name == "block_diffusion":
        every["level"] = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    elif name != "any_order":
        every["level"] = counts(3).float()
    exact = float(scores(objective, network, text, each_with_each(**every)).mean())
    means = []
    for seed in range(60):
        draws = objective.draw(40, 3, seeded(seed))
        means.append(float(scores(objective, network, text, draws).mean()))
    means = torch.tensor(means)
    assert abs(float(means.mean()) - exact) < 4 * float(means.std()) / math.sqrt(60)


@pytest.mark.parametrize(("name", "fields"), [("uniform_diffusion", {}), ("score_entropy", {"process": "uniform"})])
@torch.no_grad()
def test_draws_of_noise_are_unbiased(name, fields):
    """The mean over t and u, against quadrature over t and all noisy texts."""
    from oracle import all_texts, law, quadrature, uniform

    objective = make("objectives", name, fields)
    table = torch.randn(9, 2, 3, generator=seeded(0), dtype=torch.float64)

    def logits(tokens, level):
        own = torch.nn.functional.one_hot(tokens, 3) * torch.log1p(3 * (1 - level) / level.clamp(min=1e-3))[..., None]
        return table[tokens @ torch.tensor([3, 1])] + (own if name == "uniform_diffusion" else 0)

    told, text, states = Told(3, logits), torch.tensor([[2, 0]]), all_texts(3, 2)
    process = uniform(3, objective.schedule)
    exact = 0.0
    for t, weight in quadrature(12, 3, 0.0, 0.2) + quadrature(12, 1, 0.2, 1.0):
        alpha = process.alpha(max(t, 1e-5))
        u = alpha + (1 - alpha) * (states + 0.5) / 3
        level = torch.full((9,), t, dtype=torch.float64)
        p = law(process, text, states, max(t, 1e-5))
        exact += weight * float((p * scores(objective, told, text, {"level": level, "u": u})).sum())
    means = []
    for seed in range(40):
        draws = objective.draw(500, 2, seeded(seed))
        draws["level"] = draws["level"].double()
        means.append(float(scores(objective, told, text, draws).mean()))
    means = torch.tensor(means)
    assert abs(float(means.mean()) - exact) < 4 * float(means.std()) / math.sqrt(40)
    assert float(means.std()) / math.sqrt(40) < 0.1 * exact


# --- variance

WEIGHTS = -torch.log1p(-(torch.arange(T, dtype=torch.float64) + 0.5) / T)
"""Some tokens are dear and many are cheap, as in text: their spread is their mean."""


def fading(tokens, noise_level):
    """Nats of a token 0: more where more is hidden, and not the same everywhere."""
    share = (tokens == 2).double().mean(1, keepdim=True)
    nats = WEIGHTS * (1 + 4 * share) + 0.01
    return torch.stack([-nats, torch.log(-torch.expm1(-nats))], -1)


def spread(objective, n_rows, *, iid=False):
    """Standard deviation of nats per token over replicates of one step."""
    told, texts = Told(2, fading), torch.zeros(n_rows, T, dtype=torch.long)
    found = []
    for seed in range(60):
        draws = objective.draw(n_rows, T, seeded(seed))
        if iid:
            draws["level"] = torch.rand(n_rows, generator=seeded(10_000 + seed))
        found.append(float(objective.loss(told, batch_of(texts), draws).nats) / texts.numel())
    return float(torch.tensor(found).std()), sum(found) / len(found)


@torch.no_grad()
def test_each_refinement_lowers_the_variance():
    """t drawn freely > t stratified > k stratified > k in pairs, at 64 draws of 128 tokens."""
    iid, m0 = spread(masked(estimator="time", pairs=False), N, iid=True)
    time, m1 = spread(masked(estimator="time", pairs=False), N)
    count, m2 = spread(masked(pairs=False), N)
    paired, m3 = spread(masked(), N)
    print({"iid t": iid, "stratified t": time, "stratified k": count, "pairs": paired}, m0, m1, m2, m3)
    assert iid > 1.5 * time and time > 1.5 * count and count > 1.2 * paired
    for mean in (m0, m1, m3):
        assert mean == pytest.approx(m2, abs=5 * iid / math.sqrt(60))


@torch.no_grad()
def test_levels_that_were_not_stratified_would_be_noticed():
    count, _ = spread(masked(pairs=False), N)
    free, _ = spread(masked(pairs=False), N, iid=True)
    assert free > 2 * count


# --- weights


def test_weights_of_pairs():
    """k of n weighs n / k, halved where its complement is there too; all n stand alone with full weight."""
    open_, order = torch.ones(4, 4, dtype=torch.bool), torch.tensor([[0, 1, 2, 3]]).expand(4, -1)
    level = torch.tensor([0.1, 0.3, 0.6, 0.9])
    masking = _masking.by_count(open_, order, level, True)
    first, second = masking.weight.double().split(4)
    for row, k in enumerate((1, 2, 3, 4)):
        half = 1 if k == 4 else 2
        assert first[row].tolist() == pytest.approx([4 / k / half] * k + [0] * (4 - k))
        assert second[row].tolist() == pytest.approx([0] * k + [4 / (4 - k or 1) / 2] * (4 - k))
    assert torch.equal(masking.hidden, masking.weight > 0)
    assert first.sum() + second.sum() == pytest.approx(4 * 4)


def test_rows_with_few_open_positions():
    """k runs over the open positions of each row, not over the row."""
    open_ = torch.tensor([[False, True, False, True], [False] * 4, [True, False, False, False]])
    order = torch.tensor([[0, 3, 1, 2], [3, 2, 1, 0], [2, 0, 1, 3]])
    masking = _masking.by_count(open_, order, torch.tensor([0.2, 0.7, 0.99]), False)
    assert masking.weight.tolist() == [[0, 0, 0, 2], [0] * 4, [1, 0, 0, 0]]


@pytest.mark.parametrize("level", [0.0, 0.5, 1 - 2**-24])
def test_the_ends_of_the_level(level):
    masking = _masking.by_count(torch.ones(1, 5, dtype=torch.bool), torch.arange(5)[None], torch.tensor([level]), False)
    assert int(masking.hidden.sum()) == {0.0: 1, 0.5: 3}.get(level, 5)
