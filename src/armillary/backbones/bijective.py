"""A transformer of blocks that can be undone: two streams, of which each in turn is changed by what the other says.

Source: reversible blocks: Gomez et al. 2017, arXiv 1707.04585, eq. 8 and 9; with attention and feed-forward as the two
conditioners: Kitaev et al. 2020, arXiv 2001.04451, section 3; affine couplings: Dinh et al. 2016, arXiv 1605.08803.
Differs: both streams begin as the embedding and the head reads their mean, so that an additive block has the parameters
of a LLaMA's; the logarithm of an affine scale is at most 1/√n_layers. A standard block of a hybrid takes the mean of
the streams, and both go on from its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armillary.backbones.llama import Llama
from armillary.contracts import Cache, Layout
from armillary.nn.attention import Attention
from armillary.nn.cache import AttentionState, DecodingCache
from armillary.nn.feed_forward import SwiGlu
from armillary.nn.linear import Linear
from armillary.nn.residual import NoiseLevel
from armillary.nn.reversible import Change, Ended, Step, run, undo
from armillary.nn.rotary import rotation
from armillary.nn.sight import look
from armillary.nn.stack import Stack
from armillary.refusal import Refusal


class Bijective(Llama):
    """A LLaMA's shape. hybrid_layers: the blocks that are reversible, counted from 0, where not all are."""

    coupling: Literal["additive", "affine"] = "additive"
    hybrid_layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def hybrid_layers_are_layers(self) -> Bijective:
        if self.hybrid_layers is not None and set(self.hybrid_layers) - set(range(self.n_layers)):
            raise ValueError(f"hybrid_layers {list(self.hybrid_layers)} must lie in 0 to {self.n_layers - 1}")
        if self.hybrid_layers is not None and not 0 < len(set(self.hybrid_layers)) == len(self.hybrid_layers):
            raise ValueError("hybrid_layers names each reversible block once, and one at least; for none take llama")
        return self

    @property
    def reversible_layers(self) -> list[int]:
        return [i for i in range(self.n_layers) if self.hybrid_layers is None or i in self.hybrid_layers]

    @property
    def is_bijective(self) -> bool:
        return len(self.reversible_layers) == self.n_layers

    @property
    def is_flow(self) -> bool:
        """Whether it can stretch space everywhere and tell by how much: what a density needs."""
        return self.is_bijective and self.coupling == "affine"

    def build(self) -> BijectiveBackbone:
        return BijectiveBackbone(self)


