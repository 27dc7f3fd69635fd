"""Training speed, forward, backward and optimizer step, over sizes of the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt, field_validator

from armillary.assemble import planning
from armillary.assemble.parts import Parts
from armillary.benches._found import Desk, Found, spread
from armillary.benches._shaped import Shaped, rows_of
from armillary.model.network import count_parameters, meta_network
from armillary.training import precision

FULL = (65_536, 131_072, 262_144)
ON_A_CPU = (2_048, 4_096, 8_192)


class Throughput(Shaped):
    """batch_tokens: one size or several; None: 65,536, 131,072 and 262,144, and a 32nd of each where there is no GPU.

    A reading is the median of three steps of the real loop, on random tokens, not compiled; all cells of the grid take
    turns, a round each.
    """

    batch_tokens: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    window: int = Field(512, ge=2)
    rounds: int = Field(3, ge=1)
    quick: ClassVar = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_vocab": 64, "batch_tokens": (64, 128),
                       "window": 32, "rounds": 2}  # fmt: skip

    @field_validator("batch_tokens", mode="before")
    @classmethod
    def one_size_is_a_list_of_one(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int) else given

    @property
    def is_scaled(self) -> bool:
        return self.batch_tokens is None and self.place.type != "cuda"

    def check(self, desk: Desk) -> None:
        self._contenders()

    def _contenders(self) -> tuple[dict[str, Parts], dict[tuple[str, int], int]]:
        """The parts of each base, and the rows of each cell of the grid."""
        sizes = self.batch_tokens or (ON_A_CPU if self.is_scaled else FULL)
        made = {base: self.parts(base, self.window) for base in self.base}
        return made, {(base, size): rows_of(size, self.window) for base in made for size in sizes}

    def run(self, desk: Desk) -> Found:
        made, grid = self._contenders()
        readings: dict[tuple[str, int], list[float]] = {cell: [] for cell in grid}
        lost = set()
        for number in range(self.rounds):
            desk.say(f"throughput: round {number + 1} of {self.rounds}")
            for (base, size), n_rows in grid.items():
                try:
                    found = planning.measure_steps(made[base], self.n_vocab, n_rows)
                    readings[base, size].append(size / found.seconds)
                except torch.OutOfMemoryError:
                    lost.add((base, size))
        rows = [self._row(made, cell, readings[cell], cell in lost) for cell in grid]
        notes = ["eager, AdamW, random tokens"]
        if self.is_scaled:
            notes.append(f"no GPU here: the batches are a 32nd of {', '.join(f'{size:,}' for size in FULL)} tokens")
        return Found(rows, {"throughput.csv": rows, "metrics.json": {"rows": rows}}, notes)

    def _row(self, made: Any, cell: tuple[str, int], readings: list[float], is_lost: bool) -> dict[str, Any]:
        base, size = cell
        found = {"median": None, "low": None, "high": None} if is_lost else spread(readings)
        every, inner = count_parameters(meta_network(made[base].backbone, self.n_vocab, tied=True))
        return {
            "base": base,
            "batch_tokens": size,
            "window": self.window,
            "tokens_per_second": found["median"],
            "low": found["low"],
            "high": found["high"],
            "status": "out of memory" if is_lost else "ok",
            "parameters": every,
            "parameters_non_embedding": inner,
            "device": self.place.type,
            "precision": precision.resolve(self.precision, self.place),
        }
