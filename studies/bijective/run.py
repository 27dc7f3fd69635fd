"""Standard, reversible and hybrid blocks under three objectives, at equal size, text and tokens; and what the prototype
called a likelihood, on random tokens.

Usage: python studies/bijective/run.py FOLDER_OF_WIKITEXT_2 ROOT [--seeds 0,1,2] [--objectives ...] [--no-page]

A document is an article, as in studies/objectives, so that texts and what they are held against are as long. Every
measurement is a file of results/ (of ROOT/results where --steps, --width or the numbers of tokens are others), and what
is there is not done again. With --no-page it ends with its cells, so that two may work on other seeds or objectives at
once, once the judge is there; without, it times all nine in turn, on a machine that should do nothing else then, and
prints docs/bijective.md's tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import prototype
import yaml

from armillary import system
from armillary.allocator import keep_memory
from armillary.assemble import build, evaluating, judging, parts, planning, sampling, training
from armillary.evaluation import comparison
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
SAMPLERS = {name: {"name": "ancestral", "steps": 64} for name in OBJECTIVES} | {
    "autoregressive": {"name": "left_to_right", "temperature": 1.0}
}
"""Each draws from its model's own law."""
ORDERS = ("left_to_right", "random")
ROUNDS = 5
SETTINGS = ("steps", "width", "bound_tokens", "exact_tokens")
MACHINE = ("processor", "cpu_capability", "python", "torch")
N_TEXTS, N_TEXT_TOKENS = 48, 127


def main() -> None:
    asked = arguments()
    if asked.peak_of:
        print(json.dumps(peak_bytes(*asked.peak_of.split(), asked)))
        return
    keep_memory()
    judge = trained("judge", judge_recipe(asked), asked)
    cells: Cells = {}
    for seed in map(int, asked.seeds.split(",")):
        for objective in asked.objectives.split(","):
            for backbone in BACKBONES:
                cells.setdefault((objective, backbone), []).append(cell(objective, backbone, seed, judge, asked))
    if asked.no_page:
        return
    sizes = [one["parameters"] for found in cells.values() for one in found]
    assert max(sizes) / min(sizes) < 1.01, sizes
    references = kept(asked.results / "references.json", lambda: beside(judge, asked))
    # One kind of negative row is enough: it is not about the size of the model.
    negative = kept(asked.results / "prototype.json", lambda: prototype.compare(asked.steps))
    steps = kept(asked.results / "steps.json", lambda: timed(asked))
    machines = {json.dumps(one["machine"]) for found in cells.values() for one in found}
    pages = [machines, likelihoods(cells, references), orders(cells), texts(cells), cost(steps)]
    print("\n\n".join("\n".join(lines) for lines in [*pages, prototype.table(negative)]))


Cells = dict[tuple[str, str], list[dict[str, Any]]]
"""(objective, blocks) → what was measured with each seed."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--bound-tokens", type=int, default=100_000, help="tokens of the test split that are scored")
    parser.add_argument("--exact-tokens", type=int, default=4_000, help="of them, in an exact order")
    parser.add_argument("--no-page", action="store_true", help="end with the cells")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    usual = all(getattr(asked, name) == parser.get_default(name) for name in SETTINGS)
    asked.results = (Path(__file__).parent if usual else asked.root) / "results"
    return asked


def articles(asked: argparse.Namespace) -> Path:
    """WikiText-2 with a file an article, made once."""
    folder = asked.root / "articles"
    if not folder.is_dir():
        program = Path(__file__).parents[1] / "objectives" / "articles.py"
        subprocess.run([sys.executable, program, asked.data, folder], check=True)
    return folder


def kept(path: Path, make: Any) -> Any:
    """What was measured already, or is now, with the machine that did it."""
    if not path.is_file():
        machine = system.describe()
        write_json(path, {**make(), "machine": {name: machine[name] for name in MACHINE}})
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
        "sampling": {"sampler": SAMPLERS[objective]},
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
    ((path, _),) = evaluating.stored([model], wanted)
    scores = comparison.load_scores(path)
    found = {
        "parameters": count_parameters(model.network)[0],
        "n_tokens": run.metrics("train")[-1]["n_tokens"],
        "own": own,
        "documents": {"nats": scores.nats.tolist(), "bytes": scores.bytes.tolist()},
        "exact": {},
    }
    few = dataclasses.replace(wanted, n_tokens=asked.exact_tokens)
    (found["own_of_few"],) = evaluating.evaluate(model, few)
    if objective != "autoregressive":  # whose own figure is the exact one from left to right
        for order in ORDERS:
            (found["exact"][order],) = evaluating.evaluate(model, dataclasses.replace(few, exact=order))
    manner = sampling.settings(model.parts, model.tokenizer, [], {}, N_TEXT_TOKENS)
    (found["texts"],) = judging.judged(model, other, [manner], N_TEXTS, 0, print)
    return found


def beside(judge: RunFolder, asked: argparse.Namespace) -> dict[str, Any]:
    """Baselines on the same text, and real texts by the judge."""
    model = build.open_model(judge, "last")
    wanted = evaluating.Wanted(root=asked.root, n_tokens=asked.bound_tokens, references=True)
    own, *others = evaluating.evaluate(model, wanted)
    return {"own": own, "others": others, "real": judging.real(model, model, N_TEXTS, N_TEXT_TOKENS, asked.root)}


def timed(asked: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """A few steps of each, in turn, several times: seconds of a step, bytes kept for its backward pass by the hooks of
    autograd; and once, how much a process of its own grows in its steps, whoever keeps what."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(ROUNDS):
        for objective in OBJECTIVES:
            for backbone in BACKBONES:
                one = dataclasses.asdict(some_steps(objective, backbone, asked))
                if number == 0:
                    words = [sys.executable, __file__, asked.data, asked.root, "--width", str(asked.width)]
                    words += ["--peak-of", f"{objective} {backbone}"]
                    one |= json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                found.setdefault(f"{objective} {backbone}", []).append(one)
    return found


