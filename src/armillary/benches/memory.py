"""Memory of a training step with activations kept, and computed again in the backward pass."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar

from pydantic import Field

from armillary.benches._found import Desk, Found
from armillary.benches._shaped import Shaped, rows_of
from armillary.system import peak_bytes


class Memory(Shaped):
    """Each reading comes from a process of its own, since a process never gives back the peak it once had.

    kept_bytes: what the forward pass saves for the backward pass. peak_bytes: of the process on a CPU (and how far that
    is above what it held before the first step), of the allocator on a GPU.
    """

    batch_tokens: int = Field(8_192, ge=2)
    window: int = Field(512, ge=2)
    quick: ClassVar = {"base": ("respsann",), "d_model": 32, "n_layers": 4, "n_heads": 2, "n_vocab": 64,
                       "batch_tokens": 512, "window": 64}  # fmt: skip

    def check(self, desk: Desk) -> None:
        rows_of(self.batch_tokens, self.window)
        for base in self.base:
            self.parts(base, self.window)

    def run(self, desk: Desk) -> Found:
        rows = []
        for base in self.base:
            for recomputes in (False, True):
                desk.say(f"memory: {base}, activations {'computed again' if recomputes else 'kept'}")
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    rows.append(alone.submit(reading, self.model_dump(), base, recomputes).result())
        facts = {base: _saved(*(row for row in rows if row["base"] == base)) for base in self.base}
        return Found(rows, {"memory.json": {"rows": rows, "saved": facts}})


def reading(fields: dict[str, Any], base: str, recomputes: bool) -> dict[str, Any]:
    """Four steps of the real loop, in a process that does nothing else."""
    import torch

    from armillary.allocator import keep_memory
    from armillary.assemble import planning

    bench = Memory.model_validate(fields)
    parts = bench.parts(base, bench.window, activation_checkpointing=recomputes)
    keep_memory()  # as the command does
    before, on_gpu = peak_bytes(), bench.place.type == "cuda"
    found = planning.measure_steps(parts, bench.n_vocab, rows_of(bench.batch_tokens, bench.window))
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()
    return {
        "base": base,
        "activations": "computed again" if recomputes else "kept",
        "kept_bytes": found.kept_bytes,
        "peak_bytes": peak,
        "peak_bytes_above_start": peak - before if peak and before and not on_gpu else None,
        "seconds_a_step": found.seconds,
        "device": bench.place.type,
    }


def _saved(kept: dict[str, Any], recomputed: dict[str, Any]) -> dict[str, float | None]:
    """What recomputation leaves of each figure, and what it costs."""
    keys = ("kept_bytes", "peak_bytes", "peak_bytes_above_start", "seconds_a_step")
    return {key: recomputed[key] / kept[key] if kept[key] and recomputed[key] else None for key in keys}
