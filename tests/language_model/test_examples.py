"""The programs of examples/ and of docs/python.md run as they are."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(topics[name] for name in sorted(topics))[:20_000]
    (tmp_path / "my-text.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["quick_start.py", "own_text.py", "by_recipe.py"])
@pytest.mark.filterwarnings("default::armillary.refusal.ArmillaryWarning")
def test_a_program_of_the_page_runs(name, desk, capsys):
    assert set(PROGRAMS) == {"quick_start.py", "own_text.py", "by_recipe.py"}
    (desk / name).write_text(PROGRAMS[name], encoding="utf-8")
    runpy.run_path(name, run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_examples_train_and_generate(desk, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "my-text.txt", "my-model"])
    runpy.run_path(str(REPOSITORY / "examples" / "train.py"), run_name="__main__")
    bits = float(capsys.readouterr().out.split()[0])
    assert 1 < bits < 8 and (desk / "my-model" / "manifest.json").is_file()
    monkeypatch.setattr(sys, "argv", ["generate.py", "my-model", "The", "Once"])
    runpy.run_path(str(REPOSITORY / "examples" / "generate.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("The") and "\nOnce" in out
