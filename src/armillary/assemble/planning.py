"""What a recipe will cost, before it does: parameters, tokens, arithmetic, memory, and time by a short measurement."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary import artefact
from armillary.assemble import build, stages
from armillary.assemble.parts import Parts
from armillary.assemble.stages import Given
from armillary.contracts import Batch, Layout, Objective
from armillary.model.network import count_parameters, meta_network
from armillary.nn.head import VocabularyHead
from armillary.randomness import key
from armillary.refusal import Refusal
from armillary.tokens import tokenizer as tokenizers
from armillary.training import distribution, precision
from armillary.training.loop import Course, steps

MEASURED_FLOPS = 2.0e11
"""Work of one measured step, at most: about a second on a laptop."""
WARM_UP_STEPS = 3
"""Not timed: memory is claimed in them, and the first one counts what is kept."""


def plan(parts: Parts, n_vocab: int, training_tokens: int | None, *, measured: bool) -> dict[str, Any]:
    """Plain facts. n_vocab: the tokenizer's, or the recipe's where there is no text yet. Writes nothing.

    training_tokens: tokens of the training split, for equivalent epochs; None where it is not known.
    """
    recipe = parts.recipe
    window, rows = recipe.packing.window, build.batch_rows(parts)
    meta = meta_network(parts.backbone, n_vocab, **build.network_options(parts))
    parameters, inner = count_parameters(meta)
    tokens = recipe.training.steps * rows * window
    head = 2 * n_vocab * parts.backbone.width
    body = flops_per_token(inner, n_vocab, parts.backbone)(window) - head
    training_flops = 3 * (positions_read(parts.objective, window) * body + head)
    facts: dict[str, Any] = {
        "recipe": recipe.name,
        "n_vocab": n_vocab,
        "parameters": parameters,
        "parameters_non_embedding": inner,
        "steps": recipe.training.steps,
        "tokens_per_step": rows * window,
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters,
        "equivalent_epochs": tokens / training_tokens if training_tokens else None,
        "training_flops": training_flops * tokens,
    }
    if measured:
        facts |= _measured(parts, n_vocab, parameters, training_flops * window)
    return facts


def known_sizes(parts: Parts, use: Given, has_text: bool) -> tuple[int, int | None]:
    """(vocabulary, tokens of the training split, None where there is no text).

    A text is packed in a temporary folder, which is what it takes to know both; nothing is left behind.
    """
    if use.packed is not None:
        about = artefact.read(use.packed, "packed").about
        return about["n_vocab"], about["splits"]["train"]["n_tokens"]
    if has_text or use.corpus is not None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = stages.prepare(parts, Path(folder), lambda line: None, use)
            n_tokens = sum(packed.about["splits"]["train"]["n_tokens"] for packed in prepared.packed.values())
            return prepared.tokenizer.tokenizer.n_vocab, n_tokens
    if use.tokenizer is not None:
        return tokenizers.load(use.tokenizer, part_folders=parts.folders).tokenizer.n_vocab, None
    planned = parts.tokenizer.planned_vocabulary
    if planned is None:
        raise Refusal("plan: this tokenizer's vocabulary is known after training; give a text as --data")
    return planned, None


def flops_per_token(inner: int, n_vocab: int, backbone: Any) -> Any:
    """FLOP of a token's forward pass in a row of L: 2 (inner + V D), and 2 layers D L of attention.

    Source: Kaplan et al. 2020, arXiv 2001.08361, table 1, with the causal half of the attention.
    """
    layers = getattr(backbone, "n_layers", 0)
    return lambda length: 2 * (inner + n_vocab * backbone.width) + 2 * layers * backbone.width * length


class _Counter(torch.nn.Module):
    """A network that only counts the positions it is given."""

    n_vocab = 8
    head = VocabularyHead(torch.zeros(8, 4))
    n_read = 0

    def hidden(self, tokens: Tensor, layout: Layout, noise_level: Tensor | None = None) -> Tensor:
        self.n_read += tokens.numel()
        return torch.zeros(*tokens.shape, 4)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(*tokens.shape, 8), torch.zeros(*tokens.shape, 8)

    def flow(self, z: Tensor, layout: Layout, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.n_read += where.numel()
        return z, torch.zeros(where.shape), torch.zeros(*where.shape, 4)


def positions_read(objective: Objective, window: int) -> float:
    """By the network, for each token of a row, in one loss: hidden sets with their complements read a row twice."""
    counter, generator = _Counter(), torch.Generator().manual_seed(0)
    tokens = torch.randint(counter.n_vocab, (4, window + 1), generator=generator)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    objective.loss(counter, batch, objective.draw(4, window, generator))
    return counter.n_read / (4 * window)


@dataclass(frozen=True)
class Measured:
    """seconds: median of an optimizer step. kept_bytes: for its backward pass, beside the weights."""

    n_rows: int
    seconds: float
    kept_bytes: int
    optimizer_bytes: int


def measure_steps(parts: Parts, n_vocab: int, n_rows: int) -> Measured:
    """A few optimizer steps of n_rows rows of random tokens, eager, on a network of their own."""
    accelerator = distribution.join(parts.recipe.training.device)
    settings = parts.recipe.training.model_copy(
        update={
            "steps": WARM_UP_STEPS + 5,
            "batch_rows": n_rows,
            "batch_tokens": None,
            "accumulation": 1,
            "compile": False,
        }
    )
    learner = build.learner(parts, n_vocab, accelerator.device)
    rows = _RandomRows(n_rows, parts.recipe.packing.window, n_vocab)
    arithmetic = precision.resolve(settings.precision, accelerator.device)
    course = Course(rows, settings, arithmetic, seed=0, factor=lambda step: 1e-3)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # with its graph, an output would keep what made it, and itself, for good

    happening = steps(learner, course, accelerator)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        next(happening)
    seconds = statistics.median([step.seconds for step in happening][WARM_UP_STEPS - 1 :])
    weights = {p.untyped_storage().data_ptr() for p in learner.network.parameters()}
    state = sum(t.numel() * t.element_size() for t in learner.optimizers.state_tensors().values())
    return Measured(n_rows, seconds, sum(n for pointer, n in kept.items() if pointer not in weights), state)


def _measured(parts: Parts, n_vocab: int, parameters: int, flops_per_row: float) -> dict[str, Any]:
    rows = build.batch_rows(parts)
    micro = rows // parts.recipe.training.accumulation
    n_rows = max(1, min(micro, int(MEASURED_FLOPS / flops_per_row)))
    small, large = (measure_steps(parts, n_vocab, n) for n in (n_rows, 2 * n_rows))
    # What is kept has a part that grows with the rows and one that does not: weights cast to bf16, the head's gradient.
    per_row = (large.kept_bytes - small.kept_bytes) / n_rows
    kept = small.kept_bytes + per_row * (micro - n_rows)
    averages = 4 * parameters if parts.recipe.training.ema is not None else 0
    memory = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": large.optimizer_bytes,
        "average": averages,
        "activations": int(kept),
    }
    return {
        "tokens_per_second": parts.recipe.packing.window * large.n_rows / large.seconds,
        "seconds": large.seconds / large.n_rows * rows * parts.recipe.training.steps,
        "memory_bytes": memory | {"total": sum(memory.values())},
        "measured_on_rows": large.n_rows,
    }


class _RandomRows:
    def __init__(self, n_rows: int, window: int, n_vocab: int) -> None:
        self.shape, self.n_vocab = (n_rows, window + 1), n_vocab

    def at(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(key(0, "plan", step))
        tokens = torch.randint(self.n_vocab, self.shape, generator=generator)
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def counts_before(self, step: int) -> dict[str, int]:
        return {}


def as_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plan as (name, value) for a person."""
    gib = 2**30
    lines = [
        ("parameters", f"{facts['parameters']:,}"),
        ("  without embeddings", f"{facts['parameters_non_embedding']:,}"),
        ("vocabulary", f"{facts['n_vocab']:,}"),
        ("steps", f"{facts['steps']:,} of {facts['tokens_per_step']:,} tokens"),
        ("tokens", f"{facts['tokens']:,} ({facts['tokens_per_parameter']:.1f} per parameter; 20 is Chinchilla's)"),
    ]
    if facts.get("equivalent_epochs"):
        lines.append(("equivalent epochs", f"{facts['equivalent_epochs']:.2f}"))
    lines.append(("training arithmetic", f"{facts['training_flops']:.3g} FLOP"))
    if "seconds" in facts:
        memory = facts["memory_bytes"]
        lines += [
            (
                "speed, measured",
                f"{facts['tokens_per_second']:,.0f} tokens/s on {facts['measured_on_rows']} rows a step",
            ),
            ("time", _duration(facts["seconds"])),
            ("memory", f"{memory['total'] / gib:.2f} GiB ({memory['activations'] / gib:.2f} of it activations)"),
        ]
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
