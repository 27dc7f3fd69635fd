"""The transformer of both PSANN bases: RMSNorm, bias-free attention, a sine network under a learned scale, and perhaps
a wave: a depthwise convolution under a sine.

Source: PSANN-LM (Nickm1128/psann).
Differs: small normal initialisation, and the matrices that write into the residual stream start smaller by the root of
their number; the wave sees no future where the layout shows none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from armillary.contracts import Cache, Layout
from armillary.nn.alibi import with_distance
from armillary.nn.attention import Attention
from armillary.nn.cache import BlockState, DecodingCache, MixerState
from armillary.nn.convolution import DepthwiseConvolution
from armillary.nn.linear import Linear, working_type
from armillary.nn.residual import Modulation, NoiseLevel, residual
from armillary.nn.rotary import Rotation, rotation
from armillary.nn.sight import Sight, look
from armillary.nn.sine import Sine, SineNetwork, SineParams
from armillary.nn.sinusoidal import sinusoids
from armillary.nn.stack import Stack
from armillary.registry import Part

EPS = 1e-5
ROPE_THETA = 10_000.0


class PsannShape(Part):
    """What both bases have. d_mlp: 4 · d_model where it is not set."""

    d_model: int = Field(512, ge=1)
    n_layers: int = Field(8, ge=1)
    n_heads: int = Field(8, ge=1)
    d_mlp: int | None = Field(None, ge=1)
    positional_encoding: Literal["rope", "alibi", "sinusoidal"] = "rope"
    sine_params: SineParams = SineParams()
    dropout: float = Field(0.0, ge=0, lt=1)
    knows_noise_level: bool = False

    @model_validator(mode="after")
    def heads_fit(self) -> PsannShape:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.positional_encoding == "rope" and (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} must be an even multiple of n_heads {self.n_heads} for rope; "
                "take another number of heads, or positional_encoding alibi or sinusoidal"
            )
        return self

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def max_length(self) -> None:
        return None


@dataclass(frozen=True)
class Wave:
    """kernel: taps. growth: layer l has dilation growth^l. replaces: the wave stands in the place of the network."""

    kernel: int
    growth: int
    replaces: bool


class PsannBackbone(nn.Module):
    def __init__(self, shape: PsannShape, wave: Wave | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = Stack(_Block(shape, wave, layer) for layer in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=EPS)
        self.noise_level = NoiseLevel(shape.d_model, shape.knows_noise_level)
        n_layers_in_block = 3 if wave is not None and not wave.replaces else 2
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes_to_residual = name.endswith((".attention.o", ".mlp.down", ".wave.out"))
                scale = (n_layers_in_block * shape.n_layers) ** -0.5 if writes_to_residual else 1.0
                nn.init.normal_(module.weight, std=0.02 * scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        c = self.noise_level(noise_level)
        sight = look(layout, x.shape[1], x.device, cache)
        x, sight, turn = ENCODINGS[self.shape.positional_encoding](x, sight, self.shape.n_heads)
        return self.norm(self.blocks(self.drop(x), cache, sight, turn, c))

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        return self.blocks.allocate(n_rows, capacity, device=device, dtype=dtype)


class _Block(nn.Module):
    def __init__(self, shape: PsannShape, wave: Wave | None, layer: int) -> None:
        super().__init__()
        width = shape.d_model
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.attention = Attention(width, shape.n_heads, bias=False, dropout=shape.dropout)
        self.mlp = self.wave = None
        if wave is None or not wave.replaces:
            self.mlp_norm = nn.RMSNorm(width, eps=EPS)
            self.mlp = SineNetwork(width, shape.d_mlp or 4 * width, shape.sine_params)
            self.beta = nn.Parameter(torch.ones(1))  # not a scalar, which FSDP2 cannot shard
        if wave is not None:
            self.wave_norm = nn.RMSNorm(width, eps=EPS)
            self.wave = _WaveNetwork(width, wave.kernel, wave.growth**layer, shape.sine_params)
        self.drop = nn.Dropout(shape.dropout)
        n_layers = 1 + (self.mlp is not None) + (self.wave is not None)
        self.modulation = Modulation(width, shape.knows_noise_level, n_layers)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        turn: Rotation | None,
        c: Float[Tensor, " B #L D"] | None,
        state: BlockState | None,
    ) -> Float[Tensor, "B L D"]:
        by = iter(self.modulation(c))
        states = iter(()) if state is None else iter(state.states)
        memory = next(states, None)
        x = residual(x, lambda h: self.attention(h, sight, turn, memory), self.attention_norm, self.drop, next(by))
        mlp, wave = self.mlp, self.wave
        if mlp is not None:
            x = residual(x, lambda h: self.beta * mlp(h), self.mlp_norm, self.drop, next(by))
        if wave is not None:
            taps = next(states, None)
            x = residual(x, lambda h: wave(h, sight, taps), self.wave_norm, self.drop, next(by))
        return x

    def allocate(self, n_rows: int, capacity: int, **kind: Any) -> BlockState:
        attention = self.attention.allocate(n_rows, capacity, **kind)
        return BlockState(attention, *([] if self.wave is None else [self.wave.convolution.allocate(n_rows, **kind)]))


class _WaveNetwork(nn.Module):
    def __init__(self, width: int, kernel: int, dilation: int, params: SineParams) -> None:
        super().__init__()
        self.convolution = DepthwiseConvolution(width, kernel, dilation)
        self.sine = Sine(width, params)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "B L D"], sight: Sight, state: MixerState | None) -> Float[Tensor, "B L D"]:
        return self.out(self.sine(self.convolution(x, sight, state)))


Encoded = tuple[Tensor, Sight, Rotation | None]


def _rope(x: Tensor, sight: Sight, n_heads: int) -> Encoded:
    return x, sight, rotation(sight.positions, x.shape[-1] // n_heads, ROPE_THETA)


def _alibi(x: Tensor, sight: Sight, n_heads: int) -> Encoded:
    return x, with_distance(sight, n_heads, working_type(x)), None


def _sinusoidal(x: Tensor, sight: Sight, n_heads: int) -> Encoded:
    """As large as the embedding it is added to, which starts fifty times smaller than a sine."""
    width = x.shape[-1]
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * (2 / width) ** 0.5
    return x + size * sinusoids(sight.positions, width).to(x.dtype), sight, None


ENCODINGS: dict[str, Callable[[Tensor, Sight, int], Encoded]] = {
    "rope": _rope,
    "alibi": _alibi,
    "sinusoidal": _sinusoidal,
}
