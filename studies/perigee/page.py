"""docs/perigee.md's table, picture and samples, from the runs that run.sh left.

Usage: python studies/perigee/page.py ROOT    (prints Markdown; writes docs/pictures/perigee.svg)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from armillary.run_folder import RunFolder

RUNS = ("perigee-smoke", "perigee", "perigee-long", "perigee-long-transformer")
DRAWN = RUNS[2:]
PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "perigee.svg"


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "armillary"  # the same readings give the same file
    root = Path(sys.argv[1])
    results = {name: json.loads((root / f"{name}.json").read_text()) for name in RUNS}
    table(root, results)
    unigram = next(one for one in results["perigee-long"] if one["name"] == "unigram")
    curves(root, per_token(unigram))
    for name in RUNS:
        samples(root, name)


def per_token(result: dict[str, Any]) -> float:
    return result["nats"] / result["n_tokens"]


def table(root: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = ["parameters", "steps", "tokens", "minutes", "training loss, first and last logged", "nats per token"]
    columns += ["standard error", "unigram", "5-gram"]
    print(f"| recipe | {' | '.join(columns)} |\n| --- |" + " ---: |" * len(columns))
    for name, (own, *beside) in results.items():
        run = RunFolder(root / "runs" / name)
        facts, train = run.facts(), run.metrics("train")
        bound = "" if own["kind"] == "exact" else "≤ "
        counted = {one["name"]: f"{per_token(one):.3f}" for one in beside}
        print(
            f"| `{name}` | {facts['parameters']:,} | {train[-1]['step']:,} | {train[-1]['n_tokens']:,} "
            f"| {facts['training_seconds'] / 60:.1f} | {train[0]['loss']:.2f}, {train[-1]['loss']:.2f} "
            f"| {bound}{per_token(own):.3f} | {own['stderr_nats'] / own['n_tokens']:.3f} "
            f"| {counted['unigram']} | {counted['kneser-ney-5']} |"
        )


def curves(root: Path, unigram: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for name in DRAWN:
        run = RunFolder(root / "runs" / name)
        held_out, seen = run.metrics("validation"), run.metrics("train")
        (line,) = axes.plot([r["step"] for r in held_out], [r["loss"] for r in held_out], marker=".", label=name)
        axes.plot([r["step"] for r in seen], [r["loss"] for r in seen], color=line.get_color(), alpha=0.3, lw=0.8)
    axes.axhline(unigram, color="0.4", lw=0.8, ls="--")
    axes.annotate("single words (unigram)", (axes.get_xlim()[1], unigram), ha="right", va="bottom", color="0.4")
    axes.set(xlabel="step", ylabel="nats per token, a bound", ylim=(unigram - 2, unigram + 1.5))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})


def samples(root: Path, name: str) -> None:
    print(f"\n`{name}`:")
    """Two of what was trained to be good, one of the others."""
    for one in json.loads((root / f"{name}-texts.json").read_text())[: 2 if name in DRAWN else 1]:
        print(f"\n> **{one['prompt']}** {one['text'].strip()}")


if __name__ == "__main__":
    main()
