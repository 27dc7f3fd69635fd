"""Sine against GELU, squared ReLU and SwiGLU at equal parameters, each with the learning rate that suits it.

Usage: python studies/activations/run.py FOLDER_OF_WIKITEXT_2 ROOT [STEPS] [JOBS]

For each activation the learning rate is searched by factors of two, with seed 1, on validation, until the best one has
a worse one on both sides; then seeds 2, 3 and 4 are trained with it and measured on the test split. Each measurement is
a file of results/, and what is there is not done again. Prints docs/activations.md's tables. JOBS runs at a time, each
on one core; so no time in it means anything.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from armillary.run_folder import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ARMILLARY = (sys.executable, "-m", "armillary")
ACTIVATIONS = ("sine", "gelu", "relu2", "swiglu")
FIRST_RATES = (2e-3, 4e-3, 8e-3)
SEEDS = (2, 3, 4)


class Study:
    def __init__(self, data: str, root: Path, steps: int) -> None:
        self.root, self.steps = root, steps
        if not (root / "articles").is_dir():
            call(sys.executable, HERE.parent / "objectives" / "articles.py", data, root / "articles")
        # Before several jobs want it at once.
        call(*ARMILLARY, "pack", HERE / "shape.yaml", "--data", root / "articles", "--root", root)

    def measured(self, activation: str, rate: float, seed: int, split: str) -> dict[str, Any]:
        """A run, trained if it is not there, and its likelihood."""
        name = f"{activation}-{rate:g}-{seed}-of-{self.steps}"
        path = RESULTS / f"{name}-{split}.json"
        if not path.is_file():
            settings = {
                "model.backbone.activation": activation,
                "training.optimizer.learning_rate": rate,
                "seed": seed,
                "training.steps": self.steps,
            }
            sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            where = ["--root", self.root]
            train = ["train", HERE / "shape.yaml", "--name", name, "--data", self.root / "articles", "--resume", "auto"]
            call(*ARMILLARY, *train, *sets, *where, "--log-level", "quiet")
            found = call(*ARMILLARY, "evaluate", name, "--split", split, "--json", *where, "--log-level", "quiet")
            (one,) = json.loads(found)
            facts = json.loads((self.root / "runs" / name / "run.json").read_text())
            one |= {"parameters": facts["parameters"], "rate": rate, "seed": seed}
            RESULTS.mkdir(exist_ok=True)
            write_json(path, one)
            print(f"{name} {split}: {one['bits_per_byte']}", file=sys.stderr, flush=True)
        return json.loads(path.read_text())

    def searched(self, activation: str) -> dict[float, float | None]:
        """Learning rate → validation bits per byte; the best has neighbours on both sides."""
        found: dict[float, float | None] = {}
        wanted = list(FIRST_RATES)
        while wanted:
            found |= {rate: self.measured(activation, rate, 1, "validation")["bits_per_byte"] for rate in wanted}
            best = best_of(found)
            wanted = [rate for rate in (best / 2, best * 2) if rate not in found]
        return dict(sorted(found.items()))


def call(*words: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    data, root = sys.argv[1], Path(sys.argv[2])
    steps, jobs = (int(word) for word in (*sys.argv[3:], *("400", "2")[len(sys.argv) - 3 :]))
    study = Study(data, root, steps)
    with ThreadPoolExecutor(jobs) as pool:
        searched = dict(zip(ACTIVATIONS, pool.map(study.searched, ACTIVATIONS), strict=True))
        best = {activation: best_of(found) for activation, found in searched.items()}
        asked = [(activation, best[activation], seed, "test") for activation in ACTIVATIONS for seed in SEEDS]
        tested = list(pool.map(lambda one: study.measured(*one), asked))
    rates = sorted({rate for found in searched.values() for rate in found})
    print(f"| activation | {' | '.join(f'{rate:g}' for rate in rates)} |\n| --- |" + " ---: |" * len(rates))
    for activation, found in searched.items():
        cells = ("" if found.get(rate) is None else f"{found[rate]:.3f}" for rate in rates)
        print(f"| {activation} | {' | '.join(cells)} |")
    print("\n| activation | parameters | learning rate | bits per byte, mean of three seeds | each | more than sine |")
    print("| --- |" + " ---: |" * 5)
    sine = [one["bits_per_byte"] for one in tested[: len(SEEDS)]]
    for index, activation in enumerate(ACTIVATIONS):
        own = tested[index * len(SEEDS) : (index + 1) * len(SEEDS)]
        bits = [one["bits_per_byte"] for one in own]
        more = [mine - usual for mine, usual in zip(bits, sine, strict=True)]
        error = statistics.stdev(more) / math.sqrt(len(more))
        difference = f"{statistics.mean(more):+.4f} ± {error:.4f}" if any(more) else ""
        print(
            f"| {activation} | {own[0]['parameters']:,} | {best[activation]:g} | {statistics.mean(bits):.4f} "
            f"| {', '.join(f'{one:.4f}' for one in bits)} | {difference} |"
        )


def best_of(found: dict[float, float | None]) -> float:
    """The learning rate of the fewest bits; a run that diverged has none."""
    return min(found, key=lambda rate: math.inf if found[rate] is None else found[rate])


if __name__ == "__main__":
    main()
