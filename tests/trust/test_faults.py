"""What goes wrong with disks, files, clocks and numbers: each is a named error or a logged fall-back; nothing is lost
and nothing is silent. Killed processes are in test_kill_suite.py."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from armillary import artefact, run_folder
from armillary.assemble import facts, training, training_run
from armillary.cli import main
from armillary.contracts import Loss
from armillary.objectives.autoregressive import Autoregressive
from armillary.records import Note, Step, Validation
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.run_folder import RunFolder
from armillary.training import checkpoints

STEPS, ACCUMULATION = 24, 2
OUT_OF_SPACE = r"(?i)no space left|disk( \S+)* is full|file too large"


class Answer(NamedTuple):
    status: int
    lines: list[str]


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys, monkeypatch) -> Call:
    """Runs a verb in this process: its exit status, and the lines of stderr. A traceback counts as many lines."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*words: object) -> Answer:
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always", ArmillaryWarning)
            try:
                main([str(word) for word in words])
                status, more = 0, ""
            except SystemExit as ending:
                status, more = int(ending.code or 0), ""
            except Exception:  # noqa: BLE001 - what would end a process with a traceback
                status, more = 1, traceback.format_exc()
        return Answer(status, (capsys.readouterr().err + more).strip().splitlines())

    return run


def train_words(recipe: Path, root: Path, *more: str) -> list[object]:
    return ["train", recipe, "--name", "run", "--resume", "auto", "--root", root, "--log-level", "quiet", *more]


def assert_one_line(answer: Answer, *needles: str, status: int = 2) -> None:
    assert answer.status == status and len(answer.lines) == 1, answer
    assert answer.lines[0].startswith("armillary: ")
    for needle in needles:
        assert needle in answer.lines[0]


def begin(recipe: Path, root: Path, *changes: str) -> training_run.TrainingRun:
    request = training.Request(str(recipe), list(changes), name="run", resumes=True, root=root)
    return training.start(training.check(request), lambda line: None)


def abandon(recipe: Path, root: Path, after: int) -> RunFolder:
    begun = begin(recipe, root)
    with contextlib.closing(begun.happenings()) as happenings:  # type: ignore[type-var]  # it is a generator
        for happening in happenings:
            if isinstance(happening, Step) and happening.step == after:
                break
    return begun.run


def final(run: RunFolder) -> dict[str, torch.Tensor]:
    folder = run.checkpoint(STEPS)
    files = ("model.safetensors", "optimizer.safetensors", "average.safetensors")
    return {f"{file}:{name}": tensor for file in files for name, tensor in load_file(folder / file).items()}


def assert_same_weights(whole: RunFolder, run: RunFolder) -> None:
    ours, theirs = final(whole), final(run)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def whole(small_recipe, tmp_path_factory) -> RunFolder:
    run = begin(small_recipe, tmp_path_factory.mktemp("whole"))
    list(run.happenings())
    return run.run


@pytest.fixture(scope="module")
def interrupted(small_recipe, tmp_path_factory) -> Path:
    """A root whose run stopped in step 13, with checkpoints of steps 8 and 12."""
    root = tmp_path_factory.mktemp("interrupted")
    assert abandon(small_recipe, root, 13).checkpoint_steps() == [8, 12]
    return root


@pytest.fixture
def half(interrupted, tmp_path) -> RunFolder:
    """A copy of it to damage. Its text lies where it was: a run knows where its packed tokens are."""
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "run")


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "missing": Path.unlink}


@contextlib.contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    content = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        path.write_bytes(content)


CHECKPOINT_FILES = ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(file, damage, half, whole, small_recipe, tmp_path):
    newest = half.checkpoint(12)
    assert sorted(path.name for path in newest.iterdir()) == sorted(CHECKPOINT_FILES)
    DAMAGES[damage](newest / file)
    happenings = list(begin(small_recipe, tmp_path).happenings())
    notes = [h for h in happenings if isinstance(h, Note)]
    assert [note.event for note in notes[:2]] == ["checkpoint_rejected", "resumed"]
    assert newest.name in notes[0].detail and (file in notes[0].detail or file == "manifest.json")
    assert notes[1].detail == "from step-00000008"
    events = half.events()
    assert [e["event"] for e in events if e["attempt"] == 1] == [note.event for note in notes]
    assert_same_weights(whole, half)


