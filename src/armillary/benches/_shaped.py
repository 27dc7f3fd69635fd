"""The models that a bench measures: backbones of one shape, as recipes that need no text."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from armillary import registry
from armillary.assemble import build
from armillary.assemble import parts as parts_of
from armillary.assemble.parts import Parts
from armillary.model.network import LanguageNetwork, count_parameters
from armillary.refusal import Refusal
from armillary.registry import Part


class Sized(Part):
    """base: backbones, each given those of the other fields that it has, by the name it has for them. backbone: more
    fields, for all of them."""

    base: tuple[str, ...] = Field(("respsann", "waveresnet"), min_length=1)
    d_model: int = Field(256, ge=1)
    n_layers: int = Field(4, ge=1)
    n_heads: int = Field(4, ge=1)
    n_vocab: int = Field(32_000, ge=8)
    backbone: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"

    def parts(self, base: str, window: int, **training: Any) -> Parts:
        known = registry.find("backbones", base).model_fields
        shape = {
            **dict.fromkeys(("d_model", "model_dim"), self.d_model),
            **dict.fromkeys(("n_layers", "num_layers"), self.n_layers),
            **dict.fromkeys(("n_heads", "num_heads"), self.n_heads),
            **dict.fromkeys(("max_length", "window"), window),
        }
        fields = {key: value for key, value in shape.items() if key in known} | self.backbone
        return parts_of.resolve(
            {
                "name": "bench",
                "seed": 0,
                "corpora": {"main": {"source": {"name": "embedded"}}},
                "tokenizer": {"name": "bpe"},
                "packing": {"window": window},
                "model": {"backbone": {"name": base, **fields}},
                "objective": {"name": "autoregressive"},
                "training": {
                    "steps": 4,
                    "batch_rows": 1,
                    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
                    "schedule": {"name": "constant"},
                    "device": self.place.type,
                    "deterministic": False,
                }
                | training,
            }
        )

    @property
    def place(self) -> torch.device:
        return build.pick_device(self.device)

    def network(self, parts: Parts) -> LanguageNetwork:
        """Random weights, for decoding."""
        return build.network(parts, self.n_vocab).eval().requires_grad_(False).to(self.place)


class Shaped(Sized):
    """Models that are trained, in this arithmetic."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def parts(self, base: str, window: int, **training: Any) -> Parts:
        return super().parts(base, window, precision=self.precision, **training)


def rows_of(n_tokens: int, window: int) -> int:
    if n_tokens % window:
        raise Refusal(f"batch_tokens {n_tokens}: is no multiple of the window, {window}; change one of them")
    return n_tokens // window


def n_parameters(network: LanguageNetwork) -> int:
    return count_parameters(network)[0]
