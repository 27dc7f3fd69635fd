"""Texts of a run held against real ones: by another model, by their variety, and by what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from armillary.assemble import sampling, stages
from armillary.assemble.build import OpenModel
from armillary.assemble.sampling import Manner
from armillary.evaluation import sample_quality
from armillary.records import fingerprint
from armillary.refusal import Refusal
from armillary.run_folder import write_json


def judged(
    model: OpenModel, judge: OpenModel, manners: Sequence[Manner], n: int, seed: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """n texts from the beginning of a document in each manner, kept with their figures in the run's evaluation folder.

    tokens_per_second: of all texts drawn together, the judge not counted. tokens_per_evaluation: how many tokens of a
    text one row through the network decides; None for left to right, which decides one.
    """
    out = []
    for manner in manners:
        assert model.parts.recipe.sampling.sampler is not None, "a resolved recipe"
        name = model.parts.recipe.sampling.sampler.name
        sampler = manner.sampler.model_dump() | {"name": name, "max_new_tokens": manner.n_new}
        steps = sampler.get("steps") or sampler.get("sampler", {}).get("steps")
        say(f"{model.run.name}: {n} texts by {name}" + (f" in {steps} steps" if steps else ""))
        started = time.perf_counter()
        found = sampling.from_model(model, [""] * n, manner, seed)
        seconds = time.perf_counter() - started
        n_asked = [one.n_evaluations for one in found if one.n_evaluations]
        cost = {
            "sampler": sampler,
            "seconds": seconds,
            "tokens_per_second": n * manner.n_new / seconds
            if n_asked
            else sum(one.n_tokens for one in found) / seconds,
            "tokens_per_evaluation": manner.n_new * len(n_asked) / sum(n_asked) if n_asked else None,
        }
        texts = [one.text for one in found]
        figures = {"name": model.run.name, **cost, **_figures([one.tokens for one in found], texts, judge)}
        stem = f"step{model.step:08d}-{name}-{fingerprint([sampler, n, seed, judge.run.name])[:8]}"
        folder = model.run.path / "evaluation" / "texts"
        write_json(folder / f"{stem}.json", figures | {"texts": texts})
        out.append(figures)
    return out


def real(model: OpenModel, judge: OpenModel, n: int, n_tokens: int, root: Path) -> dict[str, Any]:
    """The beginnings of n_tokens of n held-out documents, through the same judge; spread evenly over the split."""
    packed = next(iter(stages.reopen(model.run, model.parts, root).packed.values()))
    part = packed.split(packed.splits[-1])
    starts = [int(start) + 1 for start in part.document_starts]
    ends = [*(start - 1 for start in starts[1:]), len(part.tokens)]
    long_enough = [start for start, end in zip(starts, ends, strict=True) if end - start >= n_tokens]
    if not long_enough:
        raise Refusal(f"--max-new-tokens {n_tokens}: no held-out document is as long; ask for fewer")
    chosen = [long_enough[i * len(long_enough) // n] for i in range(min(n, len(long_enough)))]
    rows = [part.tokens[start : start + n_tokens].tolist() for start in chosen]
    return {"name": "held-out text", **_figures(rows, [model.tokenizer.decode(row) for row in rows], judge)}


def _figures(rows: Sequence[Sequence[int]], texts: Sequence[str], judge: OpenModel) -> dict[str, Any]:
    read = [judge.tokenizer.encode(text) for text in texts]
    with torch.inference_mode():
        nats = sample_quality.judge(judge.network, judge.parts.objective, read, judge.parts.recipe.packing.window)
    return {"judge": judge.run.name, **asdict(sample_quality.quality(rows, nats))}
