"""A run stopped anywhere and resumed ends with the same weights as one that was not. In one process: what a kill leaves
on disk is what an abandoned generator leaves. Real signals are in tests/cli/test_signals.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from armillary.assemble import training
from armillary.records import Note, Step, Validation
from armillary.refusal import Refusal
from armillary.training import precision


def begin(recipe, root, *changes, resumes=False, name="run"):
    request = training.Request(str(recipe), list(changes), name=name, resumes=resumes, root=root)
    return training.start(training.check(request), lambda line: None)


def weights(root, name="run", step=24, file="model.safetensors"):
    return load_file(root / "runs" / name / "checkpoints" / f"step-{step:08d}" / file)


def abandon(run, after: int) -> None:
    happenings = run.happenings()
    for happening in happenings:
        if isinstance(happening, Step) and happening.step == after:
            break
    happenings.close()


@pytest.fixture(scope="module")
def unbroken(small_recipe, tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    found = list(begin(small_recipe, root).happenings())
    return root, found


VARIANTS = {
    "plain": [],
    "bf16": ["training.precision=bf16"],
    "muon": ["training.optimizer={name: muon}"],
    "isolated": ["packing.isolate_documents=true"],
    "word": ["tokenizer={name: word, vocabulary: 40, unknown: unk}"],
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_abandoned_anywhere_and_resumed_the_weights_are_equal(variant, small_recipe, tmp_path, monkeypatch):
    changes = VARIANTS[variant]
    if variant == "bf16":  # emulated where the processor has none
        monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    list(begin(small_recipe, tmp_path, *changes, name="whole").happenings())
    for after in (1, 7, 12, 23):
        if begin_at(tmp_path) is not None and begin_at(tmp_path) >= after:
            continue
        abandon(begin(small_recipe, tmp_path, *changes, resumes=True), after)
    notes = [h for h in begin(small_recipe, tmp_path, *changes, resumes=True).happenings() if isinstance(h, Note)]
    assert notes[0].event == "resumed" and notes[0].step == 20
    for file in ("model.safetensors", "optimizer.safetensors", "average.safetensors"):
        whole, broken = weights(tmp_path, "whole", file=file), weights(tmp_path, "run", file=file)
        assert whole.keys() == broken.keys()
        for key in whole:
            assert torch.equal(whole[key], broken[key]), (file, key)


def begin_at(root):
    steps = sorted((root / "runs" / "run" / "checkpoints").glob("step-*"))
    return int(steps[-1].name[5:]) if steps else None


def test_the_newest_valid_checkpoint_wins_and_the_log_says_so(unbroken, small_recipe, tmp_path):
    root, _ = unbroken
    abandon(begin(small_recipe, tmp_path), 13)
    broken = tmp_path / "runs" / "run" / "checkpoints" / "step-00000012" / "optimizer.safetensors"
    content = bytearray(broken.read_bytes())
    content[-5] ^= 1
    broken.write_bytes(content)
    happenings = list(begin(small_recipe, tmp_path, resumes=True).happenings())
    notes = [h for h in happenings if isinstance(h, Note)]
    assert [n.event for n in notes[:2]] == ["checkpoint_rejected", "resumed"]
    assert "optimizer.safetensors" in notes[0].detail and notes[1].detail == "from step-00000008"
    for key, weight in weights(root).items():
        assert torch.equal(weight, weights(tmp_path)[key])


def test_records_of_an_older_attempt_are_superseded(small_recipe, tmp_path):
    abandon(begin(small_recipe, tmp_path), 11)
    run = begin(small_recipe, tmp_path, resumes=True)
    list(run.happenings())
    records = run.run.metrics("train")
    assert [r["step"] for r in records] == list(range(1, 25))
    assert [r["attempt"] for r in records] == [0] * 8 + [1] * 16


def test_another_recipe_text_or_tokenizer_is_refused(unbroken, small_recipe, tmp_path):
    abandon(begin(small_recipe, tmp_path), 5)
    with pytest.raises(Refusal, match=r"another training\.optimizer"):
        list(begin(small_recipe, tmp_path, "training.optimizer.learning_rate=0.5", resumes=True).happenings())
    with pytest.raises(Refusal, match=r"another model\.backbone"):
        list(begin(small_recipe, tmp_path, "model.backbone.n_layers=3", resumes=True).happenings())
    other = tmp_path / "other.txt"
    other.write_text(small_recipe.read_text() + "\n\n" + "quite another text\n\n" * 200, encoding="utf-8")
    changes = ["tokenizer={name: character}"]
    request = training.Request(str(small_recipe), changes, other, name="run", resumes=True, root=tmp_path)
    with pytest.raises(Refusal, match="another t"):
        list(training.start(training.check(request), lambda line: None).happenings())
    with pytest.raises(Refusal, match="exists"):
        begin(small_recipe, tmp_path)


def test_more_steps_are_taken_and_noted(unbroken, small_recipe, tmp_path):
    list(begin(small_recipe, tmp_path, "training.steps=8").happenings())
    happenings = list(begin(small_recipe, tmp_path, "training.steps=10", resumes=True).happenings())
    assert [h.event for h in happenings if isinstance(h, Note)] == ["resumed", "steps_changed"]
    assert [h.step for h in happenings if isinstance(h, Step)] == [9, 10]


def test_the_best_validation_is_kept_and_patience_ends_a_run(small_recipe, tmp_path):
    changes = ["training.steps=200", "training.validate_every=1", "training.early_stop=2", "training.ema=null",
               "training.optimizer.learning_rate=0.3", "training.keep_checkpoints=1"]  # fmt: skip
    run = begin(small_recipe, tmp_path, *changes)
    happenings = list(run.happenings())
    validations = [h for h in happenings if isinstance(h, Validation)]
    best = min(validations, key=lambda v: v.loss)
    assert run.run.facts()["best_step"] == best.step
    assert best.step in run.run.checkpoint_steps() and len(run.run.checkpoint_steps()) == 2
    assert [v.is_best for v in validations[-2:]] == [False, False]
    assert run.run.events()[-1]["event"] == "early_stop" and run.run.facts()["state"] == "finished"


def test_a_run_stopped_on_a_validation_step_judges_it_all_the_same(small_recipe, tmp_path):
    run = begin(small_recipe, tmp_path)
    happenings = run.happenings()
    for happening in happenings:
        if isinstance(happening, Step) and happening.step == 8:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)  # the wish of the run, not of the test
    assert run.state == "interrupted"
    list(begin(small_recipe, tmp_path, resumes=True).happenings())
    assert [r["step"] for r in run.run.metrics("validation")] == [8, 16, 24]


def test_a_run_that_ended_early_is_resumed_without_another_step(small_recipe, tmp_path):
    changes = ["training.steps=60", "training.validate_every=1", "training.early_stop=1",
               "training.optimizer.learning_rate=0.5", "training.ema=null"]  # fmt: skip
    list(begin(small_recipe, tmp_path, *changes).happenings())
    again = list(begin(small_recipe, tmp_path, *changes, resumes=True).happenings())
    assert not [h for h in again if isinstance(h, Step)]


def test_a_rejected_checkpoint_does_not_outlive_fresh_ones(small_recipe, tmp_path):
    changes = ["training.keep_checkpoints=1", "training.validate_every=100", "training.checkpoint_every=4"]
    abandon(begin(small_recipe, tmp_path, *changes), 13)
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    assert [p.name for p in checkpoints.glob("step-*")] == ["step-00000012"]
    (checkpoints / "step-00000012" / "model.safetensors").write_bytes(b"")
    abandon(begin(small_recipe, tmp_path, *changes, resumes=True), 9)
    assert [p.name for p in checkpoints.glob("step-*")] == ["step-00000008"]


def test_a_run_exists_only_when_all_of_it_is_there(small_recipe, tmp_path):
    """Killed before recipe.yaml, the last file of a beginning, it is begun again."""
    abandon(begin(small_recipe, tmp_path), 2)
    (tmp_path / "runs" / "run" / "recipe.yaml").unlink()
    happenings = list(begin(small_recipe, tmp_path, resumes=True).happenings())
    assert [h.step for h in happenings if isinstance(h, Step)] == list(range(1, 25))


def test_an_edited_recipe_is_refused_and_the_runs_own_is_taken(small_recipe, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(small_recipe.read_text(encoding="utf-8"), encoding="utf-8")
    abandon(begin(own, tmp_path), 5)
    own.write_text(own.read_text(encoding="utf-8").replace("steps: 24", "steps: 30"), encoding="utf-8")
    with pytest.raises(Refusal, match="changed since run"):
        begin(own, tmp_path, resumes=True)
    happenings = list(begin(tmp_path / "runs" / "run" / "recipe.yaml", tmp_path, resumes=True).happenings())
    assert [h for h in happenings if isinstance(h, Step)][-1].step == 24


def test_two_writers_are_one_too_many(small_recipe, tmp_path):
    first = begin(small_recipe, tmp_path).happenings()
    next(first)
    with pytest.raises(Refusal, match="another process is writing"):
        list(begin(small_recipe, tmp_path, resumes=True).happenings())
    first.close()
