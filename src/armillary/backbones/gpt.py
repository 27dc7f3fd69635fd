"""GPT: learned positions, pre-LayerNorm blocks, GELU, biases.

Source: Radford et al. 2019 (GPT-2); initialisation N(0, 0.02), biases 0.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from armillary.contracts import Cache, Layout
from armillary.nn.attention import Attention
from armillary.nn.cache import AttentionState, DecodingCache
from armillary.nn.feed_forward import GeluNetwork
from armillary.nn.residual import Modulation, NoiseLevel, residual
from armillary.nn.sight import Sight, look
from armillary.nn.stack import Stack
from armillary.refusal import Refusal
from armillary.registry import Part


class Gpt(Part):
    """Shape of a GPT. max_length is how many positions are learned: the packing's window."""

    d_model: int = Field(256, ge=1)
    n_layers: int = Field(6, ge=1)
    n_heads: int = Field(4, ge=1)
    d_ff: int | None = Field(None, ge=1)
    max_length: int = Field(128, ge=1)
    gelu: Literal["exact", "tanh"] = "exact"
    dropout: float = Field(0.0, ge=0, lt=1)
    knows_noise_level: bool = False

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Gpt:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self

    @property
    def width(self) -> int:
        return self.d_model

    def build(self) -> GptBackbone:
        return GptBackbone(self)


class GptBackbone(nn.Module):
    def __init__(self, shape: Gpt) -> None:
        super().__init__()
        self.shape = shape
        self.position_embedding = nn.Embedding(shape.max_length, shape.d_model)
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = Stack(_Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.d_model)
        self.noise_level = NoiseLevel(shape.d_model, shape.knows_noise_level)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        self._refuse_longer(x.shape[1] // 2 if layout.direction == "blocks" else x.shape[1])
        c = self.noise_level(noise_level)
        sight = look(layout, x.shape[1], x.device, cache)
        x = x + self.position_embedding(sight.positions)
        x = self.blocks(self.drop(x), cache, sight, c)
        return self.norm(x)

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        self._refuse_longer(capacity)
        return self.blocks.allocate(n_rows, capacity, device=device, dtype=dtype)

    def _refuse_longer(self, length: int) -> None:
        if length > self.shape.max_length:
            raise Refusal(
                f"a row of {length} tokens, and {self.shape.max_length} positions are learned; "
                "set model.backbone.max_length to the longest row"
            )


class _Block(nn.Module):
    def __init__(self, shape: Gpt) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.d_model)
        self.attention = Attention(shape.d_model, shape.n_heads, bias=True, dropout=shape.dropout)
        self.mlp_norm = nn.LayerNorm(shape.d_model)
        hidden = shape.d_ff or 4 * shape.d_model
        self.mlp = GeluNetwork(shape.d_model, hidden, "tanh" if shape.gelu == "tanh" else "none")
        self.drop = nn.Dropout(shape.dropout)
        self.modulation = Modulation(shape.d_model, shape.knows_noise_level)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        sight: Sight,
        c: Float[Tensor, " B #L D"] | None,
        state: AttentionState | None,
    ) -> Float[Tensor, "B L D"]:
        first, second = self.modulation(c)
        x = residual(x, lambda h: self.attention(h, sight, state=state), self.attention_norm, self.drop, first)
        return residual(x, self.mlp, self.mlp_norm, self.drop, second)

    def allocate(self, n_rows: int, capacity: int, **kind: Any) -> AttentionState:
        return self.attention.allocate(n_rows, capacity, **kind)
