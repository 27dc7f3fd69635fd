"""The documentation is true: its links, its command lines, and its how-to pages, whose examples are written and run."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import typer

from armillary import recipe, registry
from armillary.assemble import parts, planning
from armillary.cli import main
from armillary.cli.app import app
from armillary.run_folder import RunFolder
from armillary.tokens.tokenizer import load

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
HOW_TO = REPOSITORY / "docs" / "how_to_add"
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(armillary [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block. language and path: the words behind the fence, such as ```python my_parts/backbones/toy.py."""

    language: str
    path: str
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^```(\w*)[ \t]*(\S*)[^\n]*\n(.*?)^```[ \t]*$", page, re.MULTILINE | re.DOTALL)
    return [Block(*one) for one in found]


def commands(block: Block) -> list[str]:
    """Lines that call armillary, as a shell reads them; `$ ` in front of one is a prompt, other lines are output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?armillary [a-z-]", line)]


def fault(command: str, *, is_whole: bool) -> str | None:
    """Why the command line would not take it. is_whole: missing arguments and verbs are faults too."""
    words = shlex.split(re.split(r" [|>&]", command)[0], comments=True)[1:]
    tool: Any = typer.main.get_command(app)
    while words and hasattr(tool, "commands") and not words[0].startswith("-"):
        verb = words.pop(0)
        if verb not in tool.commands:
            return f"no verb is called '{verb}'"
        tool = tool.commands[verb]
    known = {name for parameter in tool.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.match(r"--[a-z]", word) and word.split("=")[0] not in {*known, "--help"}]
    if unknown:
        return f"{tool.name}: no option is called '{unknown[0]}'"
    if not is_whole or words in (["--help"], ["--version"]):
        return None
    if hasattr(tool, "commands"):
        return f"{tool.name}: its verb is missing"
    try:
        tool.make_context(tool.name, words)
    except Exception as refusal:  # noqa: BLE001 - typer's own copy of click raises its own types
        return f"{tool.name}: {refusal}"
    return None


def test_there_are_pages():
    assert {"walk.md", "architecture.md", "glossary.md", "log.md", "baseline.md"} <= {page.name for page in PAGES}
    names = {"backbone", "objective", "sampler", "tokenizer", "source", "recipe"}
    assert {page.stem for page in HOW_TO.glob("*.md")} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("#")]
    missing = [target for target in targets if not (page.parent / target.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_exist(page):
    text = page.read_text(encoding="utf-8")
    whole = [command for block in blocks(text) for command in commands(block)]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    faults = {command: fault(command, is_whole=True) for command in whole}
    faults |= {command: fault(command, is_whole=False) for command in INLINE.findall(outside)}
    assert {command: why for command, why in faults.items() if why} == {}


def test_a_wrong_command_line_is_found():
    assert fault("armillary train demo --steps 3", is_whole=True) is None
    assert fault("armillary teach demo", is_whole=True)
    assert fault("armillary train demo --step-size 3", is_whole=True)
    assert fault("armillary runs shew one", is_whole=True)
    assert fault("armillary train", is_whole=True) and fault("armillary train", is_whole=False) is None
    assert fault("armillary verify RUN --behavior", is_whole=False)
    page = "```sh\n$ armillary train \\\n  demo\nout\n```\n"
    assert [c.split() for c in commands(blocks(page)[0])] == [["armillary", "train", "demo"]]


def test_every_room_is_in_the_architecture():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = REPOSITORY / "src" / "armillary"
    rooms = [p for p in house.iterdir() if p.name[0] not in "_." and (p.suffix == ".py" or p.is_dir())]
    rooms += (house / "assemble").glob("[a-z]*.py")
    assert [p.name for p in rooms if f"`{p.stem}" not in page] == []


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_the_readme_knows_every_recipe_and_its_parameters(name):
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = parts.resolve(recipe.raw(name))
    assert found.tokenizer.planned_vocabulary is not None
    facts = planning.plan(found, found.tokenizer.planned_vocabulary, None, measured=False)
    figures = [f"{facts[key]:,}" for key in ("n_vocab", "parameters", "parameters_non_embedding")]
    row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
    assert row.split(" | ")[2:] == [*figures[:2], f"{figures[2]} |"]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with two texts and a table of 40 letters, as the pages suppose."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    texts = [topics[name] for name in sorted(topics)]
    (tmp_path / "my-text.txt").write_text("\n".join(texts)[:100_000], encoding="utf-8")
    (tmp_path / "my-notes.txt").write_text("\n".join(texts)[-50_000:], encoding="utf-8")
    with (tmp_path / "letters.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("from", "body"), *(("me", text[:1500]) for text in texts[:40])])
    return tmp_path


def follow(page: str, desk: Path, capsys) -> dict[str, RunFolder]:
    """Writes down the files of a how-to page and runs its commands; the runs they leave."""
    found = blocks((HOW_TO / f"{page}.md").read_text(encoding="utf-8"))
    for block in found:
        if block.path:
            (desk / block.path).parent.mkdir(parents=True, exist_ok=True)
            (desk / block.path).write_text(block.text, encoding="utf-8")
    for command in [command for block in found for command in commands(block)]:
        try:
            main(shlex.split(command)[1:])
        except SystemExit as ending:
            assert not ending.code, f"{command}\n{capsys.readouterr().err}"
    runs = {path.name: RunFolder(path) for path in (desk / "runs").glob("*")}
    assert runs and all(run.facts()["state"] == "finished" for run in runs.values())
    return runs


def test_a_backbone_takes_one_file(desk, capsys):
    run = follow("backbone", desk, capsys)["parallel"]
    assert run.recipe()["model"]["backbone"]["name"] == "parallel" not in registry.names("backbones")
    losses = [record["loss"] for record in run.metrics("train")]
    assert losses[-1] < losses[0]
    assert "ok   causality" in capsys.readouterr().out


def test_a_source_takes_one_file(desk, capsys):
    run = follow("source", desk, capsys)["letters"]
    assert run.recipe()["corpora"]["main"]["source"]["name"] == "csv_column" not in registry.names("text/sources")
    splits = run.facts()["corpora"]["main"]["splits"]
    assert sum(facts["n_documents"] for facts in splits.values()) == 40
    fields = {"path": "torn.csv", "column": "body"}
    Path("torn.csv").write_text("from,body\nme,\nme,hello\n", encoding="utf-8")
    found = list(registry.make("text/sources", "csv_column", fields, [desk / "my_parts"]).read())
    assert [type(item).__name__ for item in found] == ["Rejected", "Document"] and found[0].line == 2


def test_a_tokenizer_takes_one_file(desk, capsys):
    run = follow("tokenizer", desk, capsys)["octets"]
    assert "octets" not in registry.names("tokens/tokenizers")
    tokenizer = load(run.tokenizer, part_folders=[desk / "my_parts"]).tokenizer
    hard = "a\x00\n é <eos> \U0001f30d"
    assert tokenizer.n_vocab == 260 and tokenizer.decode(tokenizer.encode(hard)) == hard
    assert min(tokenizer.encode("<eos>\x00")) > 3


def test_an_objective_takes_one_file(desk, capsys):
    run = follow("objective", desk, capsys)["thinned"]
    shares = [record["parts"]["chosen"] for record in run.metrics("train")]
    assert "thinned" not in registry.names("objectives")
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.02)
    assert run.evaluations()[0]["results"][0]["kind"] == "exact"


def test_a_sampler_takes_one_file(desk, capsys):
    run = follow("sampler", desk, capsys)["cautious"]
    assert run.recipe()["sampling"]["sampler"]["name"] == "cautious" and len(run.samples()) == 2
    program = [sys.executable, "typical.py", "cautious", "The"]
    out = subprocess.run(program, cwd=desk, capture_output=True, text=True, check=True).stdout
    assert out.startswith("The") and len(out) > len("The\n")


def test_the_example_of_a_recipe_runs(desk, capsys):
    runs = follow("recipe", desk, capsys)
    drawn = runs["small"].metrics("train")[-1]["mixture"]
    assert set(runs) == {"small", "small-gpt"} and drawn["plain"] > 40 and drawn["notes"] > 20


def test_tables_of_speed_are_those_of_the_readings(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    tables = importlib.import_module("tables")
    found = {
        name: make(json.loads((tables.RESULTS / f"{name}.json").read_text())) for name, make in tables.TABLES.items()
    }
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page, found) == page, "run `python benchmarks/tables.py --write`"
