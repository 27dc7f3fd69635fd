"""docs/baseline.md's table, picture and samples, from the runs that run.sh left.

Usage: python studies/baseline/page.py ROOT    (prints Markdown; writes docs/pictures/baseline.svg)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from armillary.run_folder import RunFolder

RUNS = ("baseline-gpt", "baseline-gpt-regularized")
PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "baseline.svg"


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "armillary"  # the same readings give the same file
    root = Path(sys.argv[1])
    runs = [RunFolder(root / "runs" / name) for name in RUNS]
    table(root, runs)
    curves(runs)
    for run in runs:
        samples(run)


def table(root: Path, runs: list[RunFolder]) -> None:
    print("| model | steps | tokens | minutes | best step | bits per byte | 95 % | word perplexity | 95 % |")
    print("|" + " ---: |" * 9)
    for run in runs:
        own, *beside = json.loads((root / f"{run.name}.json").read_text())
        facts, last = run.facts(), run.metrics("train")[-1]
        minutes = facts["training_seconds"] / 60
        head = f"| `{run.name}` | {last['step']:,} | {last['n_tokens']:,} | {minutes:.1f} | {facts['best_step']:,} "
        print(head + figures(own))
        for one in beside:
            print(f"| {one['name']} | | | | {figures(one)}")


def figures(result: dict[str, Any]) -> str:
    bits, words = result["interval_bits_per_byte"], result["interval_word_perplexity"]
    bound = "≤ " if result["kind"] != "exact" else ""
    return (
        f"| {bound}{result['bits_per_byte']:.3f} | {'–'.join(f'{x:.3f}' for x in bits or ())} "
        f"| {bound}{result['word_perplexity']:,.0f} | {'–'.join(f'{x:,.0f}' for x in words or ())} |"
    )


def curves(runs: list[RunFolder]) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for run in runs:
        held_out, seen = run.metrics("validation"), run.metrics("train")
        (line,) = axes.plot([r["step"] for r in held_out], [r["loss"] for r in held_out], label=run.name)
        axes.plot([r["step"] for r in seen], [r["loss"] for r in seen], color=line.get_color(), alpha=0.3, lw=0.8)
    axes.set(xlabel="step", ylabel="nats per token", ylim=(4.4, 7.5))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})


def samples(run: RunFolder) -> None:
    last = run.samples()[-1]
    print(f"\n`{run.name}`, step {last['step']}:\n\n> **{last['prompt']}**{last['text']}")


if __name__ == "__main__":
    main()
