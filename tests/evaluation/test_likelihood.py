"""Bounds and exact figures of a split: what is summed, what is drawn, and how wide the error is."""

from __future__ import annotations

import json
from itertools import product
from math import comb, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from armillary.contracts import BOS, EOS, Batch, Layout, Objective
from armillary.evaluation import likelihood
from armillary.evaluation.likelihood import Ranks, Windowing, measure, n_network_rows
from armillary.evaluation.orders import InOrder
from armillary.objectives._masking import undecided
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.records import Likelihood, student_t
from armillary.refusal import Refusal
from armillary.registry import make

V = 7
OBJECTIVES: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "masked_diffusion": {},
    "score_entropy": {},
    "block_diffusion": {"block": 3},
    "any_order": {},
}


def objective_of(name: str, **fields: Any) -> Objective:
    return make("objectives", name, OBJECTIVES[name] | fields)


def some_documents(seed: int = 0, n: int = 9) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, V, size=draw.integers(1, 12)).tolist() for _ in range(n)]


@pytest.fixture(scope="module")
def text(held_out_of):
    return held_out_of(some_documents())


def paid_bos(text: Any, window: int, stride: int) -> np.ndarray:
    """How many bos of each document are hidden: all but the first of the stream, and those behind a window's border."""
    split = text[0].split("test")
    end = len(split.tokens) - 1
    borders, last = set(), min(window, end)
    while last < end:
        borders.add(last + 1)
        last = min(last + stride, end)
    return np.array([start != 0 and start not in borders for start in split.document_starts.tolist()], dtype=int)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize(("window", "stride"), [(4, 4), (5, 2), (8, 3), (6, 1), (15, 15), (16, 7)])
def test_a_model_that_knows_nothing_pays_log_v_for_whatever_is_hidden(network_of, text, name, window, stride):
    """So the figure counts: nothing is lost or scored twice at the borders of windows, and no context is scored."""
    objective = objective_of(name)
    network = network_of(objective, V)
    torch.nn.init.zeros_(network.embedding.weight)
    split = text[0].split("test")
    lengths = np.diff([*split.document_starts.tolist(), len(split.tokens)]) - 1
    paid = 0 if name == "autoregressive" else paid_bos(text, window, stride)
    assert name == "autoregressive" or stride < 4 or paid.sum() > 0
    order = "left_to_right"
    for scoring in (objective, InOrder(objective, order, 5)):
        scores = measure(network, scoring, text, Windowing(window, stride, 3, samples=2))
        assert scores.tokens.tolist() == lengths.tolist()
        assert scores.nats.sum() == pytest.approx((lengths + paid).sum() * log(V), rel=1e-6)
        assert scores.likelihood.n_tokens == lengths.sum()
    np.testing.assert_allclose(scores.nats, (lengths + paid) * log(V), rtol=1e-9)  # of the exact one
    assert scores.likelihood.stderr_nats == 0


@pytest.mark.parametrize("isolated", [False, True])
def test_autoregressive_figures_are_what_they_were(network_of, held_out_of, isolated):
    """To the last bit: places that are not scored add a zero."""
    objective = objective_of("autoregressive")
    network, text = network_of(objective, V), held_out_of(some_documents(), isolated=isolated)
    split, windowing = text[0].split("test"), Windowing(8, 3, 4)
    expected = np.zeros(len(split.document_starts))
    windows = likelihood._Windows.of(text, windowing)
    for rows in windows.batches:
        places, _, batch = windows.batch(rows)
        scored = batch.scored[:, 1:].numpy()
        values = objective.score(network, batch, {}).double().numpy()
        np.add.at(expected, split.document_of(places[scored]), values[scored])
    found = measure(network, objective, text, windowing)
    assert found.nats.tolist() == expected.tolist()
    assert (found.likelihood.kind, found.likelihood.stderr_nats, found.likelihood.n_passes) == ("exact", 0.0, 1)


def test_windows_in_an_exact_order_by_hand(network_of, text):
    """Each place that no earlier window had, behind the context, everything after it hidden."""
    objective = objective_of("masked_diffusion")
    network, split = network_of(objective, V), text[0].split("test")
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    expected = np.zeros(len(split.document_starts))
    previous, last, window, stride = 0, 8, 8, 3
    while previous < len(tokens) - 1:
        row = tokens[last - window + 1 : last + 1]
        for place in range(previous + 1, last + 1):
            if tokens[place] == BOS and place == previous + 1:
                continue  # its eos is context, so that it is given
            at = place - (last - window + 1)
            masked = row.clone()
            masked[at:] = V
            log_p = network(masked[None], Layout("full"))[0, at]
            expected[split.document_of(np.array(place))] -= float(log_p[tokens[place]])
        previous, last = last, min(last + stride, len(tokens) - 1)
    found = measure(network, InOrder(objective, "left_to_right"), text, Windowing(window, stride))
    np.testing.assert_allclose(found.nats, expected, rtol=1e-10)
    assert found.likelihood.protocol.order == "left_to_right"


