"""Left-to-right sampling on small worlds whose law is known: what is drawn, when rows end, what text they give."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from armillary import registry
from armillary.contracts import BOS, EOS, PAD, UNK, NextToken, Tokenizer
from armillary.refusal import Refusal
from armillary.samplers._choosing import _draw, choose
from armillary.samplers.left_to_right import Engine, LeftToRight, Request, _Text, generate

PIECES = [b"", b"", b"", b"", b"a", b"b", b"ca", b"\n"]
N_VOCAB, MARKER = 9, 8


class Pieces:
    """A tokenizer that is a table of bytes: four specials, pieces, one chat marker."""

    is_lossless = True

    def __init__(self, pieces=(*PIECES, b"")):
        self.pieces = pieces
        self.n_vocab = len(pieces)
        self.markers = {"<|im_end|>": MARKER} if len(pieces) == N_VOCAB else {}

    def encode(self, text):
        raise NotImplementedError

    def encode_batch(self, texts):
        raise NotImplementedError

    def save(self, folder):
        raise NotImplementedError

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token):
        return self.pieces[token]


class Chain:
    """A model that is a Markov table, held in slots as a real one is: misuse of a slot fails the test."""

    def __init__(self, p, n_slots=4, capacity=16):
        self.p, self.n_slots, self.capacity = np.asarray(p), n_slots, capacity
        self.held = {}
        self.n_starts = self.n_advances = 0

    def start(self, slots, prompts):
        self.n_starts += 1
        for slot, prompt in zip(slots, prompts, strict=True):
            assert 0 <= slot < self.n_slots and slot not in self.held and 0 < len(prompt) <= self.capacity
            self.held[slot] = list(prompt)
        return self._log_p(slots)

    def advance(self, slots, tokens):
        self.n_advances += 1
        assert list(slots) == sorted(set(slots))
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            self.held[slot].append(token)
            assert len(self.held[slot]) <= self.capacity
        return self._log_p(slots)

    def release(self, slots):
        for slot in slots:
            del self.held[slot]

    def _log_p(self, slots):
        with np.errstate(divide="ignore"):
            return torch.tensor(np.log(np.stack([self.next_p(self.held[slot]) for slot in slots])))

    def next_p(self, tokens):
        return self.p[tokens[-1]]


class Script(Chain):
    """Goes on with the tokens of a script, surely; each prompt begins with the number of its script."""

    def __init__(self, scripts, n_vocab, **slots):
        super().__init__(np.eye(n_vocab), **slots)
        self.scripts = scripts

    def next_p(self, tokens):
        script = self.scripts[tokens[0]]
        n_said = len(tokens) - 1
        return self.p[script[n_said] if n_said < len(script) else EOS]


def world():
    """Every next token has some probability, the specials and the marker too."""
    return np.random.default_rng(7).dirichlet(np.full(N_VOCAB, 0.8), size=N_VOCAB)


def allowed(p):
    """What a sampler may draw: p without pad, bos, unk and markers."""
    p = p.copy()
    p[[PAD, BOS, UNK, MARKER]] = 0
    return p / p.sum()


def filtered(p, s):
    """The law of one draw, by the definitions."""
    p = allowed(p) ** (1 / s.temperature)
    ranks = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept = ranks[: s.top_k] if s.top_k else ranks
    p = np.array([x if i in kept else 0 for i, x in enumerate(p)])
    p /= p.sum()
    if s.top_p:
        n_kept = next(n for n in range(1, len(p) + 1) if sum(p[ranks[:n]]) >= s.top_p)
        p = np.array([x if i in ranks[:n_kept] else 0 for i, x in enumerate(p)])
    if s.min_p:
        p = np.where(p >= s.min_p * p.max(), p, 0)
    return p / p.sum()


def law(table, first, s, n):
    """Probability of every continuation of at most n tokens, eos written at the end of those that end."""
    out = Counter()

    def grow(tokens, p):
        if len(tokens) == n or (tokens and tokens[-1] == EOS):
            out[tokens] += p
            return
        for token, q in enumerate(filtered(table[tokens[-1] if tokens else first], s)):
            if q > 0:
                grow((*tokens, token), p * q)

    grow((), 1.0)
    return out


def drawn(continuation):
    return (*continuation.tokens, *([EOS] if continuation.finish == "end" else []))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 0.8, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_sequences_follow_the_enumerated_law(fields):
    n_rows, settings, table = 2500, LeftToRight(max_new_tokens=3, **fields), world()
    rows = generate(Chain(table, n_slots=n_rows), [[5]] * n_rows, settings, range(n_rows), Pieces())
    counts, expected = Counter(map(drawn, rows)), law(table, 5, settings, 3)
    assert abs(sum(expected.values()) - 1) < 1e-9
    assert set(counts) <= set(expected)  # nothing outside the filters, ever
    rare = [o for o, p in expected.items() if p * n_rows < 8]
    cells: list[tuple[float, float]] = [(counts[o], p * n_rows) for o, p in expected.items() if o not in rare]
    cells.append((sum(counts[o] for o in rare), sum(expected[o] for o in rare) * n_rows + 1e-9))
    chi2, df = sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1
    assert df >= 4
    assert chi2 < df + 3.5 * math.sqrt(2 * df)


def test_log_p_is_the_models_own():
    """Whatever the settings: of all that was drawn, eos too, under the unmodified model."""
    table = world()
    settings = LeftToRight(temperature=0.6, top_k=4, repetition_penalty=1.3, max_new_tokens=6)
    for row in generate(Chain(table), [[4]] * 20, settings, range(20), Pieces()):
        tokens = (4, *drawn(row))
        assert row.log_p == pytest.approx(sum(math.log(table[a, b]) for a, b in itertools.pairwise(tokens)))
        assert row.n_tokens == len(tokens) - 1
        assert row.finish == ("end" if tokens[-1] == EOS else "length")
        assert row.text == Pieces().decode(row.tokens)


def _choose(p, seeds=(0,), seen=(), forbidden=(), **fields):
    log_p = torch.log(torch.tensor(p, dtype=torch.float64)).expand(len(seeds), -1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return choose(log_p, [LeftToRight(**fields)] * len(seeds), generators, seen, forbidden).tolist()


def test_the_draw_inverts_the_distribution_function():
    log_p = torch.log_softmax(3 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)), 1)
    mass = log_p[0].double().exp().cumsum(0).numpy()
    seeds = range(200)
    u = [torch.rand(1, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).item() for s in seeds]
    tokens = choose(log_p.expand(200, -1), [LeftToRight()] * 200, [torch.Generator().manual_seed(s) for s in seeds])
    assert tokens.tolist() == np.searchsorted(mass, np.array(u) * mass[-1], side="right").tolist()


def test_what_has_no_probability_is_not_drawn_at_either_end():
    log_p = torch.log(torch.tensor([[0.0, 0.5, 0.5, 0.0]] * 2))
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)  # the smallest and the largest u
    assert _draw(log_p, LeftToRight(), ends).tolist() == [1, 2]


def test_the_nucleus_is_the_smallest_set_and_ties_go_to_the_lowest_id():
    seeds = range(300)
    assert set(_choose([0.25, 0.5, 0.125, 0.125], seeds, top_p=0.75)) == {0, 1}
    assert set(_choose([0.25, 0.5, 0.125, 0.125], seeds, top_p=0.76)) == {0, 1, 2}
    assert set(_choose([0.25, 0.5, 0.125, 0.125], seeds, top_p=1e-9)) == {1}
    assert set(_choose([0.25] * 4, seeds, top_p=0.5)) == {0, 1}
    assert set(_choose([0.25] * 4, seeds, top_k=3)) == {0, 1, 2}
    assert set(_choose([0.125, 0.5, 0.125, 0.25], seeds, top_k=3)) == {0, 1, 3}
    assert set(_choose([0.5, 0.25, 0.125, 0.125], seeds, min_p=0.4)) == {0, 1}
    assert _choose([0.1, 0.3, 0.3, 0.3], seeds, temperature=0) == [1] * 300
    assert set(_choose([0.0, 0.5, 0.5, 0.0], seeds, temperature=5, top_k=4, top_p=1)) == {1, 2}


def test_a_nucleus_of_thousands_is_ranked_in_parts():
    p = np.random.default_rng(0).dirichlet(np.ones(5000))
    order = np.argsort(-p, kind="stable")
    inside = set(order[: int(np.searchsorted(p[order].cumsum(), 0.9)) + 1].tolist())
    assert len(inside) > 256
    tokens = set(_choose(p.tolist(), range(1000), top_p=0.9))
    assert tokens <= inside
    assert len(tokens & set(order[256 : len(inside)].tolist())) > 300


def test_repetition_penalty_by_hand():
    # 0.5 becomes 0.5^2 = 0.25: the second is the likeliest now; 0.4^2 = 0.16 when it was seen too
    assert _choose([0.5, 0.4, 0.1], seen=[{0}], temperature=0, repetition_penalty=2.0) == [1]
    assert _choose([0.5, 0.4, 0.1], seen=[{0, 1}], temperature=0, repetition_penalty=2.0) == [0]
    n = 8000
    shares = Counter(_choose([0.5, 0.4, 0.1], range(n), seen=[{0}] * n, repetition_penalty=2.0))
    expected = np.array([0.25, 0.4, 0.1]) / 0.75
    assert np.allclose([shares[i] / n for i in range(3)], expected, atol=4 * 0.5 / math.sqrt(n))


def test_repetition_penalty_sees_prompt_and_output():
    table = np.full((N_VOCAB, N_VOCAB), 1e-6)
    table[:, 4:8] = [0.4, 0.3, 0.2, 0.1]  # whatever came before
    greedy = LeftToRight(temperature=0, repetition_penalty=50.0, max_new_tokens=3)
    assert generate(Chain(table), [[4]], greedy, [0], Pieces())[0].tokens == [5, 6, 7]


def test_what_no_model_may_say_is_never_drawn():
    table = np.full((N_VOCAB, N_VOCAB), 1e-9)
    table[:, [PAD, BOS, UNK, MARKER]] = 0.25
    chain, tokens = Chain(table, n_slots=200), set()
    for temperature in (0, 1, 3):
        for row in generate(chain, [[4]] * 200, LeftToRight(temperature=temperature), range(200), Pieces()):
            tokens |= set(row.tokens)
    assert tokens == {4, 5, 6, 7}


def test_a_request_may_allow_markers_and_forbid_others():
    table = np.full((N_VOCAB, N_VOCAB), 1e-6)
    table[:, [MARKER, EOS, 5]] = [0.7, 0.2, 0.1]
    engine = Engine(Chain(table), Pieces())
    greedy = LeftToRight(temperature=0, max_new_tokens=2)
    allowing, forbidding = frozenset(), frozenset({MARKER, EOS})
    engine.admit([Request([4], greedy, 0), Request([4], greedy, 0, allowing), Request([4], greedy, 0, forbidding)])
    rows = _run(engine)[0]
    assert [drawn(rows[slot]) for slot in (0, 1, 2)] == [(EOS,), (MARKER, MARKER), (5, 5)]


def _run(engine):
    """To the end of all rows: what settled, and the pieces each slot streamed."""
    settled, pieces = {}, {}
    while engine.n_running:
        for slot, piece in engine.step().items():
            pieces.setdefault(slot, []).append(piece)
        settled |= dict(engine.settle())
    return settled, pieces


def test_a_rows_text_does_not_depend_on_its_neighbours():
    table = world()
    table[:, EOS] *= 0.2
    table /= table.sum(1, keepdims=True)
    kinds = [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.2}, {"repetition_penalty": 1.5}]
    requests = [
        Request([4, 5, 6, 7][: 1 + i % 4], LeftToRight(max_new_tokens=4 + i, **kinds[i % 6]), 100 + i) for i in range(8)
    ]
    together = Engine(Chain(table, n_slots=8), Pieces())
    slots = together.admit(requests)
    rows = _run(together)[0]
    for slot, request in zip(slots, requests, strict=True):
        alone = Engine(Chain(table, n_slots=1), Pieces())
        alone.admit([request])
        assert _run(alone)[0][0] == rows[slot]
    # and rows that enter while others are running, in slots that others have left
    staggered, waiting, out = Engine(Chain(table, n_slots=3), Pieces()), list(enumerate(requests)), {}
    where = {}
    while len(out) < 8:
        if staggered.n_free and waiting:
            i, request = waiting.pop()
            where[staggered.admit([request])[0]] = i
        staggered.step()
        out |= {where[slot]: row for slot, row in staggered.settle()}
    assert [out[i] for i in range(8)] == [rows[slot] for slot in slots]


def test_more_prompts_than_slots():
    table, settings = world(), LeftToRight(max_new_tokens=5)
    prompts = [[4], [5, 6], [7, 7, 4]] * 5
    chain = Chain(table, n_slots=4)
    rows = generate(chain, prompts, settings, range(15), Pieces())
    assert chain.held == {} and chain.n_starts > 3
    wide = Chain(table, n_slots=15)
    assert rows == generate(wide, prompts, settings, range(15), Pieces())
    assert wide.n_starts == 1 and wide.n_advances <= 4  # all at once; what is drawn last is not fed back
    assert generate(wide, [], settings, [], Pieces()) == []


def test_a_full_slot_ends_its_row():
    table = np.full((N_VOCAB, N_VOCAB), 1e-9)
    table[:, 4] = 1
    settings = LeftToRight(temperature=0, max_new_tokens=50)
    rows = generate(Chain(table, capacity=6), [[4], [4] * 5, [4] * 6], settings, [0, 0, 0], Pieces())
    assert [row.n_tokens for row in rows] == [6, 2, 1]
    assert {row.finish for row in rows} == {"length"}
    short = LeftToRight(temperature=0, max_new_tokens=2)
    assert generate(Chain(table, capacity=6), [[4]], short, [0], Pieces())[0].tokens == [4, 4]


def test_greedy_takes_the_likeliest_and_needs_no_seed():
    table = world()
    rows = generate(Chain(table), [[4]] * 3, LeftToRight(temperature=0, max_new_tokens=8), [1, 2, 3], Pieces())
    tokens = [4]
    while tokens[-1] != EOS and len(tokens) < 9:
        tokens.append(int(allowed(table[tokens[-1]]).argmax()))
    assert {drawn(row) for row in rows} == {tuple(tokens[1:])}


SPOKEN = (b"", b"", b"", b"", b"one", b" t", b"wo", b" three", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80!", b"\xff")


def _say(scripts, **fields):
    engine = Engine(Script(scripts, len(SPOKEN)), Pieces(SPOKEN))
    engine.admit([Request([i], LeftToRight(temperature=0, **fields), 0) for i in range(len(scripts))])
    rows, pieces = _run(engine)
    for slot, row in rows.items():
        assert "".join(pieces.get(slot, [])) == row.text
    return rows, pieces


def test_stop_strings_across_tokens():
    rows, pieces = _say([[4, 5, 6, 7, 7], [4, 5, 7], [4, 7, 7]], stop=(" two th", "!"))
    assert rows[0].text == "one" and rows[0].finish == "stop" and rows[0].tokens == [4, 5, 6, 7]
    assert rows[1].text == "one t three" and rows[1].finish == "end"
    assert pieces[1] == ["one", " t", " three"] or pieces[1] == ["one", " t three"]  # " t" was held back
    assert rows[2].text == "one three three" and rows[2].finish == "end"
    rows, _ = _say([[4, 5, 6, 7]], stop=("wo", "e t"))
    assert rows[0].text == "on"  # what is complete first ends the row
    rows, _ = _say([[4, 5, 6]], stop=("one",))
    assert rows[0].text == "" and rows[0].n_tokens == 1
    rows, _ = _say([[4, 5, 6]], stop=(" tw",))
    assert rows[0].text == "one"  # all but the last byte of it was held back
    rows, pieces = _say([[4, 5]], stop=(" two",), max_new_tokens=2)
    assert rows[0].text == "one t" and rows[0].finish == "length" and pieces[0] == ["one", " t"]


def test_characters_are_streamed_whole():
    rows, pieces = _say([[4, 8, 9, 10, 11, 4]])
    assert rows[0].text == "one€😀!one"
    assert pieces[0] == ["one", "€", "😀!", "one"]
    rows, pieces = _say([[4, 12, 8]])  # a byte that is no character, and one that is never finished
    assert rows[0].text == Pieces(SPOKEN).decode([4, 12, 8]) == "one\ufffd\ufffd"


@hypothesis.given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"\xe2", b"\x82\xac", b"\xff"]), max_size=12),
    st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3),
)
def test_text_is_what_comes_before_the_first_stop(chunks, stops):
    text, shown, said = _Text(stops), "", b""
    for chunk in chunks:
        said += chunk
        shown += text.push(chunk)
        starts = [start for s in stops if (start := said.find(s.encode())) >= 0]
        assert text.is_stopped == bool(starts)
        if starts:
            said = said[: min(starts)]
            break
    assert shown + text.close() == text.so_far == said.decode("utf-8", "replace")


def test_refusals():
    def refused(prompt, table=None):
        with pytest.raises(Refusal) as caught:
            generate(Chain(world() if table is None else table), [[4], prompt], LeftToRight(), [0, 1], Pieces())
        return str(caught.value)

    assert refused([4] * 17) == "prompt: 17 tokens, and the context holds 16; shorten the prompt"
    assert refused([]) == "prompt: holds no token; begin it with end-of-text (id 2)"
    assert refused([4, 9]) == "prompt: no token has id 9 (vocabulary 9); use the run's tokenizer"
    assert "no allowed token a probability" in refused([5], np.full((N_VOCAB, N_VOCAB), np.nan))
    assert "no allowed token a probability" in refused([5], np.eye(N_VOCAB)[[PAD] * N_VOCAB])
    with pytest.raises(ValueError, match="5 requests for 4 free slots"):
        Engine(Chain(world()), Pieces()).admit([Request([4], LeftToRight(), 0)] * 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "nan"),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("stop", [""]),
        ("stop", "x"),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(Refusal, match=rf"^samplers/left_to_right: '{field}': .*$") as caught:
        registry.make("samplers", "left_to_right", {field: value})
    assert "\n" not in str(caught.value)


def test_the_part_and_the_small_worlds_keep_their_contracts():
    assert "left_to_right" in registry.names("samplers")
    assert registry.make("samplers", "left_to_right", {"stop": ["\n\n"]}).stop == ("\n\n",)
    assert isinstance(Chain(world()), NextToken) and isinstance(Pieces(), Tokenizer)
