"""A bank of damped oscillators that mixes the positions of a row, and the gated mixer around it.

Source: h_t = α e^{jθ} h_{t-1} + γ w_t, the pole of x'' = -a x - g x' + b u discretised implicitly in the damping
(D-LinOSS), Boyer et al. 2025, arXiv 2505.12171; LinOSS: Rusch & Rus 2024, arXiv 2410.03943; γ = sqrt(1 - α²) keeps the
state's variance near its input's: Orvieto et al. 2023, arXiv 2303.06349; input and output gates as in Mamba, Gu & Dao
2023, arXiv 2312.00752.
Differs: the gates depend on the token and the pole does not, so the recurrence is a convolution. θ is learnt as log θ
(as in 2303.06349): a step of the optimizer is small beside a slow angle too. D is a diagonal: a full one would be
W_skip again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from armillary.contracts import Layout
from armillary.nn.cache import MixerState
from armillary.nn.linear import Linear
from armillary.nn.oscillator_filters import Method, Pole, Signal, respond, times
from armillary.nn.sight import Sight

DECAYS = (0.9, 0.999)
"""α at the start: half-lives of 6.6 to 693 tokens."""
RATES = (1e-7, 80.0)
"""-log α at the least and the most: beyond them α is 1 or 0 in float32, and what it is made of has no gradient."""
LARGEST_LOG_ANGLE = 10.0


class OscillatorBank(nn.Module):
    """y_t = σ(W_C u_t + b_C) ⊙ C0 h_t + D ⊙ u_t + b, with w_t = σ(W_B u_t + b_B) ⊙ B0 u_t. angles: θ at the start."""

    def __init__(self, width: int, angles: Float[Tensor, " M"], method: Method) -> None:
        super().__init__()
        n_states = 2 * len(angles)
        self.method: Method = method
        low, high = (math.log(-math.log(alpha)) for alpha in DECAYS)
        rate = torch.exp(low + (high - low) * torch.rand(len(angles)))
        self.damping = nn.Parameter(rate.expm1().log())
        self.log_angle = nn.Parameter(angles.log())
        self.read_gate = Linear(width, n_states)
        self.read = Linear(width, n_states, bias=False)
        self.write_gate = Linear(width, width)
        self.write = Linear(n_states, width, bias=False)
        self.through = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def pole(self) -> Pole:
        """|λ| < 1 for every value of the parameters."""
        return Pole(-F.softplus(self.damping).clamp(*RATES), self.log_angle.clamp(max=LARGEST_LOG_ANGLE).exp())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OscillatorBank:
        """A cast to half precision leaves λ alone: powers of a rounded one are of another filter."""
        poles = self.damping, self.log_angle
        before = [pole.data for pole in poles]
        super()._apply(fn, recurse)
        for name, exact in zip(("damping", "log_angle"), before, strict=True):
            moved = getattr(self, name)
            if moved.dtype in (torch.bfloat16, torch.float16):
                moved.data = exact.to(moved.device)
        return self

    def forward(self, u: Float[Tensor, "B L D"], sight: Sight, state: MixerState | None) -> Float[Tensor, "B L D"]:
        pole = self.pole
        w = (torch.sigmoid(self.read_gate(u)) * self.read(u)).unflatten(-1, (len(self.damping), 2)).to(pole.angle.dtype)
        h = filtered(w * pole.gain[:, None], pole, self.method, sight, state).flatten(2)
        return torch.sigmoid(self.write_gate(u)) * self.write(h.to(u.dtype)) + self.through * u + self.bias


class OscillatorMixer(nn.Module):
    """W_out · Norm(Bank(W_in h) + W_skip h)."""

    def __init__(self, width: int, angles: Float[Tensor, " M"], method: Method, norm_eps: float) -> None:
        super().__init__()
        self.into = Linear(width, width, bias=False)
        self.skip = Linear(width, width, bias=False)
        self.bank = OscillatorBank(width, angles, method)
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.out = Linear(width, width, bias=False)

    def forward(self, h: Float[Tensor, "B L D"], sight: Sight, state: MixerState | None) -> Float[Tensor, "B L D"]:
        return self.out(self.norm(self.bank(self.into(h), sight, state) + self.skip(h)))

    def allocate(self, n_rows: int, *, device: torch.device, dtype: torch.dtype) -> MixerState:
        """In fp32 at least: of a state rounded at every step little is left."""
        fine = torch.promote_types(dtype, torch.float32)
        return MixerState.allocate((n_rows, len(self.bank.damping), 2), device=device, dtype=fine)


def filtered(w: Signal, pole: Pole, method: Method, sight: Sight, state: MixerState | None) -> Signal:
    """The states of every position under a layout; with a cache, behind the state that it holds.

    Forward states cross blocks and calls, later positions are seen within a block or a call alone.
    """
    layout = sight.layout
    segments = layout.segments
    if segments is not None:
        w = torch.where((segments >= 0)[..., None, None], w, 0.0)
    if layout.direction == "blocks":
        return _by_blocks(w, pole, method, layout, segments)
    ahead = layout.direction == "full"
    if state is None:
        return respond(w, pole, method, ahead=ahead, ids=segments)
    before = state.read(sight).to(w.dtype)
    h = respond(_behind(before, w, pole), pole, method, ahead=ahead)
    state.write(h[:, -1] if segments is None else _last(h, before, segments >= 0), sight)
    return h


def _behind(state: Float[Tensor, "N M 2"], w: Signal, pole: Pole) -> Signal:
    """The same signal where a state was there before it."""
    one = torch.ones((), dtype=torch.long, device=w.device)
    return torch.cat([w[:, :1] + times(state, pole.power(one))[:, None], w[:, 1:]], dim=1)


def _last(h: Signal, before: Float[Tensor, "N M 2"], is_real: Bool[Tensor, "N T"]) -> Float[Tensor, "N M 2"]:
    """Each row's state after its last real position. Padding on the right adds nothing: what looks ahead there is 0."""
    n_real = is_real.sum(1)
    found = h[torch.arange(len(h), device=h.device), (n_real - 1).clamp(min=0)]
    return torch.where((n_real > 0)[:, None, None], found, before)


