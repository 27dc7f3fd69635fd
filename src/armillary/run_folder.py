"""The files of a run on disk: where they are, how records are appended and read back. No torch.

    runs/NAME/  recipe.yaml  run.json  tokenizer/  metrics.jsonl  events.jsonl  samples/  evaluation/  report.html
                checkpoints/step-00000500/{model.safetensors, optimizer.safetensors, state.json, manifest.json}

Records carry the `attempt` that wrote them. A resume supersedes later steps of older attempts; a torn last line is
dropped. One process writes to a run at a time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from armillary.artefact import naming, replacing
from armillary.refusal import Refusal, nearest


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def exists(self) -> bool:
        return self.recipe_file.is_file()

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first; whether one is valid is found when it is opened."""
        names = (p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*") if p.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    # run.json: facts of the run, rewritten whole

    def facts(self) -> dict[str, Any]:
        return read_json(self.path / "run.json") if (self.path / "run.json").is_file() else {}

    def update_facts(self, **facts: Any) -> None:
        write_json(self.path / "run.json", self.facts() | facts)

    # metrics.jsonl and events.jsonl: appended

    def append(self, file: str, record: dict[str, Any]) -> None:
        """One JSON line, flushed. A torn last line of a killed writer is cut off first."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), path.open("ab+") as out:
            size = out.seek(0, os.SEEK_END)
            if size:
                out.seek(size - 1)
                if out.read(1) != b"\n":
                    out.truncate(_end_of_last_line(path))
            line = json.dumps({"time": now()} | finite(record))
            out.write(line.encode() + b"\n")
            out.flush()

    def mark_resumed(self, step: int, attempt: int) -> None:
        """What older attempts recorded behind this step no longer stands."""
        for file in ("metrics.jsonl", "samples/samples.jsonl"):
            self.append(file, {"kind": "resumed", "step": step, "attempt": attempt})

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Records of metrics.jsonl in order of steps, superseded ones left out; of one kind when it is given."""
        records = superseded(read_lines(self.path / "metrics.jsonl"))
        return [r for r in records if kind is None or r.get("kind") == kind]

    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "events.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        return superseded(read_lines(self.path / "samples" / "samples.jsonl"))

    def evaluations(self) -> list[dict[str, Any]]:
        """Results of `evaluate`, each with likelihoods as `Likelihood.as_json` gives them, in order of file name."""
        return [read_json(p) for p in sorted((self.path / "evaluation").glob("*.json"))]

    def recipe(self) -> dict[str, Any]:
        try:
            return yaml.safe_load(self.recipe_file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError):
            raise Refusal(
                f"{self.recipe_file}: cannot be read (torn or edited); restore the recipe, or give --name"
            ) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one process that writes. The system lets it go when that process dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            if not _try_lock(file.fileno()):
                raise Refusal(f"{self.path}: another process is writing to this run; wait for it or give --name")
            yield


def open_run(name_or_path: str, root: Path) -> RunFolder:
    """A run by name (under ROOT/runs) or by path. Raises Refusal with the nearest known name."""
    for path in (root / "runs" / name_or_path, Path(name_or_path)):
        if (path / "recipe.yaml").is_file():
            return RunFolder(path)
    known = [p.parent.name for p in (root / "runs").glob("*/recipe.yaml")]
    raise Refusal(f"no run is called '{name_or_path}' under {root / 'runs'}; {nearest(name_or_path, known)}")


def superseded(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a later attempt makes again: an attempt's "resumed" record says behind which step it does."""
    starts = {r["attempt"]: r["step"] for r in records if r.get("kind") == "resumed"}

    def stands(record: dict[str, Any]) -> bool:
        attempt, step = record.get("attempt", 0), record.get("step", 0)
        return all(step <= start for later, start in starts.items() if later > attempt)

    return [r for r in records if r.get("kind") != "resumed" and stands(r)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines. A torn last line is dropped; a torn line elsewhere is refused."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise Refusal(f"{path}: line {number} is not JSON; remove that line") from None
    return records


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise Refusal(f"{path}: is not JSON (torn or edited); remove it") from None


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all. Numbers that JSON does not know become null."""
    write_text(path, json.dumps(finite(value), indent=1) + "\n")


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Whole or not at all. errors: what becomes of characters that UTF-8 cannot hold, as `open` takes it."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors=errors)


def finite(value: Any) -> Any:
    """The same plain data with None for every number JSON does not know (infinity, NaN)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _end_of_last_line(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