class BijectiveBackbone(nn.Module):
    """(a, b) → (a, b) on 2 · L · d numbers. With `blocks.recomputes` the backward pass inverts reversible blocks and
    computes standard ones again."""

    def __init__(self, shape: Bijective) -> None:
        super().__init__()
        self.shape = shape
        self.drop = nn.Dropout(shape.dropout)
        reversible = shape.reversible_layers
        self.blocks = Stack(_Block(shape, i in reversible) for i in range(shape.n_layers))
        # Neighbouring reversible blocks are undone in one go; a standard one is computed again by itself.
        runs = groupby(range(shape.n_layers), key=lambda i: -1 if i in reversible else i)
        self.runs = [(key == -1, list(indices)) for key, indices in runs]
        self.norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        self.noise_level = NoiseLevel(shape.d_model, shape.knows_noise_level)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.endswith("table"):
                writes_to_stream = name.endswith(("layer.o.weight", "layer.down.weight"))
                scale = (2 * shape.n_layers) ** -0.5 if writes_to_stream else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    @property
    def is_bijective(self) -> bool:
        return self.shape.is_bijective

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        x = self.drop(x)
        a, b, _ = self.streams(x, x, layout, noise_level, cache)
        return self.read(a, b)

    def read(self, a: Float[Tensor, "B L D"], b: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.norm((a + b) / 2)

    def streams(
        self,
        a: Float[Tensor, "B L D"],
        b: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
        where: Bool[Tensor, "B L"] | None = None,
    ) -> Ended:
        """Both streams at the end, and how much the reversible blocks stretched each position.

        where: positions that change; the others are read as they are, and the map is one of the changing ones alone.
        """
        c = self.noise_level(noise_level)
        recomputes = self.blocks.recomputes and self.training and cache is None
        total = a.new_zeros(a.shape[:2])
        for is_reversible, steps in self._runs(a, layout, cache, where):
            if is_reversible:
                a, b, more = run(steps, a, b, c, recomputes=recomputes)
                total = total + more
            else:
                x = (a + b) / 2
                x = checkpoint(_standard, steps, x, c, use_reentrant=False) if recomputes else _standard(steps, x, c)
                a = b = x
        return a, b, total

    def inverse(
        self,
        a: Float[Tensor, "B L D"],
        b: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        where: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """What `streams` began with, from what it ended with alone.

        Raises Refusal where a block is not reversible, or where something would be dropped at random.
        """
        self._refuse_hybrid()
        if self.training and self.shape.dropout:
            raise Refusal("backbone bijective: is undone in evaluation mode, where nothing is dropped; call eval()")
        ((_, steps),) = self._runs(a, layout, None, where)
        return undo(steps, a, b, self.noise_level(noise_level))

    def log_det(
        self,
        a: Float[Tensor, "B L D"],
        b: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Of the map on a row's 2 · L · d numbers, at these streams. Raises Refusal where a block is not reversible."""
        self._refuse_hybrid()
        return self.streams(a, b, layout, noise_level)[2].sum(1)

    @torch.no_grad()
    def reconstruction_error(self, a: Float[Tensor, "B L D"], b: Float[Tensor, "B L D"], layout: Layout) -> float:
        """The most that inverse(streams(a, b)) differs from (a, b), over their largest entry."""
        begun, (a, b, _) = torch.stack([a, b]), self.streams(a, b, layout)
        return float((torch.stack(self.inverse(a, b, layout)) - begun).abs().max() / begun.abs().max())

    def describe(self) -> dict[str, Any]:
        """Plain facts, for people."""
        reversible = self.shape.reversible_layers
        standard = [i for i in range(self.shape.n_layers) if i not in reversible]
        facts = {"is_bijective": self.is_bijective, "coupling": self.shape.coupling}
        return facts | {"bijective_blocks": reversible, "standard_blocks": standard}

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> DecodingCache:
        return self.blocks.allocate(n_rows, capacity, device=device, dtype=dtype)

    def _runs(
        self, x: Tensor, layout: Layout, cache: Cache | None, where: Tensor | None
    ) -> Iterator[tuple[bool, list[Step]]]:
        """Each run of blocks: whether they are reversible, and their steps."""
        sight = look(layout, x.shape[1], x.device, cache)
        turn = rotation(sight.positions, self.shape.d_model // self.shape.n_heads, self.shape.rope_theta)
        for is_reversible, indices in self.runs:
            steps: list[Step] = []
            for i in indices:
                block = self.blocks[i]
                state = cache.layers[i] if cache is not None else None
                steps += [(block.attend, (where, sight, turn, state)), (block.feed, (where,))]  # type: ignore[list-item]
            yield is_reversible, steps

    def _refuse_hybrid(self) -> None:
        if not self.is_bijective:
            some = f"only blocks {self.shape.reversible_layers} of {self.shape.n_layers} can be undone"
            raise Refusal(f"backbone bijective: {some}; leave hybrid_layers out")


def _standard(steps: list[Step], x: Tensor, c: Tensor | None) -> Tensor:
    for conditioner, told in steps:
        x = x + conditioner(x, c, *told)[1]
    return x


class _Block(nn.Module):
    def __init__(self, shape: Bijective, is_reversible: bool) -> None:
        super().__init__()
        self.is_reversible = is_reversible
        attention = Attention(shape.d_model, shape.n_heads, shape.kv_heads, bias=False, dropout=shape.dropout)
        feed_forward = SwiGlu(shape.d_model, shape.hidden)
        is_affine = is_reversible and shape.coupling == "affine"
        if is_affine:
            attention.o = Linear(shape.d_model, 2 * shape.d_model, bias=False)
            feed_forward.down = Linear(shape.hidden, 2 * shape.d_model, bias=False)
        self.attend = _Conditioner(shape, attention, is_affine)
        self.feed = _Conditioner(shape, feed_forward, is_affine)

    def allocate(self, n_rows: int, capacity: int, **kind: Any) -> AttentionState:
        attention: Any = self.attend.layer
        return attention.allocate(n_rows, capacity, **kind)


class _Conditioner(nn.Module):
    """What one stream says of the other: (s, t), or t alone."""

    def __init__(self, shape: Bijective, layer: nn.Module, is_affine: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.d_model, eps=shape.norm_eps)
        self.layer = layer
        self.drop = nn.Dropout(shape.dropout)
        self.n_out = 2 if is_affine else 1
        # Shift, scale and a gate for each half of what is said: as nn/residual has them for a block's two layers.
        known = shape.knows_noise_level
        self.table = nn.Parameter(torch.zeros(2 + self.n_out, shape.d_model)) if known else None
        self.largest = shape.n_layers**-0.5

    def forward(
        self, x: Float[Tensor, "B L D"], c: Float[Tensor, " B #L D"] | None, where: Tensor | None, *told: Any
    ) -> Change:
        h, gate = self.norm(x), None
        if self.table is not None and c is not None:
            shift, scale, *gates = (c[..., None, :] * self.table).unbind(-2)
            h, gate = (1 + scale) * h + shift, torch.cat(gates, -1)
        h = self.drop(self.layer(h, *told))
        h = h if gate is None else (1 + gate) * h
        h = h if where is None else h * where[..., None]
        if self.n_out == 1:
            return None, h
        s, t = h.chunk(2, -1)
        return torch.tanh(s.to(x.dtype)) * self.largest, t
