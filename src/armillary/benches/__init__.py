"""Measurements that leave a folder behind. A file is a bench: a frozen part whose fields say what is measured.

    ROOT/bench/NAME/20260131T120000.123456Z/  system.json, and the files that the bench names

The sweep of all of them leaves ROOT/bench/all/…/summary.json. What a person should look at comes as panels, which the
command draws.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from armillary import registry
from armillary.benches._found import Bench, Desk, Found, Report
from armillary.refusal import Refusal, nearest
from armillary.run_folder import write_json, write_text
from armillary.system import describe

ROOM = "benches"
ALL = ("tokenizers", "kv-cache", "throughput", "memory", "tiny-corpus", "gpu")
"""In the order of the sweep: what is quick and needs nothing comes first."""


def prepare(name: str, fields: Mapping[str, Any], *, is_quick: bool = False) -> dict[str, Bench]:
    """The benches that a name stands for, with their fields checked. is_quick: tiny shapes, to see that it works.

    "all" stands for every bench, each with those of the fields that it has. Raises Refusal for a field that none has.
    A text of the person's is taken as it is, however quick.
    """
    known = {one.replace("_", "-") for one in registry.names(ROOM)}
    if name not in known | {"all"}:
        raise Refusal(f"bench: no bench is called '{name}'; {nearest(name, known | {'all'})}")
    classes: dict[str, Any] = {one: registry.find(ROOM, one.replace("-", "_")) for one in ALL if name in (one, "all")}
    every = {field for part in classes.values() for field in part.model_fields}
    for field in fields:
        if field not in every:
            raise Refusal(f"bench {name}: has no '{field}'; {nearest(field, every)}")
    made = {}
    for one, part in classes.items():
        own = {field: value for field, value in fields.items() if field in part.model_fields}
        if is_quick:
            quick = {field: value for field, value in part.quick.items() if field != "megabytes" or not own.get("data")}
            both = {"overrides": (*quick["overrides"], *own["overrides"])} if "overrides" in quick.keys() & own else {}
            own = quick | own | both
        made[one] = registry.check(part, own, f"bench {one}")
    return made


def check(made: Mapping[str, Bench], root: Path) -> None:
    """Raises Refusal where one of them could not be measured. Writes nothing under the root."""
    for name, bench in made.items():
        bench.check(Desk(root, _folder(root, name).name, lambda line: None))


def run(name: str, bench: Bench, root: Path, say: Callable[[str], None]) -> Report:
    """Measures, then writes the folder. Nothing is left of a bench that is refused."""
    check({name: bench}, root)
    return _measured(name, bench, root, say)


def sweep(made: Mapping[str, Bench], root: Path, say: Callable[[str], None]) -> Iterator[Report]:
    """Every bench, one after the other; one that fails is told and does not stop the others. The summary comes last.

    All are checked before the first is measured.
    """
    check(made, root)
    folder = _folder(root, "all")
    rows: list[dict[str, Any]] = []
    for name, bench in made.items():
        say(f"bench {name}")
        try:
            report = _measured(name, bench, root, say)
        except Exception as error:  # noqa: BLE001 - whatever it was, the summary says so and the sweep goes on
            rows.append({"bench": name, "status": "error", "reason": f"{type(error).__name__}: {error}"})
            continue
        rows.append({"bench": name, "status": "ok" if report.found.is_ok else "error", "folder": str(report.folder)})
        yield report
    is_ok = all(row["status"] == "ok" for row in rows)
    yield _written("all", folder, Found(rows, {"summary.json": {"benches": rows}}, is_ok=is_ok), None)


def _measured(name: str, bench: Bench, root: Path, say: Callable[[str], None]) -> Report:
    folder = _folder(root, name)
    return _written(name, folder, bench.run(Desk(root, folder.name, say)), bench)


def _folder(root: Path, name: str) -> Path:
    return root / "bench" / name / datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def _written(name: str, folder: Path, found: Found, bench: Any) -> Report:
    fields = bench.model_dump(mode="json") if bench is not None else {}
    write_json(folder / "system.json", describe())
    for file, content in found.files.items():
        if file.endswith(".csv"):
            write_text(folder / file, as_csv(content))
        else:
            write_json(folder / file, {"bench": name, "fields": fields, "notes": found.notes, **content})
    return Report(name, folder, found)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which the rows first name them; what a row lacks is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
