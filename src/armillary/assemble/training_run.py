"""The caller of the loop: validates, samples, keeps the best, saves, stops when asked, resumes.

A generator of what happens; whoever calls it draws the screen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from armillary.assemble import build, tracking
from armillary.assemble import facts as facts_of
from armillary.assemble.interruption import Wish, wishes
from armillary.assemble.parts import Parts
from armillary.assemble.sampling import continuations, settings
from armillary.assemble.stages import Prepared
from armillary.contracts import Network
from armillary.evaluation.likelihood import Ranks, Windowing, measure
from armillary.model.network import LanguageNetwork
from armillary.records import Note, Sample, Step, Validation
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder, now, write_text
from armillary.system import describe
from armillary.tokens import tokenizer as tokenizers
from armillary.training import checkpoints, distribution, precision
from armillary.training.learner import Learner
from armillary.training.loop import Course, NonFinite, steps

Happening = Step | Validation | Sample | Note


@dataclass
class Standing:
    """How the run stands; goes into every checkpoint, so that a resume judges as the unbroken run would."""

    best_loss: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0


class TrainingRun:
    """One attempt at a run. `happenings()` is the whole of it."""

    def __init__(
        self,
        parts: Parts,
        prepared: Prepared,
        run: RunFolder,
        accelerator: Accelerator,
        asked_recipe: str = "",
        start_from: Path | None = None,
    ) -> None:
        """asked_recipe: fingerprint of the recipe as its file has it, so that a resume notices an edited one.
        start_from: a verified checkpoint whose weights a new run begins with."""
        self.parts, self.prepared, self.run, self.accelerator = parts, prepared, run, accelerator
        self.asked_recipe, self.start_from = asked_recipe, start_from
        self.tracker = tracking.Tracker()
        self.settings = parts.recipe.training
        self.is_main = accelerator.is_main_process
        self.standing = Standing()
        self.attempt = 0
        self.state = "running"

    def bits_per_byte_of_a_nat_per_token(self) -> float | None:
        """Turns a training loss into bits per byte of the text; None for several corpora or a lossy tokenizer."""
        about = next(iter(self.prepared.packed.values())).about
        if len(self.prepared.packed) > 1 or not about["is_lossless"]:
            return None
        train = about["splits"]["train"]
        return train["n_scored"] / train["n_bytes"] / math.log(2)

    def happenings(self, *, command: str | None = None) -> Iterator[Happening]:
        """Trains to the end, to an early stop, or until a signal asks; the last checkpoint is then on disk.

        Raises Refusal before anything is written where the run cannot start; NonFinite as the loop does.
        """
        if self.run.exists():
            facts_of.refuse_saved_model(self.run)
            facts_of.refuse_other_recipe(self.run, self.parts.recipe)
            facts_of.refuse_other_text(self.run, self.prepared)
        self._refuse_idle_options()
        tokenizer = self.prepared.tokenizer.tokenizer
        self.manner = settings(self.parts, tokenizer, self.parts.recipe.sampling.prompts, {})
        device = self.accelerator.device
        learner = build.learner(self.parts, tokenizer.n_vocab, device, self.start_from)
        course = build.course(self.parts, self.prepared.packed, device)
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            notes = self._begin(learner, course, command)
            if (wanted := precision.wanted(self.settings.precision)) not in ("auto", course.arithmetic):
                detail = f"{device.type} has no {wanted} of its own; trained in {course.arithmetic}"
                notes.append(self._note(learner.step, "precision_replaced", detail))
            wish = stack.enter_context(wishes())
            stack.enter_context(precision.deterministic(self.settings.deterministic))
            yield from notes
            yield from self._train(learner, course, wish)

    def _refuse_idle_options(self) -> None:
        has_validation = "validation" in next(iter(self.prepared.packed.values())).splits
        if self.settings.early_stop is not None and not has_validation:
            raise Refusal("training.early_stop: this corpus has no validation split to judge by; leave it out")

    def _lock(self, stack: contextlib.ExitStack) -> None:
        """Only the main process holds the lock; where it cannot, every rank is refused."""
        refusal = None
        if self.is_main:
            try:
                stack.enter_context(self.run.lock())
            except Refusal as found:
                refusal = found
        if distribution.any_of(self.accelerator, refusal is not None):
            raise refusal or Refusal(f"{self.run.path}: another process is writing to this run")

    def _begin(self, learner: Learner, course: Course, command: str | None) -> list[Note]:
        facts = self.run.facts()
        self.attempt = facts.get("attempt", -1) + 1
        continues = self.run.exists()
        notes = self._go_on(learner, course, facts) if continues else []
        self.accelerator.wait_for_everyone()  # nobody may still be reading what is written now
        if self.is_main:
            if continues:
                checkpoints.sweep(self.run, learner.step)
                checkpoints.prune(self.run, self.settings.keep_checkpoints, self.standing.best_step)
                self.run.mark_resumed(learner.step, self.attempt)
            tokenizers.copy(self.prepared.tokenizer, self.run.tokenizer)
            told = facts_of.new_facts(self.parts, self.prepared, cast(LanguageNetwork, learner.network), facts)
            commands = [*facts.get("commands", []), *([command] if command else [])]
            own = {"name": self.run.name, "attempt": self.attempt, "commands": commands, "asked": self.asked_recipe}
            judged = {"best_step": self.standing.best_step, "best_loss": self.standing.best_loss}
            self.run.update_facts(**told | own | judged, system=self._system(course))
            write_text(self.run.recipe_file, self.parts.recipe.as_yaml())  # last: with it the run exists
        self.accelerator.wait_for_everyone()
        return notes

    def _go_on(self, learner: Learner, course: Course, facts: dict[str, Any]) -> list[Note]:
        rejected: list[str] = []
        newest = checkpoints.newest_valid(self.run, rejected)
        if newest is not None:
            facts_of.refuse_fewer_steps(newest, self.settings.steps)
        notes = [self._note(0, "checkpoint_rejected", why) for why in rejected]
        if newest is not None:
            self.standing = Standing(**checkpoints.load(learner, newest))
        notes.append(self._note(learner.step, "resumed", f"from {newest.name if newest else 'the beginning'}"))
        changes = {
            "system_changed": facts_of.changed_system(facts.get("system", {}), self._system(course)),
            "steps_changed": facts_of.changed_steps(facts.get("steps"), self.settings.steps),
        }
        return notes + [self._note(learner.step, event, detail) for event, detail in changes.items() if detail]

    def _train(self, learner: Learner, course: Course, wish: Wish) -> Iterator[Happening]:
        training = self.settings
        started, spent = time.perf_counter(), self.run.facts().get("training_seconds", 0.0)
        try:
            if self.is_main:
                self.tracker = tracking.open_trackers(training.track, self.run)
            if self._ends_early():  # a run that had ended is resumed: it has nothing left to do
                self.state = "finished"
                return
            for step in steps(learner, course, self.accelerator):
                is_last = step.step == training.steps
                self._record(step, is_last)
                yield step
                if not step.is_applied:
                    yield self._note(step.step, "step_rolled_back", "loss or gradient not finite; weights kept")
                asked = self._asked(wish)
                is_judged = is_last or step.step % training.validate_every == 0
                validations = list(self._validate(learner)) if is_judged else []
                yield from validations
                is_due = training.sample_every and (step.step % training.sample_every == 0 or is_last)
                if is_due and not asked:
                    yield from self._sample(learner)
                ends_early = self._ends_early()
                is_best = any(v.is_best for v in validations)
                if is_best or is_last or asked or ends_early or step.step % training.checkpoint_every == 0:
                    self._save(learner, spent + time.perf_counter() - started)
                if ends_early:
                    self.state = "finished"
                    yield self._note(step.step, "early_stop", self._patience_spent())
                    break
                if asked and not is_last:
                    self.state = "interrupted"
                    yield self._note(step.step, "interrupted", asked)
                    break
            else:
                self.state = "finished"
        except NonFinite as error:
            self.state = "stopped"
            self._note(learner.step, "non_finite", str(error))
            raise
        finally:
            self.tracker.close()
            if self.is_main:
                ended = {"finished": now()} if self.state == "finished" else {}
                self.run.update_facts(state="interrupted" if self.state == "running" else self.state, **ended)

    def _record(self, step: Step, is_last: bool) -> None:
        if self.is_main and (step.step % self.settings.log_every == 0 or is_last or not step.is_applied):
            record = asdict(step) | {"epoch": self._epoch(step.step)}
            self.run.append("metrics.jsonl", record | {"kind": "train", "attempt": self.attempt})
            self.tracker.track(step.step, record, "train")

    def _epoch(self, step: int) -> float:
        """Rows read until then, over those there are."""
        n_rows = sum(packed.about["splits"]["train"]["n_rows"] for packed in self.prepared.packed.values())
        return step * build.batch_rows(self.parts) / n_rows

    def _validate(self, learner: Learner) -> Iterator[Validation]:
        """On every corpus that has a validation split; the first one judges which checkpoint is best."""
        judges = True
        window = self.parts.recipe.packing.window
        rows = self.settings.validation_rows
        batch_rows, n_tokens = self.parts.recipe.evaluation.batch_rows, rows * window if rows else None
        windowing = Windowing(window, window, batch_rows, n_tokens, samples=1)
        for name, packed in self.prepared.packed.items():
            if "validation" not in packed.splits:
                continue
            started = time.perf_counter()
            with learner.at_its_best() as network, torch.inference_mode(), precision.autocast(*self._arithmetic()):
                text = (packed, "validation")
                found = measure(cast(Network, network), learner.objective, text, windowing, self._ranks()).likelihood
            loss = found.nats / found.n_tokens
            best = self.standing.best_loss
            is_best = judges and math.isfinite(loss) and (best is None or loss < best)
            if judges:
                self._judge(learner.step, loss, is_best)
            judges = False
            validation = Validation(
                step=learner.step,
                corpus=name,
                loss=loss,
                bits_per_byte=found.bits_per_byte,
                word_perplexity=found.word_perplexity,
                is_best=is_best,
                seconds=time.perf_counter() - started,
            )
            if self.is_main:
                self.run.append("metrics.jsonl", asdict(validation) | {"kind": "validation", "attempt": self.attempt})
                self.tracker.track(learner.step, asdict(validation), f"validation/{name}")
                if is_best:
                    self.run.update_facts(best_bits_per_byte=found.bits_per_byte, best_loss=loss)
            yield validation

    def _judge(self, step: int, loss: float, is_best: bool) -> None:
        since = 0 if is_best else self.standing.validations_since_best + 1
        self.standing = replace(self.standing, validations_since_best=since)
        if is_best:
            self.standing = replace(self.standing, best_loss=loss, best_step=step)

    def _sample(self, learner: Learner) -> Iterator[Sample]:
        sampling = self.parts.recipe.sampling
        if not self.is_main:
            return
        tokenizer = self.prepared.tokenizer.tokenizer
        with learner.at_its_best() as network:
            texts = continuations(cast(LanguageNetwork, network), tokenizer, sampling.prompts, self.manner)
        for prompt, found in zip(sampling.prompts, texts, strict=True):
            sample = Sample(learner.step, prompt, found.text, found.finish)
            self.run.append("samples/samples.jsonl", asdict(sample) | {"attempt": self.attempt})
            yield sample

    def _save(self, learner: Learner, training_seconds: float) -> None:
        if self.is_main:
            origin = {
                "epoch": self._epoch(learner.step),
                "seed": self.parts.recipe.seed,
                "tokenizer_sha256": self.prepared.tokenizer.sha256,
            }
            checkpoints.save(learner, self.run.checkpoint(learner.step), asdict(self.standing), origin)
            self.run.update_facts(best_step=self.standing.best_step, training_seconds=training_seconds)
            checkpoints.prune(self.run, self.settings.keep_checkpoints, self.standing.best_step)
        self.accelerator.wait_for_everyone()

    def _asked(self, wish: Wish) -> str | None:
        """Which signal asked to stop. All ranks stop at the same step, so they agree on it at every step."""
        if not distribution.any_of(self.accelerator, wish.signal_name is not None):
            return None
        return wish.signal_name or "a signal to another rank"

    def _ends_early(self) -> bool:
        patience = self.settings.early_stop
        return patience is not None and self.standing.validations_since_best >= patience

    def _patience_spent(self) -> str:
        standing = self.standing
        return f"no better validation in {standing.validations_since_best}; the best was step {standing.best_step}"

    def _ranks(self) -> Ranks:
        def total(sums: np.ndarray) -> np.ndarray:
            return distribution.total(self.accelerator, torch.from_numpy(sums)).cpu().numpy()

        return Ranks(self.accelerator.process_index, self.accelerator.num_processes, total)

    def _system(self, course: Course) -> dict[str, Any]:
        return describe() | {
            "device": str(self.accelerator.device),
            "precision": course.arithmetic,
            "processes": self.accelerator.num_processes,
            "compile": self.settings.compile,
        }

    def _arithmetic(self) -> Any:
        device = self.accelerator.device
        return precision.resolve(self.settings.precision, device), device

    def _note(self, step: int, event: str, detail: str) -> Note:
        if self.is_main:
            self.run.append("events.jsonl", {"attempt": self.attempt, "step": step, "event": event, "detail": detail})
        return Note(step, event, detail)
