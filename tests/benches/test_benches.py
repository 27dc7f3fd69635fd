"""Every bench on a tiny shape leaves what its page promises; a fault of the package is told."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from armillary import benches, registry
from armillary.assemble import planning
from armillary.benches import _synthetic
from armillary.benches._checks import two_processes
from armillary.model.next_token import CachedNextToken
from armillary.nn.stack import Stack
from armillary.refusal import Refusal

FILES = {
    "tokenizers": {"metrics.json"},
    "kv-cache": {"metrics.json"},
    "throughput": {"throughput.csv", "metrics.json"},
    "memory": {"memory.json"},
    "tiny-corpus": {"metrics.csv", "metrics.json"},
    "gpu": {"summary.json"},
}


def ran(name, root, **fields):
    """(report, its JSON file), with llama where the bench has a base."""
    part = registry.find("benches", name.replace("-", "_"))
    fields = {"base": ["llama"] if "base" in part.model_fields else None, **fields}
    made = benches.prepare(name, {k: v for k, v in fields.items() if v is not None}, is_quick=True)[name]
    report = benches.run(name, made, root, lambda line: None)
    assert {p.name for p in report.folder.iterdir()} == FILES[name] | {"system.json"}
    assert "torch" in json.loads((report.folder / "system.json").read_text())
    (file,) = (f for f in FILES[name] if f.endswith(".json"))
    return report, json.loads((report.folder / file).read_text())


def test_every_bench_has_a_place_in_the_sweep_and_files():
    assert {name.replace("_", "-") for name in registry.names("benches")} == set(benches.ALL) == set(FILES)


def test_tokenizers(tmp_path):
    report, found = ran("tokenizers", tmp_path, megabytes=0.02, rounds=1)
    rows = {row["backend"]: row for row in found["rows"]}
    assert set(rows) == set(registry.names("tokens/tokenizers")) and report.found.is_ok
    assert rows["character"]["characters_per_token"] == pytest.approx(1, abs=0.01)
    assert rows["bpe"]["n_vocab"] == 400 and rows["bpe"]["characters_per_token"] > 1.5
    for row in rows.values():
        assert row["fit_seconds"] > 0 and row["model_bytes"] > 40
        ratio = row["characters_per_second"] / row["tokens_per_second"]
        assert ratio == pytest.approx(row["characters_per_token"])


def test_a_tokenizer_that_loses_text_is_not_ok(tmp_path, monkeypatch):
    from armillary.tokens.tokenizers.character import CharacterTokenizer

    sound = CharacterTokenizer.decode
    monkeypatch.setattr(CharacterTokenizer, "decode", lambda self, ids: sound(self, ids).replace(".", ","))
    assert not ran("tokenizers", tmp_path, backends=["character"], megabytes=0.02)[0].found.is_ok


def test_kv_cache_tells_batching_and_caching_apart(tmp_path):
    report, found = ran("kv-cache", tmp_path)
    one = found["bases"]["llama"]
    assert report.found.is_ok and set(one["gains"]) == {
        "caching, in a batch", "caching, one by one", "batching, cached", "batching, recomputed", "both"
    }  # fmt: skip
    readings = one["readings"]
    assert {len(each) for each in readings.values()} == {2}
    pairs = zip(readings["batch, cached"], readings["batch, recomputed"], strict=True)
    assert one["gains"]["caching, in a batch"]["high"] == pytest.approx(max(a / b for a, b in pairs))


def test_a_cache_that_forgets_is_not_ok(tmp_path, monkeypatch):
    sound = CachedNextToken.advance
    monkeypatch.setattr(
        CachedNextToken, "advance", lambda self, slots, tokens: sound(self, slots, tokens.flip(-1) * 0 + 5)
    )
    assert not ran("kv-cache", tmp_path)[0].found.is_ok
    summary = ran("gpu", tmp_path, device="cpu", only=["generation"])[1]
    assert summary["checks"][0]["status"] == "error" and "nats apart" in summary["checks"][0]["reason"]


def test_throughput_grid(tmp_path, monkeypatch):
    report, _ = ran("throughput", tmp_path, rounds=1)
    rows = list(csv.DictReader((report.folder / "throughput.csv").open()))
    assert [(row["base"], row["batch_tokens"], row["status"]) for row in rows] == [
        ("llama", "64", "ok"), ("llama", "128", "ok")
    ]  # fmt: skip
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    sound = planning.measure_steps

    def too_small(parts, n_vocab, n_rows):
        if n_rows > 2:
            raise torch.OutOfMemoryError
        return sound(parts, n_vocab, n_rows)

    monkeypatch.setattr(planning, "measure_steps", too_small)
    rows = ran("throughput", tmp_path, rounds=1)[0].found.rows
    assert [row["status"] for row in rows] == ["ok", "out of memory"] and rows[1]["tokens_per_second"] is None


def test_throughput_says_that_a_cpu_gets_smaller_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("armillary.benches.throughput.ON_A_CPU", (64,))
    _, found = ran("throughput", tmp_path, batch_tokens=[64], rounds=1, device="cpu")
    assert not any("32nd" in note for note in found["notes"])
    fields = {**found["fields"], "batch_tokens": None}
    made = benches.prepare("throughput", fields)["throughput"]
    assert any("32nd" in note for note in benches.run("throughput", made, tmp_path, print).found.notes)


def test_memory_of_kept_and_recomputed_activations(tmp_path):
    _, found = ran("memory", tmp_path)
    kept, again = found["rows"]
    # Four blocks: of each only its input is left, beside the head.
    assert again["kept_bytes"] < 0.25 * kept["kept_bytes"] == kept["kept_bytes"] / 4
    assert found["saved"]["llama"]["kept_bytes"] == pytest.approx(again["kept_bytes"] / kept["kept_bytes"])
    assert kept["peak_bytes"] > kept["kept_bytes"]


def test_tiny_corpus_trains_a_real_run(tmp_path, small_recipe):
    overrides = ["training.steps=8", "training.schedule.warmup=1"]
    report, found = ran("tiny-corpus", tmp_path, recipe=str(small_recipe), megabytes=0.03, overrides=overrides)
    rows = list(csv.DictReader((report.folder / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["kind"] == "train"] == [str(i) for i in range(1, 9)]
    (validation,) = (row for row in rows if row["kind"] == "validation")
    assert float(validation["perplexity"]) == pytest.approx(2.718281828 ** float(validation["loss"]), rel=1e-4)
    (final,) = found["final_validation"]
    assert final["kind"] == "exact" and final["protocol"]["split"] == "validation" and final["bits_per_byte"] < 8
    assert (tmp_path / "runs").is_dir() and len(found["text_sha256"]) == 64
    ((name, panels),) = report.found.panels.items()
    assert name == "loss_curve.png" and [panel["y_label"] for panel in panels] == [
        "loss, nats per token",
        "perplexity of a token",
    ]
    assert panels[0]["lines"][1]["y"] == [pytest.approx(float(validation["loss"]))]


def test_gpu_checks_run_on_a_cpu_where_asked(tmp_path):
    report, found = ran("gpu", tmp_path, device="cpu")
    status = {row["check"]: row["status"] for row in found["checks"]}
    assert status == dict.fromkeys(status, "ok") | {"ddp": "skipped", "fsdp": "skipped"} and report.found.is_ok
    assert found["counts"] == {"ok": 6, "skipped": 2, "error": 0}


def test_gpu_checks_are_skipped_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report, found = ran("gpu", tmp_path)
    assert {(row["status"], row["reason"]) for row in found["checks"]} == {("skipped", "no CUDA device")}
    assert report.found.is_ok and len(found["checks"]) == 8


def wrong_recomputation(monkeypatch):
    sound = Stack.forward
    monkeypatch.setattr(Stack, "forward", lambda self, x, *rest: sound(self, x * (1 + 1e-3 * self.recomputes), *rest))


def lossy_checkpoint(monkeypatch):
    from armillary.training import checkpoints

    sound = checkpoints._save

    def save(tensors, path):
        sound({name: tensor.bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}, path)

    monkeypatch.setattr(checkpoints, "_save", save)


def other_weights(monkeypatch):
    seeds = itertools.count()
    monkeypatch.setattr("armillary.assemble.build.key", lambda *purpose: next(seeds))


@pytest.mark.parametrize(
    ("check", "plant"),
    [
        ("checkpointing", wrong_recomputation),
        ("save-load", lossy_checkpoint),
        ("mixed-precision", other_weights),
        ("forward-backward", other_weights),
    ],
)
def test_a_fault_of_the_package_is_an_error(check, plant, tmp_path, monkeypatch):
    assert ran("gpu", tmp_path, device="cpu", only=[check])[0].found.is_ok
    plant(monkeypatch)
    report, found = ran("gpu", tmp_path, device="cpu", only=[check])
    assert not report.found.is_ok and found["checks"][0]["status"] == "error" and found["checks"][0]["reason"]


@pytest.mark.slow
def test_two_processes_end_where_one_does():
    assert two_processes("cpu")["losses_apart"] < 1e-3


def test_the_sweep_goes_on_behind_a_failure_and_tells_it(tmp_path):
    gpu = benches.prepare("gpu", {"base": ["llama"], "only": ["fsdp"], "device": "cpu"}, is_quick=True)
    (tmp_path / "nowhere.txt").write_text("one line\n")
    lost = benches.prepare("tokenizers", {"data": str(tmp_path / "nowhere.txt")}, is_quick=True)
    reports = list(benches.sweep(lost | gpu, tmp_path, lambda line: None))
    assert [report.name for report in reports] == ["gpu", "all"] and not reports[-1].found.is_ok
    summary = json.loads((reports[-1].folder / "summary.json").read_text())["benches"]
    assert [row["status"] for row in summary] == ["error", "ok"] and "1 lines" in summary[0]["reason"]


def test_synthetic_text_is_the_same_every_time_and_can_be_learnt(tmp_path):
    path, sha256 = _synthetic.file(tmp_path, 0.2)
    text = path.read_text()
    assert sha256 == _synthetic.file(tmp_path / "again", 0.2)[1] and 200_000 <= len(text) < 202_000
    assert text.startswith(SYNTHETIC) and _synthetic.file(tmp_path, 0.2)[1] == sha256
    words = text.replace(".", "").split()
    assert len(set(words)) > 3000 and words.count("ba") > 20 * words.count(_synthetic.lexicon()[500])
    after = {b for a, b in itertools.pairwise(words) if a == "ba"}
    pairs = sum(words[i] == "ba" for i in range(len(words)))
    assert len(after) < pairs / 2  # seven in ten are one of four


@pytest.mark.parametrize("fields", [{"base": ["nope"]}, {"data": "nope.txt"}, {"n_heads": 3}])
def test_a_sweep_is_refused_before_anything_is_measured(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = []
    with pytest.raises(Refusal, match=r"nope|n_heads"):
        list(benches.sweep(benches.prepare("all", fields, is_quick=True), tmp_path, said.append))
    assert said == [] and list(tmp_path.iterdir()) == []


def test_a_text_without_validation_is_refused_before_training(tmp_path, small_recipe):
    root, text = tmp_path / "root", tmp_path / "text.txt"
    text.write_text("word" * 500)
    words = tmp_path / "words.txt"
    words.write_text("\n\n".join(f"document {i} has words" for i in range(300)))
    whole = "corpora.main.validation_fraction=0"
    for fields in ({"data": str(text)}, {"data": str(words), "overrides": [whole]}, {"overrides": [whole]}):
        made = benches.prepare("tiny-corpus", {"recipe": str(small_recipe), **fields})
        with pytest.raises(Refusal, match="two documents"):
            benches.run("tiny-corpus", made["tiny-corpus"], root, print)
    assert not root.exists()
    benches.check(benches.prepare("tiny-corpus", {"recipe": str(small_recipe), "data": str(words)}), root)
    assert not root.exists()


def test_a_text_of_ones_own_is_read_whole_unless_said_otherwise(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "document {i:03}"}}\n' for i in range(100)) + '{"title": "none"}\n')
    character = {"backends": ["character"], "rounds": 1, "data": str(text)}
    report, found = ran("tokenizers", tmp_path, **character)
    assert found["encoded_characters"] == 10 * 12 and found["trained_on_characters"] == 90 * 12
    (note,) = report.found.notes
    assert note.startswith("1 records were rejected, the first is text.jsonl, line 101")
    report, found = ran("tokenizers", tmp_path, **character, megabytes=0.00026)
    assert found["trained_on_characters"] == 18 * 12 and report.found.notes == found["notes"]
    assert found["notes"] == ["only the first 0.00026 MB of the text were read"]
    with pytest.raises(Refusal, match="megabytes"):
        benches.prepare("tiny-corpus", {"data": str(text), "megabytes": 1})
    assert benches.prepare("tiny-corpus", {"data": str(text)}, is_quick=True)


def test_a_text_of_few_documents_is_cut_by_line(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"document {i:03}\n" for i in range(40)))
    report, found = ran("tokenizers", tmp_path, backends=["character"], rounds=1, data=str(text))
    assert found["encoded_characters"] == 4 * 12 and report.found.notes == [
        "the text has 1 documents: it is cut by line"
    ]


def test_one_set_of_options_fits_the_whole_sweep():
    made = benches.prepare("all", {"batch_tokens": 1024, "device": "auto"})
    assert made["throughput"].batch_tokens == (1024,) and made["memory"].batch_tokens == 1024  # type: ignore[attr-defined]


SYNTHETIC = "du bamolu kabu bibepi vu bi sile du bepi bo. da."


def test_bad_fields_are_refused():
    for name, fields, needle in (
        ("kv-cash", {}, "'kv-cache'"),
        ("gpu", {"onli": ["ddp"]}, "'only'"),
        ("gpu", {"only": ["ddpp"]}, "'ddp'"),
        ("tokenizers", {"base": ["llama"]}, "base"),
        ("all", {"bases": ["llama"]}, "'base'"),
        ("throughput", {"rounds": 0}, "rounds"),
        ("throughput", {"batch_tokens": []}, "batch_tokens"),
        ("throughput", {"batch_tokens": -512}, "batch_tokens"),
        ("kv-cache", {"precision": "bf16"}, "'precision'"),
        ("gpu", {"precision": "fp32"}, "'precision'"),
    ):
        with pytest.raises(Refusal, match=needle):
            benches.prepare(name, fields)
    for name, fields, needle in (
        ("throughput", {"base": ["lama"]}, "'llama'"),
        ("throughput", {"base": ["llama"], "batch_tokens": [100]}, "multiple of the window"),
        ("kv-cache", {"base": ["llama"], "n_heads": 3}, "n_heads"),
        ("gpu", {"base": ["lama"]}, "'llama'"),
    ):
        with pytest.raises(Refusal, match=needle):
            benches.run(name, benches.prepare(name, fields)[name], registry.Path("nowhere"), print)


@pytest.mark.slow
def test_the_battery_for_a_gpu_leaves_its_files(tmp_path):
    """Without a GPU all is skipped, and the folder says so."""
    here = Path(__file__).parents[2]
    words = ["-m", "pytest", "tests/gpu", "-m", "gpu", "-q", f"--junitxml={tmp_path / 'junit.xml'}"]
    environment = os.environ | {"ARMILLARY_BATTERY": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *words], cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"junit.xml", "pytest_report.json", "system.json"}
    assert "not used" in json.loads((tmp_path / "system.json").read_text())["gpu"]
    counts = json.loads((tmp_path / "pytest_report.json").read_text())["counts"]
    assert counts["failed"] == counts["passed"] == 0 < counts["skipped"]
