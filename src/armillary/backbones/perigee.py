"""Perigee: damped oscillators and windowed attention side by side under a learned gate, then SwiGLU; RMSNorm, rotary.

Source: the mixer's sources are in nn/oscillator.py; SwiGLU, RMSNorm and rotary positions as in llama.py.
Differs: the prototype of this name averaged its two branches with fixed weights; the gate is learned here. The matrices
that write into the residual stream start smaller by sqrt(2 · layers).
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from armillary.contracts import Cache, Layout
from armillary.nn.attention import Attention
from armillary.nn.band_attention import RingState, within
from armillary.nn.cache import BlockState, DecodingCache
from armillary.nn.feed_forward import SwiGlu
from armillary.nn.linear import Linear
from armillary.nn.oscillator import OscillatorMixer
from armillary.nn.oscillator_filters import Method
from armillary.nn.residual import Modulation, NoiseLevel, residual
from armillary.nn.rotary import Rotation, rotation
from armillary.nn.sight import Sight, look
from armillary.nn.stack import Stack
from armillary.registry import Part

SLOWEST, FASTEST = 0.01, math.pi
"""Angles at the start, in radians a token: periods of 628 tokens to 2."""


class Perigee(Part):
    """Layer l attends within radius_factor · (1 + radius_growth · l) · sqrt(window) places, clamped and rounded up.

    window: the recipe's packing.window, which a recipe fills in. angles: where θ starts; with slows_with_depth each
    layer starts in its own part of the range, the first in the fastest. gate: one weight a channel, or one a token.
    filter: how rows of one document are filtered: all are exact; fft mixes rounding over the row, so it is for checks.
    Rows of several documents take doubling.
    """

    num_layers: int = Field(4, ge=1)
    model_dim: int = Field(128, ge=1)
    oscillator_count: int = Field(16, ge=1)
    num_heads: int = Field(8, ge=1)
    mamba_repeat: int = Field(2, ge=1)
    window: int = Field(128, ge=1)
    radius_factor: float = Field(4.0, gt=0, allow_inf_nan=False)
    min_radius: int = Field(1, ge=1)
    max_radius: int = Field(64, ge=1)
    radius_growth: float = Field(0.0, ge=0, allow_inf_nan=False)
    angles: Literal["log", "uniform"] = "log"
    slows_with_depth: bool = False
    gate: Literal["channel", "token"] = "channel"
    filter: Method = "chunked"
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    knows_noise_level: bool = False

    @model_validator(mode="after")
    def heads_and_radii_fit(self) -> Perigee:
        if self.model_dim % self.num_heads or (self.model_dim // self.num_heads) % 2:
            raise ValueError(
                f"model_dim {self.model_dim} must be an even multiple of num_heads {self.num_heads} (rotary pairs)"
            )
        if self.min_radius > self.max_radius:
            raise ValueError(f"min_radius {self.min_radius} is more than max_radius {self.max_radius}")
        return self

    @property
    def width(self) -> int:
        return self.model_dim

    @property
    def n_layers(self) -> int:
        return self.num_layers

    @property
    def max_length(self) -> None:
        return None

    @property
    def hidden(self) -> int:
        """8/3 · model_dim, rounded up to a multiple of 32."""
        return -(-8 * self.model_dim // 96) * 32

    def radius(self, layer: int) -> int:
        reach = self.radius_factor * (1 + self.radius_growth * layer) * math.sqrt(self.window)
        return min(max(math.ceil(reach), self.min_radius), self.max_radius)

    def first_angles(self, layer: int) -> Float[Tensor, " M"]:
        """θ of a layer's oscillators at the start."""
        slow, fast = 0.0, 1.0
        if self.slows_with_depth:
            slow, fast = (1 - (layer + k) / self.num_layers for k in (1, 0))
        if self.angles == "uniform":
            return math.pi * (slow + (fast - slow) * (1 - torch.rand(self.oscillator_count)))  # never 0
        places = torch.linspace(slow, fast, self.oscillator_count + 2)[1:-1]  # one alone stands in the middle
        return SLOWEST * (FASTEST / SLOWEST) ** places

    def build(self) -> PerigeeBackbone:
        return PerigeeBackbone(self)


