"""Every verb on a real small run, and bad input: one line that names the thing and the fix, exit status 2."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from armillary.cli import main


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_recipe) -> Path:
    """A root with two trained runs."""
    root = tmp_path_factory.mktemp("home")
    for name, change in (("one", "seed=1"), ("two", "model.backbone.n_layers=1")):
        words = [
            "train",
            str(small_recipe),
            "--name",
            name,
            "--set",
            change,
            "--root",
            str(root),
            "--log-level",
            "quiet",
        ]
        with pytest.raises(SystemExit) as ending:
            main(words)
        assert not ending.value.code
    return root


def document(out: str):
    return json.loads(out)  # refuses anything beside the one document


def test_recipes_and_plan(call, small_recipe):
    status, out, _ = call("recipes", "list", "--json")
    names = {row["name"] for row in document(out)}
    assert (
        status == 0 and {"baseline-gpt", "lumi-micro", "lumi-tiny", "lumi-small", "lumi-medium", "lumi-base"} <= names
    )
    assert (
        document(call("recipes", "show", "baseline-gpt-one-layer", "--json")[1])["model"]["backbone"]["n_layers"] == 1
    )
    facts = document(call("plan", "baseline-gpt", "--no-measure", "--json")[1])
    assert facts["parameters"] == 6_868_992 and facts["parameters_non_embedding"] == 4_739_072
    assert facts["tokens"] == 20_000 * 64 * 128
    for size, parameters in {"micro": 9_438_336, "tiny": 23_072_000, "small": 41_686_656, "medium": 83_898_880,
                             "base": 124_278_528}.items():  # fmt: skip
        assert document(call("plan", f"lumi-{size}", "--no-measure", "--json")[1])["parameters"] == parameters
    status, out, _err = call("plan", small_recipe, "--json")
    facts = document(out)
    assert facts["tokens_per_second"] > 0 and facts["seconds"] > 0 and facts["memory_bytes"]["activations"] > 0


def test_plan_writes_nothing(call, small_recipe, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("plan", small_recipe)[0] == 0
    facts = document(call("plan", small_recipe, "--data", text_file, "--no-measure", "--json")[1])
    assert facts["n_vocab"] == 320 and facts["equivalent_epochs"] > 0.3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "pack", "tokenizer train", "data make", "evaluate", "report", "demo"])
def test_dry_run_writes_nothing(call, small_recipe, home, text_file, tmp_path, verb):
    argument = {"data make": text_file, "evaluate": "one", "report": "one", "demo": None}.get(verb, small_recipe)
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    root = home if verb in ("evaluate", "report") else tmp_path
    status, out, err = call(*verb.split(), *([argument] if argument else []), "--dry-run", "--root", root)
    assert status == 0 and out.strip(), err
    assert list(tmp_path.iterdir()) == [] and {p: p.stat().st_mtime_ns for p in home.rglob("*")} == before


def test_evaluate_has_every_promised_field(call, home):
    status, out, _ = call("evaluate", "one", "--references", "--json", "--root", home)
    results = document(out)
    assert status == 0 and [r["name"] for r in results] == ["one", "uniform", "unigram", "kneser-ney-5", "xz"]
    promised = {"kind", "nats", "stderr_nats", "interval_bits_per_byte", "n_tokens", "n_words", "n_bytes",
                "bits_per_byte", "word_perplexity", "token_perplexity", "protocol", "protocol_hash"}  # fmt: skip
    for result in results:
        assert promised <= result.keys()
        assert result["protocol_hash"] == results[0]["protocol_hash"]
        assert result["n_bytes"] == results[0]["n_bytes"]
    model, uniform = results[0], results[1]
    assert model["kind"] == "exact" and model["stderr_nats"] == 0
    assert model["interval_bits_per_byte"][0] < model["bits_per_byte"] < model["interval_bits_per_byte"][1]
    assert model["bits_per_byte"] < uniform["bits_per_byte"]


def test_every_token_is_scored_once_whatever_the_window(call, home):
    found = [document(call("evaluate", "one", "--json", "--root", home, "--window", w, "--stride", s)[1])[0]
             for w, s in ((32, 32), (32, 5), (16, 1), (9, 7))]  # fmt: skip
    assert len({r["n_tokens"] for r in found}) == 1
    assert len({r["protocol_hash"] for r in found}) == 1
    assert len({round(r["nats"], 3) for r in found}) == 4


def test_compare_runs_show_report_verify(call, home):
    found = document(call("compare", "one", "two", "--json", "--root", home)[1])
    assert [row["name"] for row in found["rows"]] == ["one", "two"]
    low, high = found["rows"][1]["interval_difference_bits"]
    assert low <= found["rows"][1]["difference_bits"] <= high
    assert "two" in call("compare", "one", "two", "--root", home)[1]
    assert {row["name"] for row in document(call("runs", "list", "--json", "--root", home)[1])} == {"one", "two"}
    shown = document(call("runs", "show", "one", "--json", "--root", home)[1])
    assert shown["state"] == "finished" and shown["parameters"] > 0
    path = document(call("report", "one", "two", "--json", "--root", home)[1])["report"]
    assert Path(path).read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
    checks = document(call("verify", "one", "--behaviour", "--json", "--root", home)[1])
    assert {"shapes", "causality", "shift"} <= {check["name"] for check in checks} and all(c["holds"] for c in checks)


def test_verify_finds_a_flipped_byte(call, home, tmp_path):
    import shutil

    shutil.copytree(home, tmp_path / "home")
    file = next((tmp_path / "home").glob("artefacts/packed/*/train.tokens"))
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)
    status, out, _ = call("verify", file.parent)
    assert status == 1 and "train.tokens" in out
    status, _, err = call("evaluate", "one", "--root", tmp_path / "home")
    assert status in (0, 2)  # the run's own record names the untouched packed folder first
    status, _, err = call("train", "baseline-gpt", "--data", file.parent, "--root", tmp_path / "home", "--set",
                          "packing.window=32", "--set", "model.backbone.max_length=32")  # fmt: skip
    assert status == 2 and "train.tokens" in err and err.count("\n") == 1


def test_sample_is_seeded_and_ends_where_asked(call, home):
    words = ["sample", "one", "--prompt", "the ", "--n", 3, "--max-new-tokens", 6, "--json", "--root", home]
    first, again = document(call(*words, "--seed", 4)[1]), document(call(*words, "--seed", 4)[1])
    other = document(call(*words, "--seed", 5)[1])
    assert first == again != other and len(first) == 3
    assert all(row["n_tokens"] <= 6 for row in first)


def test_a_run_is_sampled_while_it_trains_and_best_is_on_disk(home):
    from armillary.run_folder import open_run

    run = open_run("one", home)
    assert [s["step"] for s in run.samples()] == [12, 24]
    assert run.facts()["best_step"] in run.checkpoint_steps()


def test_bench_leaves_a_folder_and_one_document(call, tmp_path):
    words = ["bench", "tokenizers", "--quick", "--megabytes", 0.02, "--set", "backends=[character]", "--root", tmp_path]
    assert document(call(*words, "--dry-run")[1])["tokenizers"]["megabytes"] == 0.02 and not list(tmp_path.iterdir())
    found = document(call(*words, "--json")[1])
    assert {p.name for p in Path(found["folder"]).iterdir()} == {"metrics.json", "system.json"}
    assert "| character |" in call(*words)[1] and len(list(tmp_path.glob("bench/tokenizers/*Z"))) == 2


def test_bench_draws_the_curve_of_its_run(call, small_recipe, tmp_path):
    fields = ["--set", f"recipe={small_recipe}", "--set", "overrides=[training.steps=6, training.schedule.warmup=1]"]
    status, out, err = call("bench", "tiny-corpus", "--megabytes", 0.02, *fields, "--json", "--root", tmp_path)
    assert status == 0, err
    folder = Path(document(out)["folder"])
    assert {p.name for p in folder.iterdir()} == {"metrics.csv", "metrics.json", "loss_curve.png", "system.json"}
    assert (folder / "loss_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert call("info", next((tmp_path / "runs").iterdir()), "--root", tmp_path)[0] == 0


def test_bench_refuses_bad_input(call, tmp_path):
    root = ["--root", tmp_path]
    refused(call("bench", "kv-cash", *root), "kv-cash", "'kv-cache'")
    refused(call("bench", "gpu", "--only", "ddpp", *root), "'ddp'")
    refused(call("bench", "memory", "--megabytes", 1, *root), "megabytes")
    refused(call("bench", "throughput", "--base", "lama", *root), "'llama'")
    refused(call("bench", "tokenizers", "--data", tmp_path / "nowhere.txt", *root), "nowhere.txt")
    refused(call("bench", "tiny-corpus", "--set", "recipe=demos", *root), "'demo'")
    refused(call("bench", "gpu", "--set", "device=tpu", *root), "device")
    refused(call("bench", "kv-cache", "--base", "llama", "--device", "tpu", *root), "tpu")
    assert list(tmp_path.iterdir()) == []


def refused(found, *needles):
    status, out, err = found
    assert status == 2, err
    assert out == "" and err.startswith("armillary: ") and err.count("\n") == 1, err
    for needle in needles:
        assert needle in err, err


def test_bad_input_is_one_line_and_writes_nothing(call, small_recipe, tmp_path, home):
    root = ["--root", tmp_path]
    empty = tmp_path.parent / "empty.txt"
    empty.write_text("\n\n")
    refused(call("train", "baseline-gtp", *root), "baseline-gtp", "'baseline-gpt'")
    refused(call("train", small_recipe, "--set", "training.stepz=3", *root), "training.stepz", "'steps'")
    refused(call("train", small_recipe, "--set", "model.backbone.n_layer=3", *root), "n_layer", "'n_layers'")
    refused(call("train", small_recipe, "--set", "model.backbone.name=lama", *root), "lama", "'llama'")
    refused(call("train", small_recipe, "--set", "seed", *root), "--set seed", "key=value")
    refused(call("train", small_recipe, "--data", "nowhere.txt", *root), "nowhere.txt")
    refused(call("train", small_recipe, "--data", empty, *root), "empty")
    refused(call("train", small_recipe, "--steps", 5, "--minutes", 1, *root), "--steps", "--minutes")
    refused(call("train", small_recipe, "--set", "training.batch_tokens=9", *root), "batch_rows and batch_tokens")
    refused(call("train", small_recipe, "--set", "training.batch_rows=9", *root), "multiple of 2")
    refused(call("train", small_recipe, "--set", "training.device=cuda", *root), "cuda", "cannot be used here")
    refused(call("train", "baseline-gpt", "--set", "packing.window=200", *root), "max_length")
    refused(
        call("train", small_recipe, "--set", "tokenizer.vocabulary=100", "--log-level", "quiet", *root), "vocabulary"
    )
    refused(call("evaluate", "on", "--root", home), "'one'")
    refused(call("evaluate", "one", "--split", "tests", "--root", home), "tests")
    refused(call("evaluate", "one", "--stride", 90, "--root", home), "stride")
    refused(call("sample", "one", "--checkpoint", "7", "--root", home), "--checkpoint 7")
    refused(call("sample", "one", "--top-p", "1.5", "--root", home), "top_p")
    refused(call("train", small_recipe, "--name", "one", "--root", home), "exists", "--resume auto")
    refused(call("verify", tmp_path, *root), "no run")
    refused(call("compare", "one", "--root", home), "two runs")
    refused(call("report", "none", "--root", home), "none")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "artefacts" not in p.parts] == []
    assert not (tmp_path / "runs").exists()


def test_a_prompt_longer_than_the_context_is_refused(call, small_recipe, tmp_path):
    backbone = "{name: gpt, d_model: 32, n_layers: 1, n_heads: 2, max_length: 32}"
    changes = ["--set", f"model.backbone={backbone}", "--steps", "5", "--set", "training.schedule.warmup=1"]
    assert call("train", small_recipe, *changes, "--root", tmp_path)[0] == 0
    refused(call("sample", "small", "--prompt", "the of and " * 30, "--root", tmp_path), "context 32", "shorten")
    refused(call("sample", "small", "--prompt", "the", "--max-new-tokens", 60, "--root", tmp_path), "at most")
    assert call("sample", "small", "--prompt", "the", "--root", tmp_path)[0] == 0


def test_a_changed_tokenizer_is_refused(call, home, tmp_path):
    import shutil

    shutil.copytree(home, tmp_path / "home")
    run = tmp_path / "home" / "runs" / "one"
    shutil.rmtree(run / "tokenizer")
    other = next(p for p in sorted((tmp_path / "home" / "artefacts" / "tokenizers").iterdir()))
    words = ["tokenizer", "train", str(other)]
    assert words
    file = next(p for p in other.iterdir() if p.name != "manifest.json")
    shutil.copytree(other, run / "tokenizer")
    (run / "tokenizer" / file.name).write_bytes(file.read_bytes() + b" ")
    refused(call("sample", "one", "--root", tmp_path / "home"), file.name)


def test_a_text_shorter_than_a_window_trains_on_one_shorter_window(call, small_recipe, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("a few words and no more")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        changes = ["--steps", 5, "--set", "tokenizer={name: character}", "--set", "training.schedule.warmup=1"]
        status, _, err = call("train", small_recipe, "--data", text, "--root", tmp_path, *changes)
    assert status == 0 and "short" in err, err


def test_help_is_quick_and_loads_no_torch():
    code = "import sys; sys.argv = ['armillary', '--help']; from armillary.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    fastest = min(_seconds("--help") for _ in range(3))
    assert fastest < 3.0  # a guard against an import of torch; the real figure is in benchmarks


def _seconds(*words: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "armillary", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def test_a_run_reads_its_own_recipe_back(home, call):
    from armillary import registry
    from armillary.recipe import Recipe
    from armillary.run_folder import open_run

    recipe = open_run("two", home).recipe()
    assert registry.check(Recipe, recipe, "two").model_dump(mode="json") == recipe


def test_another_text_is_measured_with_baselines_that_learnt_what_the_model_learnt(call, home, text_file, tmp_path):
    other = tmp_path / "_other.txt"
    other.write_text("\n\n".join(["it is from the other text that this was had"] * 120), encoding="utf-8")
    before = set(home.rglob("*"))
    assert call("evaluate", "one", "--data", other, "--dry-run", "--root", home)[0] == 0
    assert set(home.rglob("*")) == before
    status, out, err = call("evaluate", "one", "--data", other, "--references", "--json", "--root", home)
    assert status == 0, err
    found = {r["name"]: r for r in document(out)}
    own = {r["name"]: r for r in document(call("evaluate", "one", "--references", "--json", "--root", home)[1])}
    assert found["one"]["protocol_hash"] != own["one"]["protocol_hash"]
    # An n-gram that had read the other text would find each of its equal lines nearly free.
    assert found["kneser-ney-5"]["bits_per_byte"] > 0.5


def test_a_window_alone_brings_its_own_stride(call, home):
    protocol = document(call("evaluate", "one", "--window", 8, "--json", "--root", home)[1])[0]["protocol"]
    assert (protocol["window"], protocol["stride"]) == (8, 4)


def test_more_bad_input(call, small_recipe, tmp_path, home):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    listless = tmp_path / "listless.yaml"
    listless.write_text("name: x\nparts: foo\n", encoding="utf-8")
    root = ["--root", tmp_path]
    refused(call("train", binary, *root), "binary.yaml")
    refused(call("train", listless, *root), "parts")
    refused(call("train", small_recipe, "--tokenizer", tmp_path / "typo", "--dry-run", *root), "typo")
    refused(call("train", small_recipe, "--name", "../x", *root), "--name")
    refused(call("train", small_recipe, "--set", "sampling.prompts=[]", *root), "prompts")
    refused(call("train", small_recipe, "--set", "training.track=[wandb]", *root), "wandb", "pip install")
    refused(call("train", small_recipe, "--set", "packing.stride=99", *root), "stride")
    packed = next(p for p in (home / "artefacts" / "packed").iterdir() if p.is_dir())
    isolated = ["--set", "packing.isolate_documents=true"]
    refused(
        call("train", small_recipe, "--data", packed, *isolated, "--name", "x", "--root", home), "isolate_documents"
    )


def test_recipes_keep_every_default(call, home):
    from armillary.run_folder import open_run

    shown = document(call("recipes", "show", "baseline-gpt", "--json")[1])
    assert shown["training"]["optimizer"]["eps"] == 1e-8 and shown["model"]["backbone"]["d_ff"] == 1024
    assert "min_frequency" in open_run("one", home).recipe()["tokenizer"]


def test_extends_merges_sections_and_replaces_parts(tmp_path):
    from armillary import recipe

    (tmp_path / "below.yaml").write_text("name: below\ntraining: {steps: 3}\ntokenizer: {name: bpe, vocabulary: 300}\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\nname: above\ntokenizer: {name: character}\n")
    found = recipe.raw(str(tmp_path / "above.yaml"), ["training.steps=4"])
    assert found == {"name": "above", "training": {"steps": 4}, "tokenizer": {"name": "character"}}


def test_demo_and_data_take_set(call, text_file, tmp_path):
    shown = document(call("demo", "--dry-run", "--set", "training.batch_rows=4", "--root", tmp_path)[1])
    assert {name: one["training"]["batch_rows"] for name, one in shown.items()} == {"demo": 4, "demo-masked": 4}
    status, out, err = call("data", "make", text_file, "--set", "document=line", "--json", "--root", tmp_path)
    assert status == 0 and document(out)["boundary"] == "newline", err
    refused(call("data", "make", text_file, "--set", "documents=line", "--root", tmp_path), "documents", "'document'")
