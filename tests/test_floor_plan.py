"""The plan of the house: a room imports lower floors only, rooms of one floor never meet, lazy imports count.

Sizes too: no file over 350 lines, no name that says nothing.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "armillary"
FLOORS = [
    {"refusal", "records", "randomness", "allocator"},  # the cellar
    {"contracts", "registry", "artefact", "recipe", "system"},
    {"text", "nn", "corruption", "run_folder"},
    {"tokens", "backbones", "objectives", "samplers"},
    {"model", "training", "evaluation"},
    {"assemble"},
    {"journey", "serving", "export", "language_model", "benches", "audit"},
    {"cli"},
]
ANNEX = {"reporting": {"run_folder", "records", "refusal"}}
ENTRANCE = {"__main__"}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(source: str) -> set[str]:
    """Rooms that a file imports, wherever in it the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "armillary":
            path = node.module.split(".")[1:]
            rooms |= {path[0]} if path else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("armillary.")}
    return rooms - {"__version__"}


def violations(files: dict[str, str]) -> list[str]:
    """files: path within the package → source."""
    found = []
    for path, source in files.items():
        room = path.removesuffix(".py").split("/")[0]
        if room in ENTRANCE | {"__init__"}:
            continue
        for other in sorted(imported_rooms(source) - {room}):
            if room in ANNEX:
                allowed = other in ANNEX[room]
            else:
                allowed = (other in ANNEX and room == "cli") or FLOOR_OF.get(other, 99) < FLOOR_OF[room]
            if not allowed:
                found.append(f"{path} imports {other}")
    return found


def house() -> dict[str, str]:
    return {str(p.relative_to(HOUSE)): p.read_text(encoding="utf-8") for p in HOUSE.rglob("*.py")}


def test_every_room_is_on_the_plan():
    rooms = {path.removesuffix(".py").split("/")[0] for path in house()}
    assert rooms <= set(FLOOR_OF) | set(ANNEX) | ENTRANCE | {"__init__"}


def test_rooms_import_lower_floors_only():
    assert violations(house()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nn/attention.py", "from armillary.training import loop"),
        ("training/loop.py", "import armillary.model.network"),
        ("tokens/packing.py", "def f():\n    from armillary import cli"),
        ("reporting/report.py", "from armillary.evaluation import comparison"),
        ("records.py", "from armillary.refusal import Refusal"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert len(violations(house() | {path: source})) == 1


def test_files_functions_and_names_stay_small():
    """The body of a function: the options of a command are its arguments."""
    for path, source in house().items():
        assert source.count("\n") <= 350, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.body[0].lineno < 60, f"{path}: {node.name}"
        words = set(path.removesuffix(".py").split("/"))
        assert not words & {"utils", "util", "common", "helpers", "base", "manager", "core", "misc"}, path


def test_the_package_is_lazy():
    import subprocess
    import sys

    code = "import armillary, sys; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