def some_steps(objective: str, backbone: str, asked: argparse.Namespace) -> planning.Measured:
    own = parts.resolve(recipe("timed", objective, backbone, 0, asked))
    return planning.measure_steps(own, own.recipe.tokenizer.fields["vocabulary"], 16)


def peak_bytes(objective: str, backbone: str, asked: argparse.Namespace) -> dict[str, int]:
    """Of this process, with glibc's allocator as it is: what its steps add to what importing everything took."""
    before = system.peak_bytes() or 0
    some_steps(objective, backbone, asked)
    return {"peak_bytes": (system.peak_bytes() or 0) - before}


def likelihoods(cells: Cells, references: dict[str, Any]) -> Iterator[str]:
    """± : standard deviation over seeds. The last column is of the differences from standard blocks, each document's
    averaged over seeds."""
    columns = ["objective", "blocks", "parameters", "bits per byte", "error of the draws", "more than standard"]
    yield f"| {' | '.join([*columns, '95 % over documents'])} |"
    yield "|" + " --- |" * 2 + " ---: |" * 5
    for (objective, blocks), found in cells.items():
        more = ["", ""] if blocks == "standard" else differences(found, cells[objective, "standard"])
        yield row(objective, blocks, f"{found[0]['parameters']:,}", *figure([one["own"] for one in found]), *more)
    for one in references["others"]:
        yield row(one["name"], "", "", f"{one['bits_per_byte']:.3f}", "", "", "")
    own, n_read = references["own"], next(iter(cells.values()))[0]["n_tokens"]
    yield f"\n{own['protocol']['n_documents']} documents, {own['n_tokens']:,} tokens; read in training: {n_read:,}."


def differences(found: Sequence[dict[str, Any]], standard: Sequence[dict[str, Any]]) -> list[str]:
    each = zip(found, standard, strict=True)
    more = [one["own"]["bits_per_byte"] - other["own"]["bits_per_byte"] for one, other in each]
    nats = over_seeds(found) - over_seeds(standard)
    between = comparison.interval(nats, np.array(found[0]["documents"]["bytes"]))
    assert between is not None, "two documents or more"
    return [spread(more, signed=True), "{:+.3f} to {:+.3f}".format(*between)]


def orders(cells: Cells) -> Iterator[str]:
    yield "| objective | blocks | bound | error of the draws | exact, left to right | exact, in a random order |"
    yield "|" + " --- |" * 2 + " ---: |" * 4
    for (objective, blocks), found in cells.items():
        if found[0]["exact"]:
            exact = [spread([one["exact"][order]["bits_per_byte"] for one in found]) for order in ORDERS]
            yield row(objective, blocks, *figure([one["own_of_few"] for one in found]), *exact)
    few = next(found[0]["own_of_few"] for found in cells.values() if found[0]["exact"])
    yield f"\n{few['protocol']['n_documents']} documents, {few['n_tokens']:,} tokens."


def texts(cells: Cells) -> Iterator[str]:
    yield "| objective | blocks | perplexity by the judge | of each seed | entropy, nats |"
    yield "|" + " --- |" * 2 + " ---: |" * 3
    for (objective, blocks), found in cells.items():
        own = [one["texts"] for one in found]
        each = [f"{one['judge_perplexity']:,.0f} (× or ÷ {math.exp(one['stderr_log_perplexity']):.2f})" for one in own]
        mean = statistics.geometric_mean(one["judge_perplexity"] for one in own)
        yield row(objective, blocks, f"{mean:,.0f}", ", ".join(each), spread([one["entropy_nats"] for one in own], 2))


def cost(steps: dict[str, Any]) -> Iterator[str]:
    yield "| objective | blocks | kept for the backward pass, MiB | a process grows by, MiB | a step, s | of standard |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for name, found in steps.items():
        if name == "machine":
            continue
        objective, blocks = name.split()
        seconds = [one["seconds"] for one in found]
        ratios = [one / other["seconds"] for one, other in zip(seconds, steps[f"{objective} standard"], strict=True)]
        more = f"{statistics.median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"
        kept_mib, peak = (found[0][key] / 2**20 for key in ("kept_bytes", "peak_bytes"))
        figures = [f"{kept_mib:.0f}", f"{peak:.0f}", f"{statistics.median(seconds):.2f}"]
        yield row(objective, blocks, *figures, "" if blocks == "standard" else more)


def row(objective: str, *others: str) -> str:
    return f"| {' | '.join([objective.replace('_', ' '), *others])} |"


def figure(own: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Bits per byte over seeds, and the standard error that the draws of one evaluation leave, the largest of them."""
    bits = spread([one["bits_per_byte"] for one in own])
    if own[0]["kind"] == "exact":
        return bits, ""
    return f"≤ {bits}", f"{max(one['stderr_nats'] / math.log(2) / one['n_bytes'] for one in own):.4f}"


def over_seeds(found: Sequence[dict[str, Any]]) -> Any:
    """Nats of each document."""
    return np.mean([one["documents"]["nats"] for one in found], axis=0)


def spread(values: Sequence[float], digits: int = 3, signed: bool = False) -> str:
    shape = f"{'+' if signed else ''},.{digits}f"
    mean = format(statistics.mean(values), shape)
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


if __name__ == "__main__":
    main()
