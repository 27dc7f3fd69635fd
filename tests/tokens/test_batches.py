"""Batches: a pure function of the step, a new order every epoch, shares kept, documents isolated, padding unseen."""

import numpy as np
import pytest
import torch
from torch import Tensor

from armillary.contracts import BOS, PAD, Batch
from armillary.recipe import Phase
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.tokens.batches import Batches


@pytest.fixture(scope="module")
def long(packed_of):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, rng.integers(0, 60)))) for _ in range(60)]
    return packed_of(texts, window=16).split("train")


@pytest.fixture(scope="module")
def other(packed_of):
    return packed_of(["OTHER TEXT " * 30], window=16).split("train")


@pytest.fixture(scope="module")
def short(packed_of):
    with pytest.warns(ArmillaryWarning, match="one shorter row"):
        return packed_of(["tiny"], window=16).split("train")


def fields(batch: Batch) -> list[Tensor | None]:
    return [batch.tokens, batch.scored, batch.segments, batch.positions]


def are_equal(a: Batch, b: Batch) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(fields(a), fields(b), strict=True))  # type: ignore[arg-type]


def drawn(batches: Batches, n_samples: int) -> np.ndarray:
    n_steps = -(-n_samples // batches.batch_rows)
    return np.concatenate([batches.at(step).tokens.numpy() for step in range(n_steps)])[:n_samples]


def test_every_epoch_is_another_permutation_of_all_rows(long) -> None:
    n = long.n_rows
    rows = drawn(Batches({"long": long}, [], 7, seed=1), 3 * n).reshape(3, n, -1)
    in_file_order = long.rows(np.arange(n))
    everything = np.unique(in_file_order, axis=0, return_counts=True)
    for epoch in rows:
        once = np.unique(epoch, axis=0, return_counts=True)
        assert np.array_equal(once[0], everything[0]) and np.array_equal(once[1], everything[1])
    for a, b in [(0, 1), (1, 2), (0, 2)]:
        assert not np.array_equal(rows[a], rows[b])
    assert not np.array_equal(rows[0], in_file_order)


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size(long) -> None:
    rows = drawn(Batches({"long": long}, [], 4, seed=1), 100)
    assert np.array_equal(rows, drawn(Batches({"long": long}, [], 10, seed=1), 100))
    assert not np.array_equal(rows, drawn(Batches({"long": long}, [], 4, seed=2), 100))


def test_a_step_is_the_same_after_any_other_calls(long, other) -> None:
    sets = {"long": long, "other": other}
    phases = [Phase(weights={"long": 1, "other": 3}, until_tokens=16 * 40), Phase(weights={"long": 1, "other": 1})]
    walked = Batches(sets, phases, 4, 3, isolate_documents=True)
    all_steps = [walked.at(step) for step in range(30)]
    for step in (29, 3, 11, 10, 3, 0):
        assert are_equal(walked.at(step), all_steps[step])
        resumed = Batches(dict(reversed(sets.items())), phases, 4, 3, isolate_documents=True)
        assert are_equal(resumed.at(step), all_steps[step])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_hold_slices_of_one_global_batch(long, world: int) -> None:
    batches = Batches({"long": long}, [], 8, seed=1, isolate_documents=True)
    share = 8 // world
    parts = [batches.at(5).rows(slice(rank * share, (rank + 1) * share)) for rank in range(world)]
    joined = Batch(*(torch.cat(list(column)) for column in zip(*map(fields, parts), strict=True)))  # type: ignore[arg-type]
    assert are_equal(joined, batches.at(5))


def test_whole_rows_need_no_segments(long) -> None:
    batch = Batches({"long": long}, [], 5, seed=1).at(0)
    assert batch.segments is None and batch.positions is None
    assert batch.tokens.dtype == torch.int64 and batch.tokens.shape == batch.scored.shape == (5, 17)
    assert not batch.scored[:, 0].any()
    assert torch.equal(batch.scored[:, 1:], batch.tokens[:, 1:] != BOS)


def test_counts_and_epochs_are_those_of_the_rows_drawn(long, other) -> None:
    weights = [{"long": 1.0, "other": 0.0}, {"long": 0.25, "other": 0.75}]
    phases = [Phase(weights=weights[0], until_tokens=16 * 20), Phase(weights=weights[1])]
    batches = Batches({"long": long, "other": other}, phases, 8, seed=1)
    others = {tuple(row) for row in other.rows(np.arange(other.n_rows)).tolist()}
    rows = drawn(batches, 100)
    is_other = np.array([tuple(row) in others for row in rows.tolist()])
    assert not is_other[:20].any()
    assert is_other[20:].sum() == 60
    for step in (0, 1, 5, 12):
        expected = int(is_other[: 8 * step].sum())
        assert batches.counts_before(step) == {"long": 8 * step - expected, "other": expected}
    assert batches.counts_before(12)["other"] == is_other[:96].sum()


def test_isolation_against_a_walk_token_by_token(long) -> None:
    batches = Batches({"long": long}, [], 40, seed=1, isolate_documents=True)
    batch = batches.at(2)
    assert batch.segments is not None and batch.positions is not None
    columns = (batch.tokens, batch.segments, batch.positions, batch.scored)
    for row, segments, positions, scored in zip(*(column.tolist() for column in columns), strict=True):
        segment, position = 0, -1
        for place, token in enumerate(row):
            is_new = token == BOS and place > 0
            segment, position = (segment + 1, 0) if is_new else (segment, position + 1)
            assert (segments[place], positions[place]) == (segment, position)
            # A scored token's context, the token before it, is of its own document.
            assert not scored[place] or segments[place - 1] == segment
    assert int(batch.segments.max()) > 1


@pytest.mark.parametrize("is_isolated", [False, True])
def test_a_narrow_set_is_padded_and_the_padding_is_not_seen(long, short, is_isolated: bool) -> None:
    phase = Phase(weights={"long": 1, "short": 1})
    batch = Batches({"long": long, "short": short}, [phase], 4, seed=1, isolate_documents=is_isolated).at(0)
    assert batch.segments is not None
    assert batch.tokens.shape == (4, 17)
    is_short = (batch.segments == -1).any(1)
    assert is_short.sum() == 2
    assert (batch.tokens[is_short, 6:] == PAD).all()
    assert (batch.segments[is_short, 6:] == -1).all()
    assert not batch.scored[is_short, 6:].any()
    assert batch.tokens[is_short, :6].tolist() == short.rows(np.array([0, 0])).tolist()
    assert (batch.segments[is_short, :6] == 0).all()
    assert batch.scored[is_short, 1:6].all()
    if not is_isolated:
        assert (batch.segments[~is_short] == 0).all() and batch.positions is None


def test_a_short_set_alone_is_not_padded(short) -> None:
    batch = Batches({"short": short}, [], 3, seed=1).at(4)
    assert batch.tokens.shape == (3, 6)
    assert batch.segments is None


def test_weights_of_other_sets_are_refused(long) -> None:
    with pytest.raises(Refusal, match=r"mixture: weights name \['x'\]"):
        Batches({"long": long}, [Phase(weights={"x": 1})], 4, 1)
    with pytest.raises(Refusal, match="corpora"):
        Batches({}, [], 4, 1)