def _by_blocks(w: Signal, pole: Pole, method: Method, layout: Layout, segments: Int[Tensor, "B L"] | None) -> Signal:
    """[noisy ; clean]: both blocks that start at a border begin with the clean state there."""
    assert layout.block is not None
    block, (noisy, clean) = layout.block, w.chunk(2, dim=1)
    length = clean.shape[1]
    n_blocks = -(-length // block)
    halves = None if segments is None else segments.chunk(2, dim=1)
    past = respond(clean, pole, method, ids=None if halves is None else halves[1])
    border = torch.arange(n_blocks, device=w.device) * block
    handed = _at_borders(past, halves, border)

    def cut(x: Tensor, padding: int) -> Tensor:
        short = (0, 0) * (x.dim() - 2) + (0, -length % block)
        return F.pad(x, short, value=padding).unflatten(1, (-1, block)).flatten(0, 1)

    ids = None if halves is None else cut(torch.cat(halves), -1)
    rows = _behind(handed.flatten(0, 1), cut(torch.cat([noisy, clean]), 0), pole)
    h = respond(rows, pole, method, ahead=True, ids=ids)
    return torch.cat(h.unflatten(0, (-1, n_blocks)).flatten(1, 2)[:, :length].chunk(2), dim=1)


def _at_borders(
    past: Signal, halves: tuple[Tensor, ...] | None, border: Int[Tensor, " K"]
) -> Float[Tensor, "B2 K M 2"]:
    """The clean state that each block starts from, noisy blocks first: that after the last real clean position before
    it, and nothing where that was of another segment."""
    if halves is None:
        handed = F.pad(past[:, border[1:] - 1], (0, 0, 0, 0, 1, 0))
        return torch.cat([handed, handed])
    clean = halves[1]
    places = torch.arange(clean.shape[1], device=clean.device)
    last = F.pad(torch.where(clean >= 0, places, -1).cummax(1).values, (1, 0), value=-1)[:, border]
    at = last.clamp(min=0)
    handed = past.gather(1, at[..., None, None].expand(-1, -1, *past.shape[2:]))
    of = torch.where(last >= 0, clean.gather(1, at), -1)
    is_same = torch.cat([(half[:, border] == of) & (of >= 0) for half in halves])
    return torch.where(is_same[..., None, None], torch.cat([handed, handed]), 0.0)