def test_without_a_valid_checkpoint_it_begins_again_and_says_so(half, whole, small_recipe, tmp_path):
    for step in (8, 12):
        flip(half.checkpoint(step) / "model.safetensors")
    notes = [h for h in begin(small_recipe, tmp_path).happenings() if isinstance(h, Note)]
    assert [n.event for n in notes[:3]] == ["checkpoint_rejected", "checkpoint_rejected", "resumed"]
    assert notes[2].detail == "from the beginning"
    assert_same_weights(whole, half)


def artefacts(root: Path) -> dict[str, Path]:
    """The one artefact of each kind."""
    return {kind: next((root / "artefacts" / kind).iterdir()) for kind in ("corpora", "tokenizers", "packed")}


def test_a_flipped_byte_anywhere_in_a_manifest_is_found(interrupted):
    """A manifest vouches for the other files, so it must vouch for itself: a window of 22 instead of 32 is no window
    that anybody asked for."""
    folders = [*artefacts(interrupted).values(), interrupted / "runs" / "run" / "checkpoints" / "step-00000012"]
    unnoticed = []
    for folder in folders:
        path = folder / "manifest.json"
        content = path.read_bytes()
        for place in range(0, len(content), 5):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            try:
                artefact.read(folder)
                unnoticed.append((folder.name, bytes(changed[max(0, place - 20) : place + 10])))
            except Refusal:
                pass
            except Exception as error:  # noqa: BLE001
                unnoticed.append((folder.name, repr(error)))
            finally:
                path.write_bytes(content)
    assert not unnoticed, (len(unnoticed), unnoticed[:: max(1, len(unnoticed) // 8)])


def named(file: Path) -> str:
    """What a refusal must name: the file, or the folder whose manifest cannot be trusted."""
    return str(file.parent if file.name == "manifest.json" else file)


def names_in(kind: str) -> list[str]:
    return {
        "corpora": ["train-00000.jsonl.gz", "validation-00000.jsonl.gz", "manifest.json"],
        "tokenizers": ["tokenizer.json", "manifest.json"],
        "packed": [
            *(f"{split}.{end}" for split in ("train", "validation") for end in ("tokens", "rows.npy", "documents.npy")),
            "manifest.json",
        ],
    }[kind]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["corpora", "tokenizers", "packed"])
def test_a_damaged_artefact_is_refused_or_made_again(kind, damage, interrupted, small_recipe, call):
    """Stages find their artefacts again by name. A corpus is made again with a warning, and so is whatever has lost its
    manifest; the rest is refused. Nothing damaged is ever used."""
    folder = artefacts(interrupted)[kind]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names_in(kind))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in names_in(kind):
        with damaged(folder / name, DAMAGES[damage]):
            answer = call("pack", small_recipe, "--root", interrupted)
            is_gone = name == "manifest.json" and damage == "missing"
            if kind != "corpora" and not is_gone:
                assert answer.status == 2, (name, answer)
                assert answer.lines[-1].startswith("armillary: ") and named(folder / name) in answer.lines[-1]
                continue
            said = {"corpora": "made again", "tokenizers": "training the bpe", "packed": "packing words"}[kind]
            assert answer.status == 0 and any(said in line for line in answer.lines), (name, answer)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["corpora", "tokenizers", "packed"])
