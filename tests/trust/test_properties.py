"""What holds for any recipe, any number of ranks, any window: recipes come back from YAML, misspelled keys are refused
with the nearest one, ranks share one global batch, and an evaluation scores every token once."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from armillary import recipe as recipes
from armillary.assemble import build, parts, stages
from armillary.contracts import BOS, EOS, Batch
from armillary.evaluation.likelihood import Ranks, Windowing, measure
from armillary.refusal import Refusal
from armillary.tokens.packed import PackedSplit
from armillary.training.distribution import share

# Recipes

ODD = ["\x85", "\u2028", "\ufeff", "\r\n", "\t#", ": -", "on", "~", "1_0", "é"]  # what YAML may take for something else
TEXT = st.text(max_size=20) | st.lists(st.sampled_from([*ODD, "a", " "]), max_size=4).map("".join)
RATE = st.floats(1e-9, 10, exclude_min=True)
OPTIMIZERS = st.one_of(
    st.fixed_dictionaries({"name": st.just("adamw"), "learning_rate": RATE, "weight_decay": st.floats(0, 1)}),
    st.fixed_dictionaries({"name": st.just("muon"), "adamw_learning_rate": st.none() | RATE}),
)
TOKENIZERS = st.one_of(
    st.fixed_dictionaries({"name": st.just("bpe"), "vocabulary": st.integers(300, 65536)}),
    st.just({"name": "character"}),
    st.fixed_dictionaries({"name": st.just("word"), "vocabulary": st.integers(5, 10**6)}),
)
# A corpus may have the name of a key, or one that YAML would take for something else.
CORPUS_NAMES = st.sampled_from(["main", "source", "validation_fraction", "no", "1e3", "null", "été", "a b", "7"])


@st.composite
def raw_recipes(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(CORPUS_NAMES, min_size=1, max_size=3, unique=True))
    ends = sorted(draw(st.sets(st.integers(1, 10**12), max_size=2)))
    weight = st.floats(1e-3, 1e3)
    phases = [
        {"weights": {name: draw(weight) for name in names}, **({"until_tokens": end} if end else {})}
        for end in ([*ends, None] if draw(st.booleans()) else [])
    ]
    window = draw(st.integers(2, 4096))
    rows = draw(st.sampled_from(["batch_rows", "batch_tokens"]))
    steps = draw(st.integers(10, 10**9))
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)),
        "about": draw(TEXT),
        "seed": draw(st.integers(0, 2**63)),
        "corpora": {
            name: {
                "source": {"name": "files", "path": draw(st.text(min_size=1, max_size=20))},
                "validation_fraction": draw(st.floats(0.001, 0.999)),
            }
            for name in names
        },
        "tokenizer": draw(TOKENIZERS),
        "packing": {"window": window, "stride": draw(st.none() | st.integers(1, window))},
        "mixture": phases,
        "model": {
            "backbone": {"name": "llama", "d_model": 32, "n_layers": 2, "n_heads": 2},
            "tied": draw(st.booleans()),
        },
        "objective": {"name": "autoregressive", "label_smoothing": draw(st.floats(0, 0.99))},
        "training": {
            "steps": steps,
            rows: draw(st.integers(1, 10**9)),
            "optimizer": draw(OPTIMIZERS),
            "schedule": {"name": "cosine", "warmup": draw(st.integers(0, 9))},
            "clip": draw(st.none() | RATE),
            "ema": draw(st.none() | st.floats(1e-6, 1 - 1e-6)),
            "precision": draw(st.sampled_from(["auto", "fp32", "bf16", "fp16"])),
            "track": draw(st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2, unique=True)),
        },
        "sampling": {"prompts": draw(st.lists(TEXT, min_size=1, max_size=3))},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=raw_recipes())
def test_a_recipe_comes_back_from_its_yaml(raw, folder):
    resolved = parts.resolve(raw).recipe
    path = folder / "one.yaml"
    path.write_text(resolved.as_yaml(), encoding="utf-8")
    again = recipes.raw(str(path))
    assert again == resolved.model_dump(mode="json")
    assert parts.resolve(again).recipe == resolved


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the mappings whose keys are not of the recipe's own choosing."""
    if isinstance(value, dict):
        if path[-1:] not in (("corpora",), ("weights",)):
            yield path
        for key, inner in value.items():
            yield from mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from mappings(inner, (*path, index))


