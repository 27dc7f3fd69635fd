"""A small model trained on about 50 MB of text: its curves of loss and perplexity, and its validation at the end."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from armillary.assemble import build, evaluating, stages, training
from armillary.benches._found import Desk, Found
from armillary.benches._synthetic import file
from armillary.records import Validation
from armillary.refusal import Refusal
from armillary.registry import Part
from armillary.run_folder import RunFolder
from armillary.tokens.packed import open_packed

SHOWN = ("name", "kind", "bits_per_byte", "word_perplexity", "token_perplexity", "n_bytes")
MADE_MEGABYTES, TRIED_MEGABYTES = 50.0, 0.1


class TinyCorpus(Part):
    """A run like any other, under ROOT/runs; overrides: "a.b=c" on its recipe. data: a text file or folder, else
    synthetic text is made, under ROOT/bench. megabytes: of that, 50 by default."""

    recipe: str = "psann-tiny-corpus"
    data: str | None = None
    megabytes: float | None = Field(None, gt=0)
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    quick: ClassVar = {"megabytes": 0.2, "overrides": ("training.steps=8", "training.schedule.warmup=1")}

    @model_validator(mode="after")
    def data_is_read_whole(self) -> TinyCorpus:
        if self.data is not None and self.megabytes is not None:
            raise ValueError(
                "megabytes: is the size of text that is made, and data is read whole; leave one of them out"
            )
        return self

    def check(self, desk: Desk) -> None:
        """A little of the text stands for text that is still to be made. Given text is read, once more than the run
        reads it: one without a validation split would be found out after all of the training."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run will say the same
            made = min(self.megabytes or MADE_MEGABYTES, TRIED_MEGABYTES)
            checked = training.check(self._request(desk, Path(self.data) if self.data else file(Path(folder), made)[0]))
            build.pick_device(checked.parts.recipe.training.device)
            if checked.given.packed is not None:
                splits = [open_packed(checked.given.packed).splits]
            else:
                corpora = stages.build_corpora(checked.parts, Path(folder), lambda line: None, checked.given)
                splits = [corpus.splits for corpus in corpora.values()]
        if not all("validation" in each for each in splits):
            raise Refusal(
                "bench tiny-corpus: data leaves no validation split; give a text of at least two documents (blank "
                "lines between them) and a validation_fraction above 0"
            )

    def run(self, desk: Desk) -> Found:
        megabytes = self.megabytes or MADE_MEGABYTES
        path, sha256 = (Path(self.data), None) if self.data else file(desk.root / "bench", megabytes)
        run = self._trained(desk, path)
        desk.say("tiny-corpus: measuring the validation split")
        final = evaluating.evaluate(build.open_model(run), evaluating.Wanted(split="validation", root=desk.root))
        rows = sorted((_row(r) for kind in ("train", "validation") for r in run.metrics(kind)), key=lambda r: r["step"])
        facts = run.facts()
        keys = ("state", "parameters", "steps", "batch_rows", "best_step", "training_seconds", "corpora", "tokenizer")
        told = {key: facts.get(key) for key in keys}
        metrics = {"run": str(run.path), "text": path.name, "text_sha256": sha256, "final_validation": final, **told}
        shown = [{key: result[key] for key in SHOWN} for result in final]
        notes = [f"the run is {run.path}: info, report and sample take it"]
        files = {"metrics.csv": rows, "metrics.json": metrics}
        return Found(shown, files, notes, {"loss_curve.png": panels(rows)}, is_ok=facts["state"] == "finished")

    def _request(self, desk: Desk, text: Path) -> training.Request:
        name = f"tiny-corpus-{desk.stamp}"
        overrides = [f"training.device={self.device}", *self.overrides] if self.device != "auto" else self.overrides
        return training.Request(self.recipe, list(overrides), text, name=name, root=desk.root)

    def _trained(self, desk: Desk, text: Path) -> RunFolder:
        run = training.start(training.check(self._request(desk, text)), desk.say)
        for happening in run.happenings(command="armillary bench tiny-corpus"):
            if isinstance(happening, Validation):
                desk.say(f"step {happening.step:,}: validation {happening.loss:.4f} nats/token")
        if run.state == "interrupted":
            desk.say(f"interrupted; what was trained is in {run.run.path}")
            raise KeyboardInterrupt
        return run.run


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.csv. perplexity: of a token."""
    loss = record["loss"]
    return {
        "step": record["step"],
        "kind": record["kind"],
        "n_tokens": record.get("n_tokens"),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)) if loss is not None else None,
        "bits_per_byte": record.get("bits_per_byte"),
    }


def panels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss and perplexity against steps, training and validation."""
    found = []
    for key, label in (("loss", "loss, nats per token"), ("perplexity", "perplexity of a token")):
        lines = []
        for kind, mark in (("train", "-"), ("validation", "o-")):
            own = [row for row in rows if row["kind"] == kind and row[key] is not None]
            points = {"x": [row["step"] for row in own], "y": [row[key] for row in own]}
            lines.append({"label": kind, "mark": mark, **points})
        found.append({"x_label": "step", "y_label": label, "is_log_y": key == "perplexity", "lines": lines})
    return found
