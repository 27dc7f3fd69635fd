"""Standard, reversible and hybrid blocks under three objectives, at equal size, text and tokens; and what the prototype
called a likelihood, on random tokens.

Usage: python studies/bijective/run.py FOLDER_OF_WIKITEXT_2 ROOT [--seeds 0,1,2] [--no-page]

A document is an article, as in studies/objectives, so that texts and what they are held against are as long. Every
measurement is a file of results/ (of ROOT/results where --steps, --width or the numbers of tokens are others), and what
is there is not done again. With --no-page it ends with its cells, so that two may work on other seeds at once, once the
judge is there; without, it times all nine in turn, on a machine that should do nothing else then, and prints
docs/bijective.md's tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prototype
import yaml

from armillary.allocator import keep_memory
from armillary.assemble import build, evaluating, judging, parts, planning, sampling, training
from armillary.model.network import count_parameters
from armillary.run_folder import RunFolder, read_json, write_json, write_text

OBJECTIVES: dict[str, dict[str, Any]] = {
    "autoregressive": {"name": "autoregressive"},
    "masked_diffusion": {"name": "masked_diffusion"},
    "score_entropy": {"name": "score_entropy", "process": "absorbing"},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "standard": {"name": "llama"},
    "reversible": {"name": "bijective", "coupling": "additive"},
    "hybrid": {"name": "bijective", "coupling": "additive", "hybrid_layers": [0, 2]},
}
ORDERS = ("left_to_right", "random")
ROUNDS = 3
SETTINGS = ("steps", "width", "bound_tokens", "exact_tokens")
SAMPLING_STEPS, N_TEXTS, N_TEXT_TOKENS = 64, 48, 127


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--bound-tokens", type=int, default=20_000, help="tokens of the test split that are scored")
    parser.add_argument("--exact-tokens", type=int, default=4_000, help="of them, in an exact order")
    parser.add_argument("--no-page", action="store_true", help="end with the cells")
    asked = parser.parse_args()
    usual = all(getattr(asked, name) == parser.get_default(name) for name in SETTINGS)
    asked.results = (Path(__file__).parent if usual else asked.root) / "results"
    judge = trained("judge", judge_recipe(asked), asked)
    cells: dict[str, list[dict[str, Any]]] = {}
    for seed in map(int, asked.seeds.split(",")):
        for objective in OBJECTIVES:
            for backbone in BACKBONES:
                cells.setdefault(f"{objective} {backbone}", []).append(cell(objective, backbone, seed, judge, asked))
    if asked.no_page:
        return
    sizes = [one["parameters"] for found in cells.values() for one in found]
    assert max(sizes) / min(sizes) < 1.01, sizes
    # One kind of negative row is enough: it is not about the size of the model.
    negative = kept(asked.results / "prototype.json", lambda: prototype.compare(asked.steps))
    steps = kept(asked.results / "steps.json", lambda: timed(asked))
    print("\n".join([*table(cells), "", real_text(cells), "", *cost(steps), "", *prototype.table(negative)]))


def articles(asked: argparse.Namespace) -> Path:
    """WikiText-2 with a file an article, made once."""
    folder = asked.root / "articles"
    if not folder.is_dir():
        program = Path(__file__).parents[1] / "objectives" / "articles.py"
        subprocess.run([sys.executable, program, asked.data, folder], check=True)
    return folder


def kept(path: Path, make: Any) -> Any:
    """What was measured already, or is now."""
    path.parent.mkdir(exist_ok=True)
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def cell(objective: str, backbone: str, seed: int, judge: RunFolder, asked: argparse.Namespace) -> dict[str, Any]:
    name = f"{objective}-{backbone}-{seed}"

    def made() -> dict[str, Any]:
        run = trained(name, recipe(name, objective, backbone, seed, asked), asked)
        return measured(run, objective, judge, asked)

    return kept(asked.results / f"{name}.json", made)


def recipe(name: str, objective: str, backbone: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Activations are computed again wherever a block can be undone, as they would be by those who chose it."""
    return {
        "name": name,
        "seed": seed,
        "corpora": {"articles": {"source": {"name": "files", "path": str(articles(asked))}}},
        "tokenizer": {"name": "bpe", "vocabulary": 4096, "min_frequency": 2},
        "packing": {"window": 128},
        "model": {"backbone": {**BACKBONES[backbone], "d_model": asked.width, "n_layers": 4, "n_heads": 4}},
        "objective": OBJECTIVES[objective],
        "training": {
            "steps": asked.steps,
            "batch_rows": 16,
            "optimizer": {"name": "muon", "learning_rate": 1.0e-2},
            "schedule": {"name": "warmup_stable_decay", "warmup": min(20, asked.steps // 4), "decay": 0.6},
            "activation_checkpointing": backbone != "standard",
            "validate_every": asked.steps,
            "validation_rows": 64,
            "checkpoint_every": asked.steps,
            "keep_checkpoints": 1,
            "precision": "fp32",  # whatever the processor; Muon's own products are in bf16 where it has that
        },
        "evaluation": {"window": 128, "stride": 128, "batch_rows": 32},
    }


def judge_recipe(asked: argparse.Namespace) -> dict[str, Any]:
    """A larger standard model, trained half as long again, that tells how likely the texts of the others are."""
    raw = recipe("judge", "autoregressive", "standard", 8, asked)
    raw["model"]["backbone"] |= {"d_model": 2 * asked.width, "n_layers": 6}
    raw["training"]["steps"] = asked.steps * 3 // 2
    return raw


def trained(name: str, raw: dict[str, Any], asked: argparse.Namespace) -> RunFolder:
    """Stopped before its end, it goes on."""
    path = asked.root / "study" / f"{name}.yaml"
    write_text(path, yaml.safe_dump(raw))
    run = RunFolder(asked.root / "runs" / name)
    if run.facts().get("state") != "finished":
        request = training.Request(str(path), [], data=articles(asked), resumes=True, root=asked.root)
        for _ in training.start(training.check(request), lambda line: print(line, flush=True)).happenings():
            pass
        if run.facts().get("state") != "finished":
            raise SystemExit(f"{name} was stopped; run this again to go on")
    records = run.metrics("train")
    wanted = raw["training"]["steps"]
    assert records[-1]["step"] == wanted, f"{name}: {records[-1]['step']} steps were done, not {wanted}"
    print(f"{name}: loss {records[0]['loss']:.3f} to {records[-1]['loss']:.3f}", flush=True)
    return run


def measured(run: RunFolder, objective: str, judge: RunFolder, asked: argparse.Namespace) -> dict[str, Any]:
    model, other = build.open_model(run, "last"), build.open_model(judge, "last")
    wanted = evaluating.Wanted(root=asked.root, n_tokens=asked.bound_tokens)
    (own,) = evaluating.evaluate(model, wanted)
    records = run.metrics("train")
    found = {
        "parameters": count_parameters(model.network)[0],
        "n_tokens": records[-1]["n_tokens"],
        "own": own,
        "exact": {},
    }
    few = dataclasses.replace(wanted, n_tokens=asked.exact_tokens)
    (found["own_of_few"],) = evaluating.evaluate(model, few)
    if objective != "autoregressive":  # whose own figure is the exact one from left to right
        for order in ORDERS:
            (found["exact"][order],) = evaluating.evaluate(model, dataclasses.replace(few, exact=order))
    fields = {} if objective == "autoregressive" else {"steps": SAMPLING_STEPS}
    manner = sampling.settings(model.parts, model.tokenizer, [], fields, N_TEXT_TOKENS)
    (found["texts"],) = judging.judged(model, other, [manner], N_TEXTS, 0, print)
    found["real"] = judging.real(model, other, N_TEXTS, N_TEXT_TOKENS, asked.root)
    return found


def timed(asked: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """A few steps of each, in turn, several times: seconds of a step and bytes kept for its backward pass."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for objective in OBJECTIVES:
            for backbone in BACKBONES:
                own = parts.resolve(recipe("timed", objective, backbone, 0, asked))
                one = planning.measure_steps(own, own.recipe.tokenizer.fields["vocabulary"], 16)
                found.setdefault(f"{objective} {backbone}", []).append(dataclasses.asdict(one))
    return found


def table(cells: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Means over seeds ± their standard deviation; a bound's own standard error is that of its draws, of one seed."""
    columns = ["objective", "blocks", "parameters", "tokens seen", "bits per byte", "kind, standard error of the draws"]
    columns += ["of the few", "left to right", "random order", "texts: perplexity by the judge", "entropy"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * 2 + " ---: |" * 9
    for name, found in cells.items():
        objective, blocks = name.split()
        own = found[0]["own"]
        is_bound = own["kind"] != "exact"
        kind = f"bound, {own['stderr_nats'] / math.log(2) / own['n_bytes']:.4f}" if is_bound else "exact"
        few = spread([one["own_of_few"]["bits_per_byte"] for one in found])
        exact = [spread([one["exact"].get(order, {}).get("bits_per_byte") for one in found]) for order in ORDERS]
        yield (
            f"| {objective.replace('_', ' ')} | {blocks} | {found[0]['parameters']:,} | {found[0]['n_tokens']:,} "
            f"| {'≤ ' * is_bound}{spread([one['own']['bits_per_byte'] for one in found])} | {kind} "
            f"| {'≤ ' * is_bound}{few} | {exact[0]} | {exact[1]} "
            f"| {spread([one['texts']['judge_perplexity'] for one in found], 0)} "
            f"| {spread([one['texts']['entropy_nats'] for one in found], 2)} |"
        )


def cost(steps: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    yield "| objective | blocks | kept for the backward pass, MiB | a step, s | of standard |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for name, found in steps.items():
        objective, blocks = name.split()
        seconds = [one["seconds"] for one in found]
        ratios = [one / other["seconds"] for one, other in zip(seconds, steps[f"{objective} standard"], strict=True)]
        yield (
            f"| {objective.replace('_', ' ')} | {blocks} | {found[0]['kept_bytes'] / 2**20:.0f} "
            f"| {statistics.median(seconds):.2f} | {statistics.median(ratios):.2f} × "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def real_text(cells: dict[str, list[dict[str, Any]]]) -> str:
    real = next(iter(cells.values()))[0]["real"]
    return f"Held-out text by the judge: {real['judge_perplexity']:,.0f}, entropy {real['entropy_nats']:.2f} nats."


def spread(values: list[float | None], digits: int = 3) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:,.{digits}f}" if known else ""
    return f"{statistics.mean(known):,.{digits}f} ± {statistics.stdev(known):,.{digits}f}"


if __name__ == "__main__":
    main()
