"""What `info` says is true of the weights, for every backbone; a backbone's own words are there."""

from __future__ import annotations

import json
import math

import pytest

from armillary import recipe
from armillary.assemble import build, inspecting, training
from armillary.benches._shaped import Shaped
from armillary.cli import main
from armillary.registry import names
from armillary.reporting.pictures import draw

BACKBONES = names("backbones")


@pytest.fixture(scope="module")
def models(tmp_path_factory, small_recipe):
    """Every backbone after one step, opened again: (model, root)."""
    root, opened = tmp_path_factory.mktemp("home"), {}

    def model(base):
        if base not in opened:
            shape = Shaped(base=(base,), d_model=16, n_layers=2, n_heads=2)
            backbone = shape.parts(base, 32).recipe.model.backbone.model_dump(mode="json")
            raw = recipe.raw(
                str(small_recipe),
                ["training.steps=1", "training.schedule={name: constant}", "training.sample_every=null"],
            )
            raw["model"] = {"backbone": backbone}
            run = training.start(training.check(training.Request(raw, [], name=base, root=root)), lambda line: None)
            assert list(run.happenings())
            opened[base] = build.open_model(run.run, "last", "cpu")
        return opened[base], root

    return model


@pytest.mark.parametrize("base", BACKBONES)
def test_the_parts_add_up(models, base):
    model, root = models(base)
    found = json.loads(json.dumps(inspecting.inspect(model, root)))
    parameters = found["parameters"]
    assert (
        sum(parameters["by_part"].values()) == parameters["total"] == sum(p.numel() for p in model.network.parameters())
    )
    assert found["backbone"]["name"] == base and found["objective"]["kind"] == "exact" and found["tied"]
    assert found["samplers"] == ["left_to_right"] and found["tokenizer"]["n_vocab"] == 320
    assert found["checkpoint"]["step"] == 1 and found["training"]["corpora"] == {"main": "words"}
    backbone = model.network.backbone
    assert (
        not hasattr(backbone, "describe")
        or backbone.describe().items() <= inspecting.inspect(model, root)["details"].items()
    )


def test_a_reversible_model_is_undone_on_held_out_text(models):
    model, root = models("bijective")
    found = inspecting.details(model, root)
    assert found["is_bijective"] and 0 <= found["reconstruction_error"] < 1e-4 and found["log_det"] == 0
    assert found["measured_on"] == "a row of 32 tokens of validation"
    model.network.backbone.inverse = lambda a, b, layout: (a, b)
    try:
        assert inspecting.details(model, root)["reconstruction_error"] > 1e-3
    finally:
        del model.network.backbone.inverse
    (root / "artefacts").rename(root / "gone")
    try:
        found = inspecting.details(model, root)
        assert found["measured_on"].startswith("a row of 32 tokens drawn at random (")
        assert 0 <= found["reconstruction_error"] < 1e-4 and found["log_det"] == 0
    finally:
        (root / "gone").rename(root / "artefacts")


def test_oscillators_are_drawn_by_layer(models, tmp_path):
    model, root = models("perigee")
    found = inspecting.details(model, root)
    rows = found["oscillators"]
    (panel,) = inspecting.panels(found)
    assert [line["label"] for line in panel["lines"]] == ["layer 0", "layer 1"]
    assert sum(len(line["x"]) for line in panel["lines"]) == len(rows) > 4
    assert panel["lines"][0]["y"][0] == rows[0]["half_life_tokens"]
    draw([panel], tmp_path / "oscillators.png")
    assert (tmp_path / "oscillators.png").read_bytes()[:4] == b"\x89PNG"


def test_sines_are_told_after_the_softplus(models, tmp_path):
    model, root = models("waveresnet")
    rows = inspecting.details(model, root)["sines"]
    assert len(rows) >= 4
    for row in rows:  # one step moves them little
        assert row["amplitude"][1] == pytest.approx(1, abs=0.05) and row["frequency"][1] == pytest.approx(1, abs=0.05)
        assert row["damping"][1] == pytest.approx(0.01, abs=0.005) and row["damping"] == sorted(row["damping"])
    panels = inspecting.panels({"sines": rows})
    told = [[(line["label"], line["x"]) for line in panel["lines"]] for panel in panels]
    assert told == [[("mlp", [0, 1]), ("wave", [0, 1])]] * 3
    assert panels[2]["lines"][1]["y"] == [row["damping"][1] for row in rows if row["where"] == "wave"]
    draw(panels, tmp_path / "sines.svg")
    assert "frequency" in (tmp_path / "sines.svg").read_text()


def test_a_sine_may_lie_outside_the_layers(tmp_path):
    from torch import nn

    from armillary.nn.sine import Sine, SineParams

    network = nn.Module()
    network.warp, network.waves = Sine(4, SineParams()), nn.ModuleList([Sine(4, SineParams())])
    network.blocks = nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleDict({"sine": Sine(4, SineParams())})})])
    outer = nn.ModuleDict({"backbone": network})
    rows = inspecting.sine_parameters(outer)  # type: ignore[arg-type]
    assert {(row["layer"], row["where"]) for row in rows} == {
        (None, "backbone.warp"), (0, "backbone.waves"), (0, "mlp")
    }  # fmt: skip
    for panel in inspecting.panels({"sines": rows}):
        assert [line["label"] for line in panel["lines"]] == ["backbone.waves", "mlp"]
    draw(inspecting.panels({"sines": rows}), tmp_path / "sines.png")


def test_oscillators_that_never_turn_are_not_drawn(tmp_path):
    rows = [{"layer": i, "period_tokens": period, "half_life_tokens": 5.0} for i, period in enumerate((None, math.inf))]
    assert inspecting.panels({"oscillators": rows}) == []
    turns = {"layer": 2, "period_tokens": 8.0, "half_life_tokens": 5.0}
    (panel,) = inspecting.panels({"oscillators": [*rows, turns]})
    assert [line["label"] for line in panel["lines"]] == ["layer 2"]
    empty = {"label": "none", "mark": "o", "x": [], "y": []}
    draw([{**panel, "lines": [empty]}, {**panel, "lines": [*panel["lines"], empty]}], tmp_path / "one.svg")
    draw([{**panel, "lines": [empty]}], tmp_path / "nothing.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["one.svg"]


def test_the_command(models, capsys, tmp_path):
    _, root = models("llama")

    def called(*words):
        with pytest.raises(SystemExit) as ending:
            main(["info", *map(str, words), "--root", str(root)])
        return ending.value.code or 0, *capsys.readouterr()

    status, out, _ = called("llama", "--json")
    assert status == 0 and json.loads(out)["parameters"]["by_part"]["embedding"] == 320 * 16
    status, out, _ = called("llama", "--checkpoint", "last")
    rows = [line.split() for line in out.splitlines()]
    assert status == 0 and ["embedding", "5,120"] in rows and ["kind", "exact"] in rows
    for words, needle in ((("lama",), "'llama'"), (("llama", "--plot", tmp_path / "x.pdf"), ".png or .svg"),
                          (("llama", "--plot", tmp_path / "x.png"), "nothing to draw")):  # fmt: skip
        status, out, err = called(*words)
        assert status == 2 and needle in err and err.count("\n") == 1 and out == "", err
    assert list(tmp_path.iterdir()) == []