def test_a_damaged_artefact_that_is_given_is_refused(kind, damage, interrupted, small_recipe, call, tmp_path):
    folder = artefacts(interrupted)[kind]
    given = ["--tokenizer", folder] if kind == "tokenizers" else ["--data", folder]
    for name in names_in(kind):
        with damaged(folder / name, DAMAGES[damage]):
            root = tmp_path / name
            if kind == "packed":
                shutil.copytree(artefacts(interrupted)["tokenizers"].parent, root / "artefacts" / "tokenizers")
            answer = call("train", small_recipe, *given, "--root", root, "--log-level", "quiet")
            assert_one_line(answer, str(folder))
            assert not (root / "runs").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_text_or_tokenizer_is_damaged_is_refused(damage, interrupted, half, small_recipe, call, tmp_path):
    packed = artefacts(interrupted)["packed"]
    for file in [*(packed / name for name in names_in("packed")), *sorted(half.tokenizer.iterdir())]:
        with damaged(file, DAMAGES[damage]):
            assert_one_line(call(*train_words(small_recipe, tmp_path)), named(file))
    assert half.checkpoint_steps() == [8, 12] and [e["event"] for e in half.events()] == []


# Space and permission


def assert_nothing_half_written(run: RunFolder) -> None:
    assert not list(run.checkpoints.glob(".*"))
    assert [path.name for path in run.path.glob(".*") if path.name != ".lock"] == []
    for step in run.checkpoint_steps():
        artefact.read(run.checkpoint(step), "checkpoint")


def assert_says_there_is_no_room(answer: Answer, folder: Path) -> None:
    assert answer.status not in (0, None)
    assert len(answer.lines) == 1, answer.lines[-3:]
    assert re.search(OUT_OF_SPACE, answer.lines[0]) and str(folder) in answer.lines[0], answer.lines


