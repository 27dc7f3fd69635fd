"""The tables of docs/speed.md, from the readings in benchmarks/results.

Usage: python benchmarks/tables.py [--write]    (prints them, or puts them between the page's markers)
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import RESULTS, ratios

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
ALLOCATORS = {"system": "glibc as it is", "kept": "glibc keeps memory"}


def main() -> None:
    tables = {name: make(json.loads((RESULTS / f"{name}.json").read_text())) for name, make in TABLES.items()}
    if "--write" not in sys.argv:
        print("\n\n".join(tables.values()))
        return
    PAGE.write_text(filled(PAGE.read_text(), tables))


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        place = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        page, n_places = re.subn(place, lambda m, t=table: m[1] + t + m[2], page, flags=re.S)
        assert n_places == 1, f"{PAGE} has {n_places} places for the table {name}"
    return page


def contest_table(results: dict[str, Any]) -> str:
    """A row a contender: median, range, ours over it within a round, memory."""
    lines = ["| model, arithmetic | who | allocator | tokens/s | range | ours is | peak GiB |", "|" + " --- |" * 7]
    for found in results["readings"].values():
        ours = next(one["tokens_per_second"] for one in found.values())
        for name, one in found.items():
            speeds = one["tokens_per_second"]
            who, *what, allocator = name.split("/")
            times = _times(ours, speeds)
            lines.append(
                f"| {' '.join(what)} | {who} | {ALLOCATORS[allocator]} | {_speed(speeds)} "
                f"| {times} | {one['peak_bytes'] / 2**30:.1f} |"
            )
    return _with_machine(lines, results)


def peer_table(results: dict[str, Any]) -> str:
    """A row a contender of a contest whose names are WHO/BACKBONE/MANNER, beside the peer, who comes last."""
    lines = ["| what | who | tokens/s | range | of psann | peak GiB |", "| --- | --- | ---: | ---: | --- | ---: |"]
    for found in results["readings"].values():
        peer = list(found.values())[-1]["tokens_per_second"]
        for name, one in found.items():
            who, *what = name.split("/")
            speeds = one["tokens_per_second"]
            times = _times(speeds, peer)
            lines.append(
                f"| {', '.join(what)} | {who} | {_speed(speeds)} | {times} | {one['peak_bytes'] / 2**30:.1f} |"
            )
    return _with_machine(lines, results)


def cache_table(results: dict[str, Any]) -> str:
    """metrics.json of the bench kv-cache, with its system.json as the machine."""
    lines = ["| backbone | what | tokens/s or times | range |", "| --- | --- | ---: | --- |"]
    for base, found in results["bases"].items():
        for what, one in found["tokens_per_second"].items():
            lines.append(f"| {base} | {what} | {one['median']:,.0f} | {one['low']:,.0f}–{one['high']:,.0f} |")
        for what, one in found["gains"].items():
            lines.append(f"| {base} | gain: {what} | {one['median']:.1f} × | {one['low']:.1f}–{one['high']:.1f} |")
    return _with_machine(lines, results)


def sine_table(results: dict[str, Any]) -> str:
    lines = ["| activation | hidden tensors kept | ms | of GELU |", "| --- | ---: | ---: | --- |"]
    for precision, found in results["readings"].items():
        for name, one in found.items():
            seconds, gelu = one["seconds"], found["gelu"]["seconds"]
            times = _times(seconds, gelu)
            milliseconds = 1e3 * statistics.median(seconds)
            lines.append(f"| {name}, {precision} | {one['hidden_tensors']:.2f} | {milliseconds:.0f} | {times} |")
    return _with_machine(lines, results)


def pieces_table(results: dict[str, Any]) -> str:
    lines = ["| piece | ours, ms | torch, ms | ours is |", "| --- | ---: | ---: | --- |"]
    for name, found in results["readings"].items():
        ours, theirs = ([1e3 * s for s in found[who]] for who in ("armillary", "torch"))
        times = _times(theirs, ours)
        lines.append(f"| {name} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {times} |")
    return _with_machine(lines, results)


def backbones_table(results: dict[str, Any]) -> str:
    lines = ["| backbone | tokens/s | range | of llama | peak GiB |", "| --- | ---: | ---: | --- | ---: |"]
    for group, found in results["readings"].items():
        llama = next(iter(found.values()))["tokens_per_second"]
        for name, one in found.items():
            speeds = one["tokens_per_second"]
            times = _times(speeds, llama)
            lines.append(
                f"| {name.split('/')[0]}, {group} | {_speed(speeds)} | {times} | {one['peak_bytes'] / 2**30:.1f} |"
            )
    return _with_machine(lines, results)


def reversible_table(results: dict[str, Any]) -> str:
    lines = ["| blocks | activations | kept, MiB | step, ms | of ordinary |", "| ---: | --- | ---: | ---: | --- |"]
    for depth, found in results["readings"]["memory"].items():
        ordinary = found["ordinary"]["seconds"]
        for manner, one in found.items():
            seconds = one["seconds"]
            times = _times(seconds, ordinary)
            kept, step = one["kept_bytes"] / 2**20, 1e3 * statistics.median(seconds)
            lines.append(f"| {depth} | {manner} | {kept:,.1f} | {step:,.0f} | {times} |")
    lines += ["", "| blocks | coupling | fp64 | fp32 | bf16 |", "| ---: | --- |" + " ---: |" * 3]
    for name, errors in results["readings"]["reconstruction"].items():
        depth, coupling = name.split()
        each = (f"{errors[arithmetic]:.1e}" for arithmetic in ("fp64", "fp32", "bf16"))
        lines.append(f"| {depth} | {coupling} | {' | '.join(each)} |")
    return _with_machine(lines, results)


def _times(one: Sequence[float], other: Sequence[float]) -> str:
    """Of two series of rounds; nothing of a series and itself."""
    return "" if one is other else "{:.2f} × ({:.2f}–{:.2f})".format(*ratios(one, other))


def _speed(speeds: Sequence[float]) -> str:
    """Two cells: median, and range."""
    return f"{statistics.median(speeds):,.0f} | {min(speeds):,.0f}–{max(speeds):,.0f}"


def _with_machine(lines: Sequence[str], results: dict[str, Any]) -> str:
    m = results["machine"]
    about = f"`{results['command'].strip()}`, {m['n_cores']} cores of {m['processor']} ({m['cpu_capability']}), Python "
    about += f"{m['python']}, torch {m['torch']}"
    about += f", transformers {m['transformers']}" if "transformers" in m else ""
    return "\n".join([*lines, "", about + "."])


TABLES = {
    "training_speed": contest_table,
    "training_pieces": pieces_table,
    "backbone_speed": backbones_table,
    "sine_memory": sine_table,
    "reversible_memory_cpu_fp32": reversible_table,
    "decoding_speed": contest_table,
    "psann_decoding": peer_table,
    "kv_cache": cache_table,
}

if __name__ == "__main__":
    main()
