"""The options of `LanguageModel.fit`, and what they are in a recipe."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field

from armillary import artefact
from armillary import recipe as recipes
from armillary.assemble import parts as parts_of
from armillary.assemble.build import OpenModel
from armillary.assemble.training_run import TrainingRun
from armillary.language_model.text_data import TextData, Windows, as_data
from armillary.records import Note, Step, Validation
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.run_folder import RunFolder
from armillary.training import distribution

MOST_WARMUP = 100
TROUBLE = ("precision_replaced", "step_rolled_back", "checkpoint_rejected", "steps_changed")
"""Events that whoever asked for the run should hear of, whatever is logged."""
logger = logging.getLogger("armillary")


class FitOptions(Part):
    """batch_tokens: of an optimizer step, over all processes and grad_accum_steps; where the text has fewer, a step
    reads all of it. compile: the step, by torch.compile. warmup_steps None: a tenth of the steps, at most 100.
    checkpoint_dir: the run's folder; where it holds a run of the same options (or of fewer epochs), that one goes on
    where it ended."""

    epochs: float = Field(gt=0, allow_inf_nan=False)
    batch_tokens: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    amp: Literal["bf16", "fp16", "fp32"]
    ddp: Literal["auto", "on", "off"]
    warmup_steps: int | None = Field(None, ge=0)
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    grad_clip: float | None = Field(1.0, gt=0)
    grad_accum_steps: int = Field(1, ge=1)
    grad_checkpoint: bool = False
    compile: bool = False
    checkpoint_dir: Path | None = None
    log_interval_steps: int = Field(10, ge=1)
    save_interval_steps: int = Field(500, ge=1)

    def training(self, rows: Windows, accelerator: Accelerator) -> dict[str, Any]:
        """That section of a recipe."""
        unit = self.grad_accum_steps * accelerator.num_processes
        if unit > len(rows):
            raise Refusal(f"grad_accum_steps: {self.grad_accum_steps} × {accelerator.num_processes} processes are more "
                          f"than the {len(rows)} windows of the text; give less")  # fmt: skip
        if self.batch_tokens < unit * rows.split.window:
            raise Refusal(f"batch_tokens: {self.batch_tokens} is less than {unit} windows of {rows.split.window}; give "
                          f"at least {unit * rows.split.window:,}")  # fmt: skip
        n_rows = max(unit, min(self.batch_tokens // rows.split.window, len(rows)) // unit * unit)
        steps = math.ceil(self.epochs * len(rows) / n_rows)
        warmup = min(MOST_WARMUP, steps // 10) if self.warmup_steps is None else self.warmup_steps
        if warmup > steps:
            raise Refusal(f"warmup_steps: {warmup} in a run of {steps} steps; give fewer, or more epochs")
        return {
            "steps": steps,
            "batch_rows": n_rows,
            "accumulation": self.grad_accum_steps,
            "optimizer": {"name": "adamw", "learning_rate": self.lr, "weight_decay": self.weight_decay},
            "schedule": {"name": "cosine", "warmup": warmup},
            "clip": self.grad_clip,
            "precision": self.amp,
            "activation_checkpointing": self.grad_checkpoint,
            "compile": self.compile,
            "log_every": self.log_interval_steps,
            "checkpoint_every": self.save_interval_steps,
        }

    def refuse_other_launch(self) -> None:
        """Raises Refusal where ddp asks for what the process was not launched as."""
        n = int(os.environ.get("WORLD_SIZE", "1"))
        if self.ddp == "on" and n == 1:
            program = shlex.quote(sys.argv[0] or "program.py")
            raise Refusal(f"ddp: 'on' in a single process; launch it with: torchrun --nproc-per-node 2 {program}")
        if self.ddp == "off" and n > 1:
            raise Refusal(f"ddp: 'off', and this is one of {n} processes; launch it without torchrun, or give auto")


def start(
    options: FitOptions, raw: Mapping[str, Any], data: TextData, val_data: TextData | Iterable[str | Path] | None,
    before: OpenModel | None, folder: Path,
) -> TrainingRun:  # fmt: skip
    """A run of a recipe on this text, in a folder. before: the model whose weights and tokenizer it goes on with."""
    options.refuse_other_launch()
    accelerator = distribution.join("auto")
    if (why := distribution.fallen_back("auto")) is not None and accelerator.is_main_process:
        logger.info(why)
    tokenizer = data.prepared.tokenizer.folder if before is None else before.run.tokenizer
    raw = {**raw, **data.recipe}
    if val_data is not None:
        held_out = as_data(val_data, tokenizer, data.recipe["packing"]["window"])  # its folder goes with it
        raw |= data.validated_by(held_out)
    if before is not None:
        raw["tokenizer"] = before.run.recipe()["tokenizer"]
    if options.label_smoothing or "label_smoothing" in raw["objective"]:
        raw["objective"] = {**raw["objective"], "label_smoothing": options.label_smoothing}
    prepared = data.prepare(raw, tokenizer)
    rows = Windows(prepared.packed["text"].split("train"))
    parts = parts_of.resolve(recipes.merge(raw, {"training": options.training(rows, accelerator)}))
    run = RunFolder(Path(broadcast_object_list([str(folder)])[0]))
    start_from = None
    if before is not None:
        start_from = before.run.checkpoint(before.step)
        artefact.read(start_from, "checkpoint")
    return TrainingRun(parts, prepared, run, accelerator, start_from=start_from)


def follow(training: TrainingRun) -> None:
    """Runs it to its end; what happens goes to the log "armillary", of the first process."""
    every, last = training.settings.log_every, training.settings.steps
    for happening in training.happenings():
        if not training.is_main:
            continue
        match happening:
            case Step(step=step, loss=loss) if step % every == 0 or step == last:
                loss = "not finite" if loss is None else f"{loss:.4f} nats/token"
                logger.info("step %d/%d: loss %s, %.0f tokens/s", step, last, loss, happening.tokens_per_second)
            case Validation():
                logger.info("validation at step %d: %.4f nats/token", happening.step, happening.loss)
            case Note():
                level = logging.WARNING if happening.event in TROUBLE else logging.INFO
                logger.log(level, "%s at step %d: %s", happening.event, happening.step, happening.detail)
