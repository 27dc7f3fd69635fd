"""LLaMA: RMSNorm, rotary positions, SwiGLU, grouped queries, no biases.

Source: Touvron et al. 2023, arXiv 2302.13971; grouped queries as in arXiv 2307.09288.
Differs: the two matrices that write into the residual stream start smaller by sqrt(2 · layers), as in GPT-2.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from armillary.contracts import Cache, Layout
from armillary.nn.attention import Attention
from armillary.nn.cache import AttentionState, DecodingCache
from armillary.nn.feed_forward import SwiGlu
from armillary.nn.residual import Modulation, NoiseLevel, residual
from armillary.nn.rotary import Rotation, rotation
from armillary.nn.sight import Sight, look
from armillary.nn.stack import Stack
from armillary.registry import Part


class Llama(Part):
    """Shape of a LLaMA."""

    d_model: int = Field(256, ge=1)
    n_layers: int = Field(6, ge=1)
    n_heads: int = Field(4, ge=1)
    n_kv_heads: int | None = Field(None, ge=1)
    d_ff: int | None = Field(None, ge=1)
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    knows_noise_level: bool = False

    @model_validator(mode="after")
    def heads_fit(self) -> Llama:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} must be an even multiple of n_heads {self.n_heads} (rotary pairs)"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        return self

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def max_length(self) -> None:
        return None

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def hidden(self) -> int:
        """8/3 · d_model, rounded up to a multiple of 32, where d_ff is not set."""
        return self.d_ff or -(-8 * self.d_model // 96) * 32

    def build(self) -> nn.Module:
        return LlamaBackbone(self)


class LlamaBackbone(nn.Module):
    def __init__(self, shape: Llama) -> None:
        super().__init__()
        self.shape = shape
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = Stack(_Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        self.noise_level = NoiseLevel(shape.d_model, shape.knows_noise_level)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.endswith("modulation.table"):
                writes_to_residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
                scale = (2 * shape.n_layers) ** -0.5 if writes_to_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        c = self.noise_level(noise_level)
        sight = look(layout, x.shape[1], x.device, cache)
        turn = rotation(sight.positions, self.shape.d_model // self.shape.n_heads, self.shape.rope_theta)
        return self.norm(self.blocks(self.drop(x), cache, sight, turn, c))

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        return self.blocks.allocate(n_rows, capacity, device=device, dtype=dtype)


class _Block(nn.Module):
    def __init__(self, shape: Llama) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        self.attention = Attention(shape.d_model, shape.n_heads, shape.kv_heads, bias=False, dropout=shape.dropout)
        self.mlp_norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        self.mlp = SwiGlu(shape.d_model, shape.hidden)
        self.drop = nn.Dropout(shape.dropout)
        self.modulation = Modulation(shape.d_model, shape.knows_noise_level)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        turn: Rotation,
        c: Float[Tensor, " B #L D"] | None,
        state: AttentionState | None,
    ) -> Float[Tensor, "B L D"]:
        first, second = self.modulation(c)
        x = residual(x, lambda h: self.attention(h, sight, turn, state), self.attention_norm, self.drop, first)
        return residual(x, self.mlp, self.mlp_norm, self.drop, second)

    def allocate(self, n_rows: int, capacity: int, **kind: Any) -> AttentionState:
        return self.attention.allocate(n_rows, capacity, **kind)