class PerigeeBackbone(nn.Module):
    def __init__(self, shape: Perigee) -> None:
        super().__init__()
        self.shape = shape
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = Stack(_Block(shape, layer) for layer in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.model_dim, eps=shape.norm_eps)
        self.noise_level = NoiseLevel(shape.model_dim, shape.knows_noise_level)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.endswith("modulation.table"):
                writes_to_residual = name.endswith(("attention.o.weight", "mlp.down.weight", ".out.weight"))
                nn.init.normal_(parameter, std=0.02 * ((2 * shape.num_layers) ** -0.5 if writes_to_residual else 1.0))
            if name.endswith(("bank.read.weight", "bank.write.weight")):
                # States as large as what they filter: the norm behind the bank would hide a bank that starts small.
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        s = self.shape
        c = self.noise_level(noise_level)
        sight = look(layout, x.shape[1], x.device, cache)
        near = {radius: within(sight, radius, cache) for radius in {s.radius(layer) for layer in range(s.num_layers)}}
        turn = rotation(sight.positions, s.model_dim // s.num_heads, s.rope_theta)
        return self.norm(self.blocks(self.drop(x), cache, sight, near, turn, c))

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        return self.blocks.allocate(n_rows, capacity, device=device, dtype=dtype)

    def oscillators(self) -> list[dict[str, Any]]:
        """Every oscillator as it is now: see Pole.facts."""
        return [
            {"layer": layer, "mixer": index} | facts
            for layer, block in enumerate(self.blocks)
            for index, mixer in enumerate(cast(_Block, block).mixers)
            for facts in cast(OscillatorMixer, mixer).bank.pole.facts()
        ]

    def describe(self) -> dict[str, Any]:
        """Plain facts of the network as it is now."""
        oscillators = self.oscillators()
        gates = [cast(_Block, block).gate for block in self.blocks]
        shares = [torch.sigmoid(gate).mean().item() for gate in gates if isinstance(gate, nn.Parameter)]
        half_lives = sorted(o["half_life_tokens"] for o in oscillators)
        periods = sorted(o["period_tokens"] for o in oscillators)
        return {
            "attention_radius_of_each_layer": [self.shape.radius(layer) for layer in range(self.shape.num_layers)],
            "n_oscillators": len(oscillators),
            "half_life_tokens": {"least": half_lives[0], "most": half_lives[-1]},
            "period_tokens": {"least": periods[0], "most": periods[-1]},
            "mean_share_of_oscillators_in_each_layer": shares or "decided token by token",
            "filter": self.shape.filter,
        }


class _Block(nn.Module):
    """X + gate ⊙ branch + (1 - gate) ⊙ attention, then SwiGLU. The branch is what the chain adds to Norm X."""

    def __init__(self, shape: Perigee, layer: int) -> None:
        super().__init__()
        width, eps = shape.model_dim, shape.norm_eps
        angles = shape.first_angles(layer)
        self.radius = shape.radius(layer)
        self.mixing_norm = nn.RMSNorm(width, eps=eps)
        self.mixers = nn.ModuleList(
            OscillatorMixer(width, angles, shape.filter, eps) for _ in range(shape.mamba_repeat)
        )
        self.attention = Attention(width, shape.num_heads, bias=False, dropout=shape.dropout)
        self.gate = nn.Parameter(torch.zeros(width)) if shape.gate == "channel" else Linear(width, 1)
        self.mlp_norm = nn.RMSNorm(width, eps=eps)
        self.mlp = SwiGlu(width, shape.hidden)
        self.drop = nn.Dropout(shape.dropout)
        self.modulation = Modulation(width, shape.knows_noise_level)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        near: dict[int, Sight],
        turn: Rotation,
        c: Float[Tensor, " B #L D"] | None,
        state: BlockState | None,
    ) -> Float[Tensor, "B L D"]:
        first, second = self.modulation(c)

        def mix(h: Tensor) -> Tensor:
            return self._mix(h, sight, near, turn, state)

        x = residual(x, mix, self.mixing_norm, self.drop, first)
        return residual(x, self.mlp, self.mlp_norm, self.drop, second)

    def allocate(self, n_rows: int, capacity: int, **kind: Any) -> BlockState:
        ring = self.attention.allocate(n_rows, self.radius, of=RingState, **kind)
        return BlockState(ring, *(cast(OscillatorMixer, mixer).allocate(n_rows, **kind) for mixer in self.mixers))

    def _mix(
        self, h: Float[Tensor, "B L D"], sight: Sight, near: dict[int, Sight], turn: Rotation, state: BlockState | None
    ) -> Float[Tensor, "B L D"]:
        ring, *states = (None,) * (1 + len(self.mixers)) if state is None else state.states
        branch = torch.zeros_like(h)
        for mixer, own in zip(self.mixers, states, strict=True):
            branch = branch + mixer(h + branch, sight, own)
        attended = self.attention(h, near[self.radius], turn, ring)
        gate = torch.sigmoid(self.gate(h) if isinstance(self.gate, nn.Module) else self.gate)
        return gate * branch + (1 - gate) * attended