def enumerated_bound(network: Any, objective: Any, text: Any, windowing: Windowing) -> float:
    """Over all sets of hidden positions of all windows."""
    windows = likelihood._Windows.of(text, windowing)
    _, _, batch = windows.batch(slice(0, len(windows.ends)))
    open_ = undecided(batch)
    total = torch.zeros(len(open_), dtype=torch.float64)
    n = open_.sum(1)
    for chosen in product([False, True], repeat=open_.shape[1]):
        hidden = torch.tensor(chosen).expand_as(open_)
        k = sum(chosen)
        if k:
            is_part = (open_ | ~hidden).all(1)
            ways = torch.tensor([k * comb(int(m), k) or 1 for m in n], dtype=torch.float64)
            total += is_part * objective.score_where(network, batch, hidden, hidden).sum(1) / ways
    return float(total.sum())


def test_the_error_of_a_bound_covers(network_of, held_out_of):
    """300 measurements of 8 passes each; 95 % of the intervals hold the enumerated value, within 3 %."""
    objective = objective_of("masked_diffusion")
    document = np.random.default_rng(3).integers(3, V, size=118).tolist()
    network, text = network_of(objective, V), held_out_of([document])  # one document: no bootstrap to wait for
    windowing = Windowing(4, 4, 64)
    true = enumerated_bound(network, objective, text, windowing)
    found = []
    with torch.inference_mode():
        for seed in range(300):
            found.append(measure(network, objective, text, Windowing(4, 4, 64, seed=seed)).likelihood)
    assert all(f.kind == "monte_carlo_bound" and f.n_passes == 8 for f in found)
    errors = np.array([f.nats for f in found]) - true
    margins = np.array([f.margin_nats for f in found])
    assert abs(errors.mean()) < 4 * errors.std() / sqrt(len(errors))
    assert 0.92 <= (abs(errors) <= margins).mean() <= 0.98
    assert np.mean([f.stderr_nats for f in found]) == pytest.approx(errors.std(), rel=0.15)


def test_batches_ranks_and_strata_change_nothing(network_of, text, monkeypatch):
    monkeypatch.setattr(likelihood, "STRATUM", 7)
    for name in ("masked_diffusion", "block_diffusion", "any_order"):
        objective = objective_of(name)
        network = network_of(objective, V)
        one = measure(network, objective, text, Windowing(5, 2, 64, samples=3))
        assert len(likelihood._Windows.of(text, Windowing(5, 2)).ends) > 14
        for batch_rows in (3, 16):
            of_ranks: list[np.ndarray] = []

            def total(sums: np.ndarray, seen: list[np.ndarray] = of_ranks) -> np.ndarray:
                seen.append(sums)
                return np.sum(seen, axis=0)

            windowing = Windowing(5, 2, batch_rows, samples=3)
            two = [measure(network, objective, text, windowing, Ranks(rank, 2, total)) for rank in range(2)][-1]
            assert two.tokens.tolist() == one.tokens.tolist()
            np.testing.assert_allclose(two.nats, one.nats, rtol=1e-12)
            assert two.likelihood.stderr_nats == pytest.approx(one.likelihood.stderr_nats, rel=1e-9)
            assert all(sums[:-1].sum() > 0 for sums in of_ranks)


class Witness(MaskedDiffusion):
    """Writes down the draws it is asked to score."""

    def score(self, network: Any, batch: Batch, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        SEEN.append({name: draw.clone() for name, draw in draws.items()})
        return super().score(network, batch, draws)


SEEN: list[dict[str, torch.Tensor]] = []


def test_two_models_get_the_same_draws_and_two_passes_do_not(network_of, text):
    objective = Witness()
    seen = []
    for backbone, seed in (("gpt", 0), ("llama", 1)):
        SEEN.clear()
        measure(network_of(objective, V, backbone, seed), objective, text, Windowing(8, 8, 4, samples=2))
        seen.append(list(SEEN))
    first, second = seen
    assert len(first) == len(second) > 2
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("level", "order", "u", "drop"))
    half = len(first) // 2
    assert not torch.equal(first[0]["level"], first[half]["level"])
    assert not torch.equal(first[0]["order"], first[1]["order"])
    # Stratified over all windows of a pass, not over those of a batch.
    levels = torch.cat([drawn["level"] for drawn in first[:half]])
    assert (levels.double() * len(levels)).long().sort().values.tolist() == list(range(len(levels)))


def test_pairing_makes_a_comparison_narrower(network_of, text):
    """The difference of two like models varies less between seeds with equal draws than with others."""
    objective = objective_of("masked_diffusion")
    a, b = network_of(objective, V), network_of(objective, V)
    b.embedding.weight.add_(0.05 * torch.randn(b.embedding.weight.shape, generator=torch.Generator().manual_seed(0)))

    def nats(network: Any, seed: int) -> float:
        return measure(network, objective, text, Windowing(8, 8, 64, samples=1, seed=seed)).likelihood.nats

    paired = np.std([nats(a, s) - nats(b, s) for s in range(20)])
    apart = np.std([nats(a, s) - nats(b, s + 50) for s in range(20)])
    assert paired < 0.3 * apart


