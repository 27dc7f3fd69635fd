"""What a GPU must do, each thing tried for each base: ok, skipped with the reason, or an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from armillary import system
from armillary.benches import _checks
from armillary.benches._checks import CHECKS, Case, Skipped
from armillary.benches._found import Desk, Found
from armillary.benches._shaped import Sized
from armillary.refusal import nearest


class Gpu(Sized):
    """only: names of checks, all by default. device auto: the CUDA device, and all is skipped where there is none, or
    where it is mps; cpu: the same checks, on the CPU. Throughput is in bf16 where the hardware has it, as training
    is."""

    only: tuple[str, ...] = ()
    window: int = Field(512, ge=2)
    rows: int = Field(8, ge=1)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # type: ignore[assignment]
    quick: ClassVar = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_vocab": 64, "window": 16, "rows": 4}

    @field_validator("only")
    @classmethod
    def checks_are_known(cls, only: tuple[str, ...]) -> tuple[str, ...]:
        for name in only:
            if name not in CHECKS:
                raise ValueError(f"no check is called '{name}'; {nearest(name, CHECKS)}")
        return only

    @property
    def place(self) -> torch.device:
        """The CPU where all is skipped: shapes can be checked there."""
        if self.device in ("cuda", "cpu"):
            return super().place
        return torch.device("cuda" if system.gpu()[0] == "cuda" else "cpu")

    def check(self, desk: Desk) -> None:
        for base in self.base:
            self.parts(base, self.window)

    def run(self, desk: Desk) -> Found:
        names = [name for name in CHECKS if name in self.only or not self.only]
        is_there = self.device == "cpu" or (self.device != "mps" and self.place.type == "cuda")
        rows = []
        for name in names:
            for base in self.base if name not in _checks.ONCE else ("",):
                desk.say(f"gpu: {name} {base}")
                rows.append(
                    {"check": name, "base": base}
                    | (self._tried(name, base) if is_there else {"status": "skipped", "reason": "no CUDA device"})
                )
        counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "skipped", "error")}
        shown = [{key: row.get(key) for key in ("check", "base", "status", "seconds", "reason")} for row in rows]
        return Found(shown, {"summary.json": {"checks": rows, "counts": counts}}, is_ok=counts["error"] == 0)

    def _tried(self, name: str, base: str) -> dict[str, Any]:
        check: Callable[[Case], dict[str, Any]] = CHECKS[name]
        started = time.perf_counter()
        try:
            found = {"status": "ok", "reason": None, "figures": check(Case(self, base, self.window, self.rows))}
        except Skipped as skipped:
            return {"status": "skipped", "reason": str(skipped)}
        except Exception as error:  # noqa: BLE001 - an error of any kind is what this is here to tell
            found = {"status": "error", "reason": f"{type(error).__name__}: {error}"}
        return found | {"seconds": time.perf_counter() - started}
