"""SIGKILL at any moment loses nothing: a process killed again and again while it prepares text, trains or saves, and
resumed each time, ends with the bits of the one that was left alone.

The moments are seeded: a share of the unbroken run's wall time, or so many steps, or the n-th folder that is being
written, or the n-th that has just been renamed. The long form is fifty kills.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from armillary.run_folder import RunFolder

POLL_SECONDS = 0.0005
LONGEST_SECONDS = 240.0
Moment = Callable[[], bool]


@dataclass(frozen=True)
class Variant:
    n_kills: int
    changes: list[str] = field(default_factory=list)
    n_ranks: int = 1


VARIANTS = {
    "fp32": Variant(15),
    "bf16": Variant(12, ["training.precision=bf16", "training.ema=null"]),  # in fp32 where the processor has no bf16
    "muon": Variant(11, ["training.optimizer={name: muon}", "packing.isolate_documents=true"]),
    "compiled": Variant(5, ["training.compile=true"]),
    "two ranks": Variant(7, n_ranks=2),
}
assert sum(variant.n_kills for variant in VARIANTS.values()) == 50


class Place:
    """A folder in which one run is begun, killed and resumed."""

    def __init__(self, path: Path, recipe: Path, variant: Variant, cache: Path) -> None:
        path.mkdir()
        self.path, self.recipe, self.variant = path, recipe, variant
        self.run = RunFolder(path / "runs" / "killed")
        # One compiling thread compiles in the process itself, so that a kill leaves nobody behind.
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }

    def command(self) -> list[str]:
        launcher = []
        if self.variant.n_ranks > 1:
            ranks = ["--nproc-per-node", str(self.variant.n_ranks), "--master-port", str(free_port())]
            launcher = ["torch.distributed.run", *ranks, "-m"]
        sets = [word for change in self.variant.changes for word in ("--set", change)]
        return [sys.executable, "-m", *launcher, "armillary", "train", str(self.recipe), "--resume", "auto", *sets]

    def strike(self, moment: Moment) -> bool:
        """Starts or resumes the run and kills it when the moment has come. False where it ended before."""
        log = self.path / "log.txt"
        with log.open("ab") as out:
            process = subprocess.Popen(
                self.command(), cwd=self.path, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + LONGEST_SECONDS
        try:
            while process.poll() is None and not moment():
                assert time.monotonic() < deadline, f"it hangs: {log.read_text()[-2000:]}"
                time.sleep(POLL_SECONDS)
        finally:
            status = process.poll()
            if status is None:
                kill_family(process)
        assert status in (None, 0), log.read_text()[-3000:]
        return status is None

    def finish(self) -> None:
        assert not self.strike(lambda: False)

    def begun(self) -> set[str]:
        """Folders that are or were being written: artefacts, the run's tokenizer, checkpoints."""
        written = {path.name.split(".writing")[0].lstrip(".") for path in self._folders(".*.writing-*")}
        return written | self.done()

    def done(self) -> set[str]:
        """Folders that are whole: renamed from what was written beside."""
        return {path.name for path in self._folders("[!.]*")}

    def n_records(self) -> int:
        log = self.run.path / "metrics.jsonl"
        return log.read_bytes().count(b'"kind": "train"') if log.is_file() else 0

    def _folders(self, pattern: str) -> list[Path]:
        inside = (self.path / "artefacts").glob(f"*/{pattern}")
        return [
            *inside,
            *self.run.checkpoints.glob(pattern),
            *self.run.path.glob(pattern.replace("[!.]*", "tokenizer")),
        ]


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it has started: a launcher gives its ranks sessions of their own."""
    os.kill(process.pid, signal.SIGSTOP)  # or it would see a rank die, and start to tidy up
    for pid in (*descendants(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=30)


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def after_seconds(seconds: float) -> Moment:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def after_steps(place: Place, n: int) -> Moment:
    before = place.n_records()
    return lambda: place.n_records() >= before + n


def nth_new(folders: Callable[[], set[str]], n: int, jitter: float) -> Moment:
    """So many seconds after the n-th folder is there that was not at the start; pruning takes none off the count."""
    before, seen = folders(), set()
    came: list[float] = []

    def moment() -> bool:
        seen.update(folders() - before)
        if len(seen) >= n and not came:
            came.append(time.monotonic())
        return bool(came) and time.monotonic() >= came[0] + jitter

    return moment


def any_moment(place: Place, draw: random.Random, seconds: float | None) -> Moment:
    """seconds: of the unbroken run; None where its time says nothing of this one's, as with a warm compiler."""
    kinds = ["writing", "renamed", "steps"] + (["seconds"] if seconds is not None else [])
    match draw.choice(kinds):
        case "writing":
            return nth_new(place.begun, draw.randint(1, 6), draw.uniform(0, 0.004))
        case "renamed":
            return nth_new(place.done, draw.randint(1, 6), draw.uniform(0, 0.004))
        case "steps":
            return after_steps(place, draw.randint(1, 15))
        case _:
            assert seconds is not None
            return after_seconds(seconds * draw.uniform(0.1, 1.0))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inductor")


def unbroken(path: Path, recipe: Path, variant: Variant, cache: Path) -> tuple[RunFolder, float]:
    place = Place(path, recipe, variant, cache)
    started = time.monotonic()
    place.finish()
    assert [r["step"] for r in place.run.metrics("train")] == list(range(1, 61))
    return place.run, time.monotonic() - started


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_three_kills(killed_recipe, tmp_path, cache, assert_same_end):
    """The short form: in the packed set, in a checkpoint, and behind a rename that nothing has recorded yet."""
    whole, _ = unbroken(tmp_path / "whole", killed_recipe, VARIANTS["fp32"], cache)
    place = Place(tmp_path / "broken", killed_recipe, VARIANTS["fp32"], cache)
    assert place.strike(nth_new(place.begun, 3, 0.0))
    assert not place.run.exists()
    assert place.strike(nth_new(place.begun, 7, 0.001))
    assert place.strike(nth_new(place.done, 4, 0.0))
    assert 3 <= place.run.checkpoint_steps()[-1] < 60
    place.finish()
    assert place.run.facts()["attempt"] >= 2
    assert_same_end(whole, place.run)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the ranks of a launcher are found in /proc")
@pytest.mark.parametrize("name", VARIANTS)
def test_fifty_kills(name, killed_recipe, tmp_path, cache, assert_same_end):
    variant, draw = VARIANTS[name], random.Random(name)
    whole, seconds = unbroken(tmp_path / "whole", killed_recipe, variant, cache)
    # The first kills of a run fall on its four stages: corpus, tokenizer, packed set, the run's own tokenizer.
    stages = [1, 2, 3, 4] if name == "fp32" else [draw.randint(1, 4)]
    n_killed = n_runs = 0
    while n_killed < variant.n_kills:
        place = Place(tmp_path / f"broken-{n_runs}", killed_recipe, variant, cache)
        n_runs += 1
        has_ended = False
        while n_killed < variant.n_kills and not has_ended:
            if stages:
                n_new = stages.pop(0) - len(place.done())
                moment = nth_new(place.begun, max(1, n_new), draw.uniform(0, 0.003))
            else:
                moment = any_moment(place, draw, seconds if name != "compiled" else None)
            has_ended = not place.strike(moment)
            n_killed += not has_ended
        if not has_ended:
            place.finish()
        assert_same_end(whole, place.run)
    print(f"{name}: {n_killed} kills in {n_runs} runs")
