"""Contenders side by side: each a process of its own, set up once, then asked for one round in turn, until all rounds
are done. What slows the machine slows all of them, and the ratio of two is taken within a round.

A contender is a generator: it yields once when it is warm, then runs one round for every value asked of it and yields
the work of that round (tokens). Only one process works at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from armillary.system import describe, peak_bytes

RESULTS = Path(__file__).parent / "results"
KEPT_ALLOCATOR, SYSTEM_ALLOCATOR = "kept", "system"


def work(contender: Callable[[], Iterator[int]], allocator: str) -> None:
    """The life of a worker process: answers every line it reads with one line of JSON."""
    if allocator == KEPT_ALLOCATOR:
        from armillary.allocator import keep_memory

        assert keep_memory(), "this machine has no glibc"
    rounds = contender()
    next(rounds)
    _answer({"ready": True})
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start = time.perf_counter()
        n_tokens = next(rounds)
        _answer({"tokens_per_second": n_tokens / (time.perf_counter() - start)})
    _answer({"peak_bytes": peak_bytes()})


def compete(program: str, names: Sequence[str], n_rounds: int) -> dict[str, dict[str, Any]]:
    """Rounds of all contenders in turn, each run as `program --worker NAME`: tokens/s of each round, peak bytes."""
    workers: dict[str, subprocess.Popen[str]] = {}
    out: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            command = [sys.executable, program, "--worker", name]
            workers[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            _ask(name, workers[name], None)  # one sets up at a time
            out[name] = {"tokens_per_second": []}
        for _ in range(n_rounds):
            for name, worker in workers.items():
                out[name]["tokens_per_second"].append(_ask(name, worker, "go")["tokens_per_second"])
        for name, worker in workers.items():
            out[name]["peak_bytes"] = _ask(name, worker, "stop")["peak_bytes"]
    finally:
        for worker in workers.values():
            worker.kill()
    return out


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most of the ratio within a round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def saved_bytes(forward: Callable[[], Any], network: Any) -> int:
    """Of the tensors that autograd saves for the backward pass, each storage once, parameters left out."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen: dict[int, Any] = {}

    def keep(saved: Any) -> Any:
        if saved.untyped_storage().data_ptr() not in own:
            seen[saved.untyped_storage().data_ptr()] = saved.detach()
        return saved.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        result = forward()
    assert result.requires_grad
    return sum(saved.untyped_storage().nbytes() for saved in seen.values())


def median(readings: dict[str, Any]) -> float:
    return statistics.median(readings["tokens_per_second"])


def show(readings: dict[str, dict[str, Any]], ours: str) -> None:
    """One line a contender: median and range of its tokens/s, what `ours` is of it, and peak memory."""
    for name, one in readings.items():
        speeds = one["tokens_per_second"]
        ratio = (
            ""
            if name == ours
            else "{:.2f} x ({:.2f}-{:.2f})".format(*ratios(readings[ours]["tokens_per_second"], speeds))
        )
        print(
            f"  {name:44} {median(one):8,.0f} tokens/s ({min(speeds):,.0f}-{max(speeds):,.0f})"
            f"  {one['peak_bytes'] / 2**30:5.2f} GiB  {ratio}",
            flush=True,
        )


def write(name: str, readings: dict[str, Any], command: str) -> Path:
    """benchmarks/results/NAME.json: readings, the command, the machine and the versions.

    Each group is a contest of its own, so readings of other groups stay where they come from the same machine.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = describe() | {"n_cores": os.cpu_count()}
    with contextlib.suppress(PackageNotFoundError):  # only some have it for a contender
        machine["transformers"] = version("transformers")
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before.get("machine") == machine:
        readings = before["readings"] | readings
    path.write_text(json.dumps({"command": command, "machine": machine, "readings": readings}, indent=1) + "\n")
    return path


def _ask(name: str, worker: subprocess.Popen[str], line: str | None) -> dict[str, Any]:
    assert worker.stdin is not None and worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    for answer in worker.stdout:
        if answer.startswith("contest: "):
            return json.loads(answer.removeprefix("contest: "))
    raise SystemExit(f"contender {name} ended early; run it alone to see why: --worker {name}")


def _answer(what: dict[str, Any]) -> None:
    print("\ncontest: " + json.dumps(what), flush=True)
