"""A bank of damped oscillators as a linear filter, computed in parallel three ways that are all exact.

Source: h_t = λ h_{t-1} + w_t with λ = α e^{jθ}, a convolution with λ^τ: Gu et al. 2021, arXiv 2111.00396 (by FFT);
Hillis & Steele 1986 (by doubling); Dao & Gu 2024, arXiv 2405.21060 (in chunks).
Differs: chunks of both directions are one product with λ^|t-s|, whose first and last places go to the neighbours.
Powers of λ are taken in float64: in float32 the phase n θ has lost its last digits after some hundred steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 32
"""Steps of a chunk: 32 and 64 are as fast as each other, 128 is slower."""
Method = Literal["chunked", "doubling", "fft"]
Signal = Float[Tensor, "N T M 2"]
"""Complex numbers as pairs of reals, of M oscillators."""


class Pole(NamedTuple):
    """λ of each oscillator, as log α and θ: a power is one exponential, and nothing overflows."""

    log_decay: Float[Tensor, " M"]
    angle: Float[Tensor, " M"]

    def power(self, n: Int[Tensor, "..."]) -> Float[Tensor, "M ... 2"]:
        exponent = n.to(self.angle.dtype)
        size = torch.exp(torch.einsum("m,...->m...", self.log_decay, exponent))
        turn = torch.einsum("m,...->m...", self.angle, exponent)
        return torch.stack([size * turn.cos(), size * turn.sin()], dim=-1)

    @property
    def gain(self) -> Float[Tensor, " M"]:
        """γ = sqrt(1 - α²): driven by white noise, the state's variance is the noise's."""
        return (-torch.expm1(2 * self.log_decay)).sqrt()

    def to(self, dtype: torch.dtype) -> Pole:
        return Pole(self.log_decay.to(dtype), self.angle.to(dtype))

    def every(self, n: int) -> Pole:
        """Of a filter that sees one step in n."""
        return Pole(n * self.log_decay, n * self.angle)

    def facts(self) -> list[dict[str, float]]:
        """Of each oscillator, with the a and g of x'' = -a x - g x' that it discretises at Δt = 1.

        There |λ| = S^-1/2 and cos θ = (1 + S - a) / (2 S^1/2), with S = 1 + g.
        """
        found = []
        for log_alpha, angle in zip(self.log_decay.tolist(), self.angle.tolist(), strict=True):
            s, theta = math.exp(-2 * log_alpha), abs(math.remainder(angle, 2 * math.pi))
            facts = {"alpha": math.exp(log_alpha), "theta": theta, "half_life_tokens": -math.log(2) / log_alpha}
            facts["period_tokens"] = 2 * math.pi / theta if theta else math.inf
            found.append(facts | {"g": s - 1, "a": 1 + s - 2 * math.sqrt(s) * math.cos(theta)})
        return found


def times(a: Float[Tensor, "... 2"], b: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
    (x, y), (u, v) = a.unbind(-1), b.unbind(-1)
    return torch.stack([x * u - y * v, x * v + y * u], dim=-1)


def respond(
    w: Signal, pole: Pole, method: Method = "chunked", *, ahead: bool = False, ids: Int[Tensor, "N T"] | None = None
) -> Signal:
    """h_t = Σ λ^|t-s| w_s over s ≤ t; `ahead`: over later s too. The state h before the first step enters as w_0 + λ h.

    ids: only steps of the same id meet, bit for bit; equal ids lie side by side. Such rows are filtered by doubling.
    """
    if w.shape[1] <= 1 or not len(w):
        return w
    with torch.autocast(w.device.type, enabled=False):
        x, pole = w.permute(2, 0, 1, 3), pole.to(torch.float32 if w.device.type == "mps" else torch.float64)
        out = METHODS[method](x, pole, ahead) if ids is None else _doubled(x, pole, ahead, ids)
    return out.permute(1, 2, 0, 3)


def _chunked(x: Float[Tensor, "M N T 2"], pole: Pole, ahead: bool) -> Float[Tensor, "M N T 2"]:
    n_oscillators, n_rows, length, _ = x.shape
    size = min(CHUNK, length)
    place = torch.arange(size, device=x.device)
    lags = place - place[:, None]
    chunks = F.pad(x, (0, 0, 0, -length % size)).reshape(n_oscillators, -1, 2 * size)
    out = torch.bmm(chunks, _matrix(pole, lags.abs() if ahead else lags).to(x.dtype))
    if length > size:
        ends = out.view(n_oscillators, n_rows, -1, size, 2)
        coarse = pole.every(size)
        carried = [F.pad(_chunked(ends[:, :, :-1, -1], coarse, False), (0, 0, 1, 0))]
        distances = [place + 1]
        if ahead:
            later = _chunked(ends[:, :, 1:, 0].flip(2), coarse, False).flip(2)
            carried.append(F.pad(later, (0, 0, 0, 1)))
            distances.append(size - place)
        into = torch.cat(carried, dim=-1).flatten(1, 2)
        out = torch.baddbmm(out, into, _matrix(pole, torch.stack(distances)).to(x.dtype))
    return out.view(n_oscillators, n_rows, -1, 2)[:, :, :length]


def _matrix(pole: Pole, lags: Int[Tensor, "S T"]) -> Float[Tensor, "M S2 T2"]:
    """λ^lag as real blocks of two by two, from each of S places to each of T; nothing where the lag is negative."""
    c, s = (pole.power(lags.clamp(min=0)) * (lags >= 0)[..., None]).unbind(-1)
    blocks = torch.stack([c, s, -s, c], dim=-1).unflatten(-1, (2, 2))
    return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _doubled(
    x: Float[Tensor, "M N T 2"], pole: Pole, ahead: bool, ids: Int[Tensor, "N T"] | None = None
) -> Float[Tensor, "M N T 2"]:
    if ahead:
        back = None if ids is None else ids.flip(1)
        return _doubled(x, pole, False, ids) + _doubled(x.flip(2), pole, False, back).flip(2) - x
    lag = 1
    while lag < x.shape[2]:
        power = pole.power(torch.full((), lag, device=x.device))[:, None, None].to(x.dtype)
        before = times(F.pad(x[:, :, :-lag], (0, 0, lag, 0)), power)
        if ids is not None:
            is_same = F.pad(ids[:, lag:] == ids[:, :-lag], (lag, 0))
            before = torch.where(is_same[..., None], before, 0.0)
        x, lag = x + before, 2 * lag
    return x


def _by_fft(x: Float[Tensor, "M N T 2"], pole: Pole, ahead: bool) -> Float[Tensor, "M N T 2"]:
    """Rounding reaches every step of a row from every other."""
    length = x.shape[2]
    kernel = torch.view_as_complex(pole.power(torch.arange(length, device=x.device)).to(x.dtype))
    later = kernel[:, 1:].flip(1) * ahead
    kernel = torch.cat([kernel, torch.zeros_like(kernel[:, :1]), later], dim=1)
    spectrum = torch.fft.fft(torch.view_as_complex(x.contiguous()), n=2 * length) * torch.fft.fft(kernel)[:, None]
    return torch.view_as_real(torch.fft.ifft(spectrum)[..., :length])


METHODS: dict[Method, Callable[[Tensor, Pole, bool], Tensor]] = {
    "chunked": _chunked,
    "doubling": _doubled,
    "fft": _by_fft,
}