def test_a_checkpoint_that_does_not_fit(half, whole, small_recipe, call, tmp_path):
    """A limit on the size of a file ends a write where a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the model takes 150 kB
    try:
        answer = call(*train_words(small_recipe, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert half.checkpoint_steps() == [8, 12]
    assert_nothing_half_written(half)
    assert call(*train_words(small_recipe, tmp_path)).status == 0
    assert_same_weights(whole, half)
    assert_says_there_is_no_room(answer, half.checkpoints)


def test_an_artefact_that_does_not_fit(small_recipe, call, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # the tokens take 25 kB, the corpus less
    try:
        answer = call("pack", small_recipe, "--root", tmp_path, "--log-level", "quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    unfinished = [path for path in (tmp_path / "artefacts").rglob("*") if ".writing" in path.name]
    assert not unfinished
    assert call("pack", small_recipe, "--root", tmp_path, "--log-level", "quiet").status == 0
    assert_says_there_is_no_room(answer, tmp_path / "artefacts")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (it takes root)")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("n_left", [0, 300_000], ids=["the log", "a checkpoint"])
def test_a_full_disk(n_left, interrupted, small_disk, whole, small_recipe, call):
    run = RunFolder(small_disk / "runs" / "run")
    shutil.copytree(interrupted / "runs", small_disk / "runs")
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(b"x" * max(0, shutil.disk_usage(small_disk).free - n_left))
    answer = call(*train_words(small_recipe, small_disk))
    assert run.checkpoint_steps() == [8, 12]
    assert_nothing_half_written(run)
    filler.unlink()
    assert call(*train_words(small_recipe, small_disk)).status == 0
    assert_same_weights(whole, run)
    assert [r["step"] for r in run.metrics("train")] == list(range(1, STEPS + 1))
    assert_says_there_is_no_room(answer, run.path)


@pytest.fixture
def closing_folder(request, tmp_path) -> tuple[Path, Callable[[], object]]:
    """A folder, and what makes it read-only. Root may write whatever the permissions say, so it closes a whole disk."""
    if os.geteuid():
        return tmp_path, lambda: [path.chmod(0o555) for path in [tmp_path, *tmp_path.rglob("*")] if path.is_dir()]
    disk = request.getfixturevalue("small_disk")
    return disk, lambda: subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_a_folder_that_may_not_be_written(interrupted, closing_folder, small_recipe, call):
    folder, close = closing_folder
    shutil.copytree(interrupted / "runs", folder / "runs")
    (folder / "empty").mkdir()
    close()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for root in (folder, folder / "empty"):
        answer = call(*train_words(small_recipe, root))
        assert answer.status not in (0, None) and len(answer.lines) == 1, answer.lines[-3:]
        assert str(root) in answer.lines[0] and re.search("ead-only|denied", answer.lines[0])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# Logs


@pytest.mark.parametrize("log", ["metrics.jsonl", "samples/samples.jsonl", "events.jsonl"])
def test_a_torn_last_line_is_dropped_and_the_next_is_whole(log, half, whole, small_recipe, tmp_path):
    half.append(log, {"kind": "train", "step": 12, "attempt": 0, "event": "planted"})
    path = half.path / log
    content = path.read_bytes()
    n_lines = content.count(b"\n")
    path.write_bytes(content[:-9])
    assert len(run_folder.read_lines(path)) == n_lines - 1
    list(begin(small_recipe, tmp_path).happenings())
    lines = path.read_bytes().split(b"\n")
    assert lines[-1] == b"" and all(isinstance(json.loads(line), dict) for line in lines[:-1])
    assert b"\n".join(lines[: n_lines - 1]) == b"\n".join(content.split(b"\n")[: n_lines - 1])
    assert [r["step"] for r in half.metrics("train")] == list(range(1, STEPS + 1))
    assert len(half.samples()) == len(whole.samples())


def test_a_torn_line_elsewhere_is_refused_with_its_number(half, call, tmp_path):
    path = half.path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][: len(lines[2]) // 2]
    path.write_bytes(b"\n".join(lines))
    for words in (["runs", "show", "run"], ["report", "run"]):
        assert_one_line(call(*words, "--root", tmp_path), f"{path}: line 3 ")


# Writers, clocks, numbers


def test_a_second_writer_is_refused_and_the_first_is_undisturbed(small_recipe, whole, call, tmp_path):
    first = begin(small_recipe, tmp_path)
    happenings = first.happenings()
    for happening in happenings:
        if isinstance(happening, Step) and happening.step in (2, 10):
            before = {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()}
            assert_one_line(call(*train_words(small_recipe, tmp_path)), str(first.run.path), "another process")
            never = ["train", small_recipe, "--name", "run", "--root", tmp_path]
            assert_one_line(call(*never), "run 'run' exists")
            assert {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()} == before
    assert first.run.facts()["attempt"] == 0
    assert_same_weights(whole, first.run)


def test_a_clock_that_goes_backwards(small_recipe, whole, call, tmp_path, monkeypatch):
    n_asked = iter(range(10**6))

    def backwards() -> str:
        return f"2026-01-01T{23 - next(n_asked) // 60 % 24:02d}:{59 - next(n_asked) % 60:02d}:00.000+00:00"

    for module in (run_folder, training_run, facts):
        monkeypatch.setattr(module, "now", backwards)
    abandon(small_recipe, tmp_path, 13)
    found = begin(small_recipe, tmp_path)
    list(found.happenings())
    records = found.run.metrics("train")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert any(after["time"] < before["time"] for before, after in itertools.pairwise(records))
    assert [r["step"] for r in found.run.metrics("validation")] == [8, 16, 24]
    assert_same_weights(whole, found.run)
    for words in (["runs", "list"], ["runs", "show", "run"], ["report", "run"]):
        assert call(*words, "--root", tmp_path).status == 0


@pytest.fixture
def plant(monkeypatch) -> Callable[..., None]:
    """Makes steps of this attempt not finite: in the loss, or in its gradient alone."""

    def install(steps: range, where: str) -> None:
        n_calls = iter(range(10**6))
        loss_of = Autoregressive.loss

        def loss(self, network, batch, draws) -> Loss:
            found = loss_of(self, network, batch, draws)
            if next(n_calls) // ACCUMULATION + 1 not in steps:
                return found
            if where == "loss":
                return dataclasses.replace(found, total=found.total * torch.nan, nats=found.nats * torch.nan)
            weight = next(network.parameters())
            return dataclasses.replace(found, total=found.total + (0 * weight.sum()).abs().sqrt())

        monkeypatch.setattr(Autoregressive, "loss", loss)

    return install


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run(where, plant, small_recipe, whole, call, tmp_path, monkeypatch):
    plant(range(10, 11), where)
    answer = call(*train_words(small_recipe, tmp_path))
    assert_one_line(answer, "step 10", "learning rate", "on_non_finite", status=1)
    run = RunFolder(tmp_path / "runs" / "run")
    assert [(e["event"], e["step"]) for e in run.events()] == [("non_finite", 9)]
    assert run.facts()["state"] == "stopped"
    assert [r["step"] for r in run.metrics("train")] == list(range(1, 10))
    assert checkpoints.newest_valid(run, []) == run.checkpoint(8)
    monkeypatch.undo()
    assert call(*train_words(small_recipe, tmp_path)).status == 0
    assert_same_weights(whole, run)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_rolled_back(where, plant, small_recipe, call, tmp_path):
    plant(range(10, 11), where)
    words = train_words(small_recipe, tmp_path, "--set", "training.on_non_finite=roll_back")
    assert call(*words) == Answer(0, [])
    run = RunFolder(tmp_path / "runs" / "run")
    assert [(e["event"], e["step"]) for e in run.events()] == [("step_rolled_back", 10)]
    records = run.metrics("train")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if not r["is_applied"]] == [10]
    assert all(r["loss"] is not None for r in records if r["is_applied"])
    assert json.loads((run.checkpoint(STEPS) / "state.json").read_text())["skipped"] == [10]
    assert all(tensor.isfinite().all() for tensor in final(run).values())
    assert run.facts()["state"] == "finished"


def test_steps_that_stay_not_finite_stop_even_a_run_that_rolls_back(plant, small_recipe, call, tmp_path):
    plant(range(10, 30), "loss")
    words = train_words(small_recipe, tmp_path, "--set", "training.on_non_finite=roll_back")
    assert_one_line(call(*words), "step 19", status=1)
    run = RunFolder(tmp_path / "runs" / "run")
    assert [e["event"] for e in run.events()] == ["step_rolled_back"] * 9 + ["non_finite"]
    assert all(tensor.isfinite().all() for tensor in load_file(run.checkpoint(16) / "model.safetensors").values())


# What a kill between two writes leaves behind


class Killed(BaseException):
    pass


def test_killed_between_the_last_checkpoint_and_the_facts(small_recipe, whole, tmp_path, monkeypatch):
    """The facts of the run are written after the checkpoint that they speak of: a resume brings them up to it."""
    save, update = checkpoints.save, RunFolder.update_facts

    def save_and_die(learner, folder, about, origin) -> None:
        save(learner, folder, about, origin)
        if learner.step == STEPS:
            monkeypatch.setattr(RunFolder, "update_facts", lambda self, **facts: None)  # nothing runs in the dead
            raise Killed

    monkeypatch.setattr(checkpoints, "save", save_and_die)
    begun = begin(small_recipe, tmp_path)
    with pytest.raises(Killed):
        list(begun.happenings())
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(RunFolder, "update_facts", update)
    validations = [h for h in begin(small_recipe, tmp_path).happenings() if isinstance(h, Validation)]
    assert not validations
    assert whole.facts()["best_step"] == STEPS == begun.run.facts()["best_step"]
    assert begun.run.checkpoint_steps() == whole.checkpoint_steps()
    assert begun.run.facts()["state"] == "finished"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["run.json", "recipe.yaml"])
def test_a_damaged_file_of_the_run_itself(file, damage, half, small_recipe, call, tmp_path):
    """They carry no hash, since they are rewritten; what cannot be read is refused in one line. Checkpoints without a
    recipe are not a run that has not begun yet: a new one would mix its checkpoints with theirs."""
    # Not every flip of a text can be told from an edit: a NUL can.
    damages = DAMAGES | {"flipped": lambda path: path.write_bytes(b"\x00" + path.read_bytes()[1:])}
    damages[damage](half.path / file)
    answer = call(*train_words(small_recipe, tmp_path))
    assert_one_line(answer, str(half.path) if file == "run.json" else "recipe")
    assert half.checkpoint_steps() == [8, 12]