def misspelled(key: str, place: int, letter: str, kind: str) -> str:
    place %= len(key)
    match kind:
        case "doubled":
            return key[:place] + key[place] + key[place:]
        case "dropped" if len(key) > 3:
            return key[:place] + key[place + 1 :]
        case "swapped" if len(key) > 3:
            return key[:place] + key[place + 1 : place + 2] + key[place] + key[place + 2 :]
        case _:
            return key[:place] + letter + key[place:]


FULL: dict[str, Any] = {
    "name": "full",
    "corpora": {
        "main": {"source": {"name": "files", "path": "a.txt"}},
        "source": {"source": {"name": "wikitext2", "path": "b"}},  # named as one of a corpus's keys
    },
    "tokenizer": {"name": "bpe", "vocabulary": 400},
    "packing": {"window": 32},
    "mixture": [{"weights": {"main": 1, "source": 2}, "until_tokens": 1000}, {"weights": {"main": 1, "source": 1}}],
    "model": {"backbone": {"name": "llama", "d_model": 32, "n_layers": 2, "n_heads": 2}},
    "objective": {"name": "autoregressive"},
    "training": {"steps": 50, "batch_rows": 8, "optimizer": {"name": "muon"}, "schedule": {"name": "cosine"}},
}


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """A recipe with every section and every field of its parts written out."""
    return parts.resolve(FULL).recipe.model_dump(mode="json")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_misspelled_key_at_any_depth_is_refused_with_the_nearest_one(data, full):
    path = data.draw(st.sampled_from(list(mappings(full))))
    raw = copy.deepcopy(full)
    owner = raw
    for step in path:
        owner = owner[step]
    full_owner = set(owner)
    key = data.draw(st.sampled_from(sorted(owner)))
    kinds = st.sampled_from(["doubled", "dropped", "swapped", "inserted"])
    wrong = misspelled(key, data.draw(st.integers(0, 30)), data.draw(st.sampled_from("aeqz_")), data.draw(kinds))
    assume(wrong not in owner)
    if data.draw(st.booleans()):
        owner[wrong] = owner.pop(key)  # in its place
    else:
        owner[wrong] = copy.deepcopy(owner[key])  # beside it
    with pytest.raises(Refusal) as refused:
        parts.resolve(raw)
    message = str(refused.value)
    assert "\n" not in message
    if key == "name" and path:  # a part's name is no field of it: it is said to be missing, or the fields are listed
        assert "name': Field required" in message or f"unknown key '{wrong}'; " in message, (path, wrong, message)
    else:
        assert wrong in message and "did you mean '" in message, (path, wrong, message)
        hint = message.rsplit("'", 2)[1]
        # Between top_k and top_p a slip may fall nearer to the other one; a hint is always a key of this mapping.
        near = difflib.SequenceMatcher(b=wrong)
        assert hint in full_owner and ratio(near, hint) >= ratio(near, key), (path, wrong, message)


def ratio(near: difflib.SequenceMatcher[str], word: str) -> float:
    near.set_seq1(word)
    return near.ratio()


def test_every_section_of_the_full_recipe_is_reached(full):
    reached = {".".join(map(str, path)) for path in mappings(full)}
    assert {"", "corpora.main", "corpora.source.source", "mixture.1", "model.backbone", "training.optimizer",
            "training.schedule", "evaluation", "sampling.sampler", "packing", "tokenizer"} <= reached  # fmt: skip


# Ranks


def micro_batches(world: int, n_rows: int, accumulation: int) -> list[list[slice]]:
    """What each rank takes of a step's rows."""
    ranks: list[Any] = [SimpleNamespace(num_processes=world, process_index=rank) for rank in range(world)]
    return [share(rank, n_rows, accumulation) for rank in ranks]


@given(world=st.integers(1, 8), accumulation=st.integers(1, 6), n_rows=st.integers(1, 200))
def test_ranks_cut_the_rows_without_gap_or_overlap(world, accumulation, n_rows):
    if n_rows % (world * accumulation):
        with pytest.raises(Refusal, match=f"multiple of {world * accumulation}"):
            micro_batches(world, n_rows, accumulation)
        return
    cut = micro_batches(world, n_rows, accumulation)
    assert [len(rank) for rank in cut] == [accumulation] * world
    rows = [list(range(n_rows))[part] for rank in cut for part in rank]
    assert len({len(part) for part in rows}) == 1
    assert [row for part in rows for row in part] == list(range(n_rows))


@pytest.fixture(scope="module")
def batches(small_recipe, tmp_path_factory):
    raw = recipes.raw(str(small_recipe), ["packing.isolate_documents=true", "training.batch_rows=16"])
    found = parts.resolve(raw)
    return build.batches(found, stages.prepare(found, tmp_path_factory.mktemp("root"), lambda line: None).packed)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 10**9), accumulation=st.sampled_from([1, 2, 4]))
