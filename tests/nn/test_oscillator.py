"""The oscillator filter: every method is the recurrence itself, forward and backward, under every layout."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from armillary.contracts import Layout
from armillary.nn.cache import DecodingCache, MixerState
from armillary.nn.oscillator import OscillatorBank, filtered
from armillary.nn.oscillator_filters import METHODS, Pole, respond
from armillary.nn.sight import look

B, M = 2, 3
SEGMENTS = [[0] * 9 + [1] * 40 + [2] * 20 + [-1], [0] * 32 + [1] * 1 + [2] * 37]


def pole_of(dtype):
    """The same numbers in every dtype: those of float32."""
    return Pole(torch.tensor([-0.001, -0.05, -0.4]).to(dtype), torch.tensor([0.01, 0.7, 3.0]).to(dtype))


def signal(length, dtype, rows=B):
    return torch.randn(rows, length, M, 2, dtype=dtype, generator=torch.Generator().manual_seed(length))


def forward_loop(w, pole, before=None, ids=None):
    """h_t = λ h_{t-1} + w_t, one step after the other, in complex numbers."""
    step = torch.exp(torch.complex(pole.log_decay, pole.angle))
    w = torch.view_as_complex(w)
    h = torch.zeros_like(w[:, 0]) if before is None else torch.view_as_complex(before)
    out = []
    for t in range(w.shape[1]):
        if ids is not None and t:
            h = h * (ids[:, t] == ids[:, t - 1])[:, None]
        h = step * h + w[:, t]
        out.append(h)
    return torch.view_as_real(torch.stack(out, 1))


def loop(w, pole, ahead=False, before=None, ids=None):
    out = forward_loop(w, pole, before, ids)
    if ahead:  # what comes later, without the place itself
        later = forward_loop(w.flip(1), pole, ids=None if ids is None else ids.flip(1)).flip(1)
        out = out + later - w
    return out


def with_gradients(run, w, pole):
    """(h, and the gradients of the mean of its squares with respect to w, log α and θ)."""
    w, pole = w.clone().requires_grad_(), Pole(*(leaf.clone().requires_grad_() for leaf in pole))
    h = run(w, pole)
    grads = torch.autograd.grad((h * h).mean(), (w, *pole), allow_unused=True)
    return [h.detach(), *(torch.zeros(M) if grad is None else grad for grad in grads)]


@functools.cache
def wanted(length, ahead):
    return with_gradients(
        functools.partial(loop, ahead=ahead), signal(length, torch.float32).double(), pole_of(torch.float64)
    )


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 2, 31, 70])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_the_loop_forward_and_backward(method, ahead, length, dtype, atol):
    run = functools.partial(respond, method=method, ahead=ahead)
    found = with_gradients(run, signal(length, torch.float32).to(dtype), pole_of(dtype))
    for a, b in zip(found, wanted(length, ahead), strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=atol * max(1.0, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_of_chunks(ahead):
    w, pole = signal(1100, torch.float64), pole_of(torch.float64)
    chunked, doubled = (respond(w, pole, method, ahead=ahead) for method in ("chunked", "doubling"))
    torch.testing.assert_close(chunked, doubled, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_place_that_is_counted_twice_is_seen(method, monkeypatch):
    """By the filter and by the one that comes back: planted."""
    right = METHODS[method]
    monkeypatch.setitem(METHODS, method, lambda x, pole, ahead: right(x, pole, ahead) + x * ahead)
    with pytest.raises(AssertionError):
        test_every_method_is_the_loop_forward_and_backward(method, True, 31, torch.float32, 1e-5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_long_rows_of_fast_and_lasting_oscillators(method):
    """The phase is some thousand radians: its last digits are the filter."""
    pole = Pole(torch.tensor([-1e-3, -1e-4, -1e-3]), torch.tensor([3.1, 2.9, 0.01]))
    w = signal(1500, torch.float32) * pole.gain[:, None]
    wanted = loop(w.double(), pole.to(torch.float64))
    torch.testing.assert_close(respond(w, pole, method).double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("ahead", [False, True])
def test_documents_never_meet_not_even_by_rounding(method, ahead):
    ids = torch.tensor(SEGMENTS)
    w, pole = signal(ids.shape[1], torch.float64), pole_of(torch.float64)
    out = respond(w, pole, method, ahead=ahead, ids=ids)
    torch.testing.assert_close(out, loop(w, pole, ahead, ids=ids), atol=1e-12, rtol=0)
    changed = torch.where((ids == 1)[..., None, None], 1e6 * w, w)
    again = respond(changed, pole, method, ahead=ahead, ids=ids)
    assert torch.equal(out[ids != 1], again[ids != 1])


@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_blocks_begin_with_the_clean_state_at_their_border(segments):
    block, pole = 16, pole_of(torch.float64)
    w = signal(140, torch.float64)
    ids = None if segments is None else torch.tensor(segments)
    if ids is not None:
        w[:, :70][ids < 0] = w[:, 70:][ids < 0] = 0
    layout = Layout("blocks", segments=ids, block=block)
    found = filtered(w, pole, "chunked", look(layout, 140, w.device), None)
    noisy, clean = w.chunk(2, 1)
    past = forward_loop(clean, pole, ids=ids)
    for start in range(0, 70, block):
        part = slice(start, start + block)
        before = past[:, start - 1] if start else torch.zeros_like(past[:, 0])
        if ids is not None and start:
            before = before * (ids[:, start] == ids[:, start - 1])[:, None, None]
        own = None if ids is None else ids[:, part]
        for half, offset in ((noisy, 0), (clean, 70)):
            wanted = loop(half[:, part].contiguous(), pole, True, before.contiguous(), own)
            got = found[:, offset + start : offset + min(start + block, 70)]
            torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_a_cache_hands_over_the_state_after_the_last_real_token(direction):
    """Row 0 has 5 real tokens of 7, row 1 all of them, row 2 none; then three more in a pass that is not kept."""
    pole, w = pole_of(torch.float64), signal(10, torch.float64, rows=3)
    n_real = torch.tensor([5, 7, 0])
    state = MixerState.allocate((3, M, 2), device=w.device, dtype=w.dtype)
    cache = DecodingCache.of([state], 3, 16)
    segments = torch.where(torch.arange(7) < n_real[:, None], 0, -1)
    sight = look(Layout(direction, segments=segments), 7, w.device, cache)
    first = filtered(w[:, :7], pole, "chunked", sight, state)
    cache.advance(n_real)
    kept = state.values.clone()
    sight = look(Layout(direction), 3, w.device, cache.tentative())
    second = filtered(w[:, 7:], pole, "chunked", sight, state)
    assert torch.equal(state.values, kept)
    for row, n in enumerate(n_real.tolist()):
        ahead = direction == "full"
        wanted = loop(w[row : row + 1, :n], pole, ahead) if n else w[:1, :0]
        torch.testing.assert_close(first[row, :n], wanted[0], atol=1e-12, rtol=0)
        before = forward_loop(w[row : row + 1, :n], pole)[:, -1].contiguous() if n else None
        wanted = loop(w[row : row + 1, 7:], pole, ahead, before)
        torch.testing.assert_close(second[row], wanted[0], atol=1e-12, rtol=0)


def test_the_bank_keeps_the_scale_of_its_input_and_is_stable_for_every_parameter():
    torch.manual_seed(0)
    pole = Pole(torch.tensor([-0.02]).log1p(), torch.tensor([0.5]))
    h = respond(torch.randn(64, 600, 1, 2) * pole.gain[:, None], pole)[:, 300:]
    assert abs(float(h.var()) - 1) < 0.1
    bank = OscillatorBank(4, torch.rand(5), "chunked").double().requires_grad_(False)
    alpha = bank.pole.log_decay.exp()
    assert ((alpha >= 0.9) & (alpha <= 0.999)).all()
    for value in (-30.0, 0.0, 30.0):
        torch.nn.init.constant_(bank.damping, value)
        decay = bank.pole.log_decay
        assert (decay < 0).all() and math.isfinite(float(respond(torch.ones(1, 600, 5, 2).double(), bank.pole).sum()))


@pytest.mark.parametrize("value", [-1e5, -200.0, 200.0, 1e5])
def test_no_value_of_the_parameters_breaks_a_bank(value):
    bank, x = OscillatorBank(4, torch.rand(5), "chunked"), torch.randn(2, 40, 4)
    for parameter in (bank.damping, bank.log_angle):
        torch.nn.init.constant_(parameter, value)
    bank(x, look(Layout("causal"), 40, x.device), None).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in bank.parameters())
    assert ((bank.pole.log_decay.exp() < 1) & (bank.pole.gain > 0)).all()
    assert all(math.isfinite(fact["half_life_tokens"] + fact["a"] + fact["g"]) for fact in bank.pole.facts())