def test_one_pass_repeats_itself_and_tells_no_error(network_of, text):
    objective = objective_of("masked_diffusion")
    network = network_of(objective, V)
    first, again = (measure(network, objective, text, Windowing(8, 8, 4, samples=1)) for _ in range(2))
    assert first.nats.tolist() == again.nats.tolist()
    record = json.loads(json.dumps(first.likelihood.as_json(), allow_nan=False))
    assert (record["kind"], record["stderr_nats"], record["margin_nats"]) == ("monte_carlo_bound", None, None)
    assert Likelihood.from_json(record) == first.likelihood
    more = measure(network, objective, text, Windowing(8, 8, 4, samples=2)).likelihood
    assert more.margin_nats == pytest.approx(12.7062 * more.stderr_nats, rel=1e-5)
    with pytest.raises(Refusal, match="--samples 0"):
        Windowing(8, 8, samples=0)


def test_any_order_takes_one_pass_in_an_order_of_its_own(network_of, text):
    objective = objective_of("any_order")
    network = network_of(objective, V)
    usual = measure(network, objective, text, Windowing(8, 4, 4))
    asked = measure(network, InOrder(objective, "random"), text, Windowing(8, 4, 4))
    assert usual.nats.tolist() == asked.nats.tolist()
    found = usual.likelihood
    assert (found.kind, found.stderr_nats, found.n_passes, found.protocol.order) == ("exact", 0.0, 1, "random")
    left_to_right = measure(network, InOrder(objective, "left_to_right"), text, Windowing(8, 4, 4))
    assert left_to_right.likelihood.nats != pytest.approx(found.nats, rel=1e-6)


def test_every_model_is_asked_in_the_same_random_order(text):
    """Of another objective too, so that the comparison is paired."""
    drawn = []
    for objective in (objective_of("any_order"), InOrder(objective_of("masked_diffusion"), "random")):
        drawn.append(likelihood._draws(objective, 20, 8, 0)(0, slice(3, 9))["order"])
    assert torch.equal(*drawn)
    assert drawn[0].sort(1).values.tolist() == [list(range(8))] * 6


def test_progress_and_cost(network_of, text):
    objective = objective_of("masked_diffusion")
    network, windowing = network_of(objective, V), Windowing(8, 4, 4, samples=3)
    seen: list[tuple[int, int]] = []
    measure(network, objective, text, windowing, progress=lambda done, total: seen.append((done, total)))
    n_windows = len(likelihood._Windows.of(text, windowing).ends)
    assert seen == sorted(seen) and seen[-1] == (3 * n_windows, 3 * n_windows)
    assert n_network_rows(objective, text, windowing) == 2 * 3 * n_windows  # a set and its complement
    assert n_network_rows(objective_of("autoregressive"), text, windowing) == n_windows
    for scoring in (InOrder(objective, "adaptive"), InOrder(objective_of("block_diffusion"), "random")):
        ticks: list[int] = []
        counted = InOrder(scoring.objective, scoring.order, 3, ticks.append)
        measure(network, counted, text, windowing)
        assert sum(ticks) == n_network_rows(scoring, text, windowing)
    split = text[0].split("test")
    n_hidden = (split.tokens[1:] != BOS).sum() + paid_bos(text, 8, 4).sum()
    assert n_network_rows(InOrder(objective, "left_to_right"), text, windowing) == n_hidden


def test_the_first_documents_alone(network_of, text):
    objective = objective_of("masked_diffusion")
    scores = measure(network_of(objective, V), objective, text, Windowing(8, 4, 4, n_tokens=15, samples=2))
    split = text[0].split("test")
    n = len(scores.nats)
    assert split.document_starts[n] >= 15 > split.document_starts[n - 1]
    assert scores.likelihood.protocol.split == f"test[:{n}]"
    assert EOS in split.tokens[: split.document_starts[n]]


def test_students_t():
    for n_degrees, wanted in {1: 12.7062, 2: 4.30265, 3: 3.18245, 7: 2.36462, 30: 2.04227, 1000: 1.96234}.items():
        assert student_t(n_degrees) == pytest.approx(wanted, rel=1e-5)


def test_a_result_from_before_there_were_passes_is_read():
    path = {"corpus": "c", "split": "test", "text_sha256": "0", "n_documents": 1, "boundary": "newline",
            "vocabulary": "open", "window": 4, "stride": 4, "tokenizer": "t"}  # fmt: skip
    old = {
        "nats": 1.0,
        "kind": "exact",
        "stderr_nats": 0.0,
        "n_tokens": 1,
        "n_words": 1,
        "n_bytes": 1,
        "protocol": path,
    }
    assert (Likelihood.from_json(old).n_passes, Likelihood.from_json(old).margin_nats) == (1, None)