def test_the_global_batch_is_the_same_for_one_two_and_four_ranks(step, accumulation, batches):
    whole = batches.at(step)
    for world in (1, 2, 4):
        cut = [whole.rows(part) for rank in micro_batches(world, 16, accumulation) for part in rank]
        assert len(cut) == world * accumulation
        for name in ("tokens", "scored", "segments", "positions"):
            assert torch.equal(torch.cat([getattr(part, name) for part in cut]), getattr(whole, name))


# Evaluation


class Witness(torch.nn.Module):
    """A network and its objective at once, which writes down what it was asked to score: every token has its own id."""

    kind = "exact"
    views = ("next_token",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []
        self.context: dict[int, int] = {}

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def score(self, network: Any, batch: Batch, draws: dict[str, Tensor]) -> Tensor:
        targets, scored = batch.tokens[:, 1:], batch.scored[:, 1:]
        self.seen += targets[scored].tolist()
        _, columns = scored.nonzero(as_tuple=True)
        self.context |= dict(zip(targets[scored].tolist(), (columns + 1).tolist(), strict=True))
        return targets.float() * scored


def stream(lengths: list[int]) -> Any:
    """Documents of so many tokens, framed as packing frames them; tokens count up from 4, and so do their documents."""
    ids: list[int] = []
    starts: list[int] = []
    token = 4
    for n in lengths:
        starts.append(len(ids))
        ids += [BOS, *range(token, token + n), EOS]
        token += n
    columns = [starts, [n + 1 for n in lengths], [n + 2 for n in lengths]]
    split = PackedSplit(np.array(ids, dtype=np.uint32), np.array([0]), np.array(columns).T, window=len(ids) - 1)
    facts = {"n_documents": len(lengths), "text_sha256": "0" * 64}
    about = {"corpus_fingerprint": "0" * 64, "boundary": "end_of_text", "is_lossless": True,
             "tokenizer_sha256": "1" * 64, "splits": {"test": facts}}  # fmt: skip
    return SimpleNamespace(split=lambda name: split, about=about), split


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    window=st.integers(1, 120),
    shortening=st.integers(0, 119),
    batch_rows=st.integers(1, 9),
    n_ranks=st.integers(1, 3),
    isolated=st.booleans(),
)
def test_every_token_is_scored_once_by_any_windows(lengths, window, shortening, batch_rows, n_ranks, isolated):
    packed, split = stream(lengths)
    packed.about["isolate_documents"] = isolated
    stride = max(1, window - shortening)
    witness: Any = Witness()
    of_ranks: list[np.ndarray] = []

    def total(sums: np.ndarray) -> np.ndarray:
        of_ranks.append(sums)
        return np.sum(of_ranks, axis=0)

    windowing = Windowing(window, stride, batch_rows)
    found = [measure(witness, witness, (packed, "test"), windowing, Ranks(r, n_ranks, total)) for r in range(n_ranks)]
    scores = found[-1]  # the last rank to arrive sees the sum of all
    tokens = split.tokens[1:].tolist()
    wanted = sorted(token for token in tokens if token != BOS)
    assert sorted(witness.seen) == wanted
    # Each document gets its own tokens and its end, and nobody else's.
    assert scores.tokens.tolist() == [n + 1 for n in lengths]
    first = np.cumsum([4, *lengths[:-1]])
    sums = [sum(range(f, f + n)) + EOS for f, n in zip(first.tolist(), lengths, strict=True)]
    assert scores.nats.tolist() == sums
    # A window shows all it can: window - stride tokens at least stand before what is scored, or all there are.
    for place, token in enumerate(tokens, start=1):
        if token not in (BOS, EOS):
            assert min(place, window - stride + 1) <= witness.context[token] <= min(place, window)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), n_tokens=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_shortened_evaluation_scores_whole_documents(lengths, n_tokens):
    packed, split = stream(lengths)
    packed.about["isolate_documents"] = False
    witness: Any = Witness()
    scores = measure(witness, witness, (packed, "test"), Windowing(16, 8, 4, n_tokens))
    n = len(scores.nats)
    assert scores.tokens.tolist() == [length + 1 for length in lengths[:n]]
    ends = [*split.document_starts[1:].tolist(), len(split.tokens)]
    assert n == len(lengths) or ends[n - 1] >= n_tokens
    assert n == 1 or ends[n - 2] < n_tokens
