"""State of decoding: rows × capacity, preallocated, with a length per row.

Lengths stay on the host: it is the host that decides what comes next, and asking a GPU for them would wait for it at
every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from armillary.nn.sight import Sight


@runtime_checkable
class LayerState(Protocol):
    """What one mixer keeps for each row of a cache."""

    def reset(self, rows: Int[Tensor, " n"]) -> None: ...


class AttentionState:
    """Keys and values (rows, heads, capacity + 1, head_dim); the last slot takes the padding of mixed prompts."""

    def __init__(self, keys: Float[Tensor, "R H C1 E"], values: Float[Tensor, "R H C1 E"]) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype) -> AttentionState:
        """shape: rows, heads, capacity, head_dim."""
        n_rows, n_heads, capacity, head_dim = shape
        full = (n_rows, n_heads, capacity + 1, head_dim)
        return cls(torch.zeros(full, device=device, dtype=dtype), torch.zeros(full, device=device, dtype=dtype))

    def reset(self, rows: Int[Tensor, " n"]) -> None:
        """Nothing to wipe: slots are written before they are seen."""

    def exchange(
        self,
        keys: Float[Tensor, "B H L E"],
        values: Float[Tensor, "B H L E"],
        rows: Int[Tensor, " B"] | None,
        slots: Int[Tensor, "B L"],
        n_seen: int,
    ) -> tuple[Float[Tensor, "B H S E"], Float[Tensor, "B H S E"]]:
        """Writes the new tokens' keys and values into their slots, and returns those of the first n_seen slots."""
        where = torch.arange(self.keys.shape[0], device=slots.device) if rows is None else rows
        self.keys[where[:, None], :, slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[where[:, None], :, slots] = values.transpose(1, 2).to(self.values.dtype)
        seen = slice(None) if rows is None else rows
        return self.keys[seen, :, :n_seen], self.values[seen, :, :n_seen]


class MixerState:
    """What a recurrence carries from token to token: (rows, ...), zero where nothing was read yet.

    A filter keeps its state there, a convolution its last inputs.
    """

    def __init__(self, values: Float[Tensor, "R ..."]) -> None:
        self.values = values

    @classmethod
    def allocate(cls, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> MixerState:
        """shape: rows first."""
        return cls(torch.zeros(shape, device=device, dtype=dtype))

    def reset(self, rows: Int[Tensor, " n"]) -> None:
        self.values[rows.to(self.values.device)] = 0

    def read(self, sight: Sight) -> Float[Tensor, "B ..."]:
        return self.values if sight.rows is None else self.values[sight.rows]

    def write(self, new: Float[Tensor, "B ..."], sight: Sight) -> None:
        """Nothing happens in a pass that is not kept."""
        if not sight.keeps:
            return
        if sight.rows is None:
            self.values.copy_(new)
        else:
            self.values[sight.rows] = new.to(self.values.dtype)


class BlockState:
    """The states of the mixers of one block, where it has several."""

    def __init__(self, *states: LayerState) -> None:
        self.states = states

    def reset(self, rows: Int[Tensor, " n"]) -> None:
        for state in self.states:
            state.reset(rows)


@dataclass
class DecodingCache:
    """The states of all layers, and how many tokens each row holds (a host tensor). See contracts.Cache."""

    layers: list[LayerState]
    lengths: Int[Tensor, " R"]
    capacity: int
    rows: Int[Tensor, " n"] | None = None
    is_seen_whole: bool = False
    keeps: bool = True

    @classmethod
    def of(cls, layers: Sequence[LayerState], n_rows: int, capacity: int) -> DecodingCache:
        return cls(list(layers), torch.zeros(n_rows, dtype=torch.long), capacity)

    @property
    def row_lengths(self) -> Int[Tensor, " n"]:
        return self.lengths if self.rows is None else self.lengths[self.rows.cpu()]

    def reset(self, rows: Int[Tensor, " n"]) -> None:
        self.lengths[rows.cpu()] = 0
        for layer in self.layers:
            layer.reset(rows)

    def whole(self) -> DecodingCache:
        return replace(self, rows=None, is_seen_whole=True)

    def at(self, rows: Int[Tensor, " n"]) -> DecodingCache:
        return replace(self, rows=rows, is_seen_whole=False)

    def tentative(self) -> DecodingCache:
        return replace(self, keeps=False)

    def advance(self, n: Int[Tensor, " n"] | int) -> None:
        if not self.keeps:
            return
        if self.rows is None:
            self.lengths += n
        else:
            self.lengths[self.rows.cpu()] += n
