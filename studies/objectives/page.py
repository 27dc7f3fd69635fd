"""docs/objectives.md's tables, from what run.sh left.

Usage: python studies/objectives/page.py ROOT    (prints Markdown)
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from armillary.run_folder import RunFolder

RUNS = ("autoregressive", "masked", "score-entropy", "uniform", "block-4", "block-16", "any-order")
BITS = 1 / math.log(2)


def main() -> None:
    root = Path(sys.argv[1])
    likelihoods(root)
    exact(root)
    texts(root)


def results(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() and path.stat().st_size else None


def likelihoods(root: Path) -> None:
    print(
        "| objective | parameters | tokens | seconds | kind | bits per byte | 95 % | nats per token | error | passes |"
    )
    print("| --- |" + " ---: |" * 3 + " --- |" + " ---: |" * 5)
    for name, file in (*((name, "bound") for name in RUNS), ("masked", "whole"), ("judge", "bound")):
        (one,) = results(root / f"{name}-{file}.json") or [None]
        if one is None:
            continue
        run = RunFolder(root / "runs" / name)
        facts, last = run.facts(), run.metrics("train")[-1]
        label = name + (", whole split" if file == "whole" else "")
        bound = "" if one["kind"] == "exact" else "≤ "
        error = f"{one['stderr_nats'] / one['n_tokens']:.4f}" if one["stderr_nats"] else ""
        low, high = one["interval_bits_per_byte"]
        print(
            f"| {label} | {facts['parameters']:,} | {last['n_tokens']:,} | {facts['training_seconds']:,.0f} "
            f"| {one['kind'].replace('_', ' ')} | {bound}{one['bits_per_byte']:.3f} | {low:.3f}–{high:.3f} "
            f"| {bound}{one['nats'] / one['n_tokens']:.4f} | {error} | {one['n_passes'] if error else ''} |"
        )


def exact(root: Path) -> None:
    """The same tokens by exact orders; the bound is read from the documents that both have."""
    print("\n| objective | left to right | random order | bound of the same documents |")
    print("| --- |" + " ---: |" * 3)
    for name in RUNS:
        found = [results(root / f"{name}-{order}.json") for order in ("left_to_right", "random", "same")]
        if any(found):
            cells = [f"{one[0]['nats'] / one[0]['n_tokens']:.4f}" if one else "" for one in found]
            print(f"| {name} | {' | '.join(cells)} |")


def texts(root: Path) -> None:
    columns = "sampler | steps | perplexity by the judge | entropy | distinct 1, 2, 3 | tokens/s | tokens a pass"
    print(f"\n| texts | {columns} |\n| --- | --- |" + " ---: |" * 6)
    real = None
    for name in RUNS:
        for path in sorted(root.glob(f"{name}-texts-*.json")):
            *made, real = results(path)
            for one in made:
                print(line(one))
    if real is not None:
        print(line(real))


def line(one: dict[str, Any]) -> str:
    sampler = one.get("sampler") or {}
    steps = sampler.get("steps") or (sampler.get("sampler") or {}).get("steps") or ""
    label = sampler.get("name", "") + (" one by one" if sampler.get("drafts") is False else "")
    error = one["stderr_log_perplexity"] * one["judge_perplexity"]
    distinct = ", ".join(f"{x:.2f}" for x in one["distinct"])
    speed = f"{one['tokens_per_second']:,.0f}" if "tokens_per_second" in one else ""
    rate = one.get("tokens_per_evaluation")
    return (
        f"| {one['name']} | {label} | {steps} | {one['judge_perplexity']:,.0f} ± {error:,.0f} "
        f"| {one['entropy_nats']:.2f} | {distinct} | {speed} | {f'{rate:.2f}' if rate else ''} |"
    )


if __name__ == "__main__":
    main()
