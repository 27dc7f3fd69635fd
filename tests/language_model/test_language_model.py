"""A model in Python: fit, generate, save, load, evaluate; and that the command line gives the same."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from accelerate import Accelerator

import armillary
from armillary import LanguageModel, TextData
from armillary.cli import main
from armillary.language_model.fitting import FitOptions
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.registry import names

LINES = ["hello world", "goodnight moon and all the stars"] * 4
SHAPE = {"base": "llama", "d_model": 32, "n_layers": 1, "n_heads": 2}
FAST = {"amp": "fp32", "lr": 1e-2, "batch_tokens": 160, "warmup_steps": 0}


@pytest.fixture(scope="module")
def data() -> TextData:
    return TextData(LINES, tokenizer="simple", max_length=40, pack_sequences=False)


@pytest.fixture(scope="module")
def model(data) -> LanguageModel:
    """One that knows its lines by heart."""
    return LanguageModel(**SHAPE, vocab_size=data.vocab_size).fit(data, epochs=60, **FAST)


def call(capsys, *words: object) -> str:
    capsys.readouterr()
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ending:
        warnings.simplefilter("ignore")
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert not ending.value.code, err
    return out


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return model.opened.network.state_dict()


def gap(one: LanguageModel, other: LanguageModel) -> float:
    there = weights(other)
    return max(float((tensor - there[name]).abs().max()) for name, tensor in weights(one).items())


SIZES = [pytest.param({"d_model": 64, "n_layers": 2, "n_heads": 2}, id="small")]
SIZES += [pytest.param({"d_model": 512, "n_layers": 8, "n_heads": 8}, id="as_written", marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_the_quick_start_runs_as_written(size, tmp_path):
    with pytest.warns(ArmillaryWarning, match="one shorter row"):
        data = TextData(["hello world", "goodnight moon"], tokenizer="auto")
    sine = {"amp_init": 1.0, "freq_init": 1.0, "damp_init": 0.01, "trainable": True}
    own = {"d_mlp": None, "vocab_size": data.vocab_size, "positional_encoding": "rope", "sine_params": sine}
    model = LanguageModel(base="waveresnet", **size, **own)
    assert model.fit(data) is model
    text = model.generate("Once upon a time", max_new_tokens=64, top_p=0.9)
    assert isinstance(text, str) and text and not text.startswith("Once")
    texts = model.generate_batch(["hello", "goodnight"], max_new_tokens=32)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    model.save(tmp_path / "model")
    assert gap(LanguageModel.load(tmp_path / "model"), model) == 0


def test_rows_of_a_batch_go_on_alone_and_end_at_their_own_end(model):
    texts = model.generate_batch(["hello", "goodnight moon", "h", "goodnight"], temperature=0)
    assert texts == [" world", " and all the stars", "ello world", " moon and all the stars"]
    for seed in (1, 2):
        drawn = model.generate_batch(["good", "hello wor"], max_new_tokens=9, temperature=3.0, top_p=None, seed=seed)
        assert drawn[0] == model.generate("good", 9, temperature=3.0, top_p=None, seed=seed)
    torch.manual_seed(5)
    first = [model.generate("", 9, temperature=5.0, top_p=1.0) for _ in range(2)]
    torch.manual_seed(5)
    assert first == [model.generate("", 9, temperature=5.0, top_p=1.0) for _ in range(2)] and first[0] != first[1]
    assert model.generate_batch([]) == []


def test_settings_of_generation_are_heeded(model):
    wild = model.generate("", 20, temperature=9.0, top_p=None, seed=1)
    greedy = model.generate("", 20, temperature=0)
    assert wild != greedy == model.generate("", 20, temperature=9.0, top_k=1, top_p=None, seed=1)
    assert greedy == model.generate("", 20, temperature=9.0, top_p=1e-6, seed=1)
    assert greedy != model.generate("", 20, temperature=0, repetition_penalty=1e9)
    for bad in ({"top_p": 1.5}, {"temperature": -1}, {"max_new_tokens": 0}, {"top_k": 0}):
        with pytest.raises(Refusal, match=next(iter(bad))):
            model.generate("", **bad)
    with pytest.raises(Refusal, match="generate_batch"):
        model.generate(["a"])  # type: ignore[arg-type]


def test_a_second_fit_goes_on_with_its_own_arguments(data, tmp_path):
    model = LanguageModel(**SHAPE).fit(data, epochs=4, label_smoothing=0.2, **FAST)
    model.save(tmp_path / "first")
    first, losses = LanguageModel.load(tmp_path / "first"), [r["loss"] for r in model.run.metrics("train")]
    model.fit(data, epochs=2, **FAST | {"lr": 1e-9}, log_interval_steps=1)
    again = model.run.metrics("train")
    assert 0 < gap(model, first) < 1e-6 and again[0]["loss"] < losses[0] and again[0]["learning_rate"] <= 1e-9
    assert (model.run.facts()["steps"], first.run.facts()["steps"]) == (4, 8)
    smoothing = [one.run.recipe()["objective"]["label_smoothing"] for one in (model, first)]
    assert [*smoothing, first.fit(data, **FAST).run.recipe()["objective"]["label_smoothing"]] == [0.0, 0.2, 0.0]
    other = TextData(["some other words", "of another text"] * 9, max_length=16)  # with a tokenizer of its own
    words = model.fit(other, **FAST, val_data=["words to judge by"]).tokenizer.encode("hello")
    assert words == data.tokenizer.encode("hello") and model.run.metrics("validation")
    assert model.run.recipe()["tokenizer"]["name"] == "character"
    with pytest.raises(Refusal, match="holds a run"):
        model.fit(data, checkpoint_dir=tmp_path / "first")


def test_every_train_option_is_in_the_recipe(data, tmp_path):
    options = {"lr": 3e-3, "amp": "fp32", "batch_tokens": 170, "epochs": 3, "warmup_steps": 2, "weight_decay": 0.3,
               "label_smoothing": 0.05, "grad_clip": 0.7, "grad_accum_steps": 2, "grad_checkpoint": True,
               "log_interval_steps": 3, "save_interval_steps": 2, "checkpoint_dir": tmp_path / "own"}  # fmt: skip
    model = LanguageModel(**SHAPE).fit(data, ddp="auto", **options)
    recipe, training = model.run.recipe(), model.run.recipe()["training"]
    assert model.run.path == tmp_path / "own" and recipe["objective"]["label_smoothing"] == 0.05
    wanted = {"steps": 6, "batch_rows": 4, "accumulation": 2, "clip": 0.7, "precision": "fp32", "log_every": 3,
              "activation_checkpointing": True, "checkpoint_every": 2}  # fmt: skip
    assert {key: training[key] for key in wanted} == wanted and model.run.checkpoint_steps() == [4, 6]
    assert training["optimizer"]["learning_rate"] == 3e-3 and training["optimizer"]["weight_decay"] == 0.3
    assert training["schedule"]["warmup"] == 2 and recipe["seed"] == 1337
    assert recipe["packing"]["isolate_documents"] == "padded" and recipe["packing"]["window"] == 40
    options = FitOptions(epochs=1, batch_tokens=400, lr=1e-3, amp="fp32", ddp="auto", compile=True)
    assert options.training(data.dataset, Accelerator(cpu=True))["compile"] and not training["compile"]
    everything = LanguageModel(**SHAPE).fit(data, amp="fp32")  # a step reads no more than there is
    assert (everything.run.recipe()["training"]["batch_rows"], everything.run.facts()["steps"]) == (len(data), 1)


def test_bad_options_are_refused_in_one_line(data, model, monkeypatch, tmp_path):
    fresh, there = LanguageModel(**SHAPE), tmp_path / "there"
    LanguageModel(**SHAPE).fit(data, checkpoint_dir=there, epochs=2, **FAST)
    model.save(tmp_path / "saved")
    refused = {
        "did you mean 'warmup_steps'": lambda: fresh.fit(data, warmup_step=3),
        "warmup_steps: 99 in a run of 1": lambda: fresh.fit(data, warmup_steps=99),
        "'amp'": lambda: fresh.fit(data, amp="bf8"),  # type: ignore[arg-type]
        "torchrun --nproc-per-node 2": lambda: fresh.fit(data, ddp="on"),
        "make it with TextData": lambda: fresh.fit(["text"]),  # type: ignore[arg-type]
        "vocab_size: is 7": lambda: LanguageModel(**SHAPE, vocab_size=7).fit(data),
        "no weights yet": lambda: fresh.generate("a"),
        "leave one of them out": lambda: fresh.fit(
            TextData(LINES, max_length=4, val_split=0.5, tokenizer="simple"), val_data=["a text to judge by"]
        ),
        "did you mean 'llama'": lambda: LanguageModel(base="lama"),
        "unknown key 'd_mlp'": lambda: LanguageModel(base="llama", d_mlp=64),
        "unknown key 'positional_encoding'": lambda: LanguageModel(base="gpt", positional_encoding="rope"),
        "unknown key 'sine_params'": lambda: LanguageModel(base="llama", sine_params={"amp_init": 1.0}),
        "give a mapping such as": lambda: LanguageModel(sine_params="all"),  # type: ignore[arg-type]
        "did you mean 'n_kv_heads'": lambda: LanguageModel(base="llama", n_kvheads=None),
        "tied: is 'no'": lambda: LanguageModel(base="llama", tied="no"),  # type: ignore[arg-type]
        "no model here": lambda: LanguageModel.load(tmp_path),
        "no run is called 'nothing'": lambda: armillary.load("nothing", root=tmp_path),
        "`save` did not make it": lambda: model.save(Path(__file__).parent),
        "did you mean 'steps'": lambda: armillary.train("demo", {"training.step": 3}, root=tmp_path),
        "is no plain value": lambda: armillary.train("demo", {"seed": data}, root=tmp_path),
        "data nothing: no such file": lambda: armillary.train("demo", data="nothing", root=tmp_path),
        "name a/b: it becomes a folder": lambda: armillary.train("demo", name="a/b", root=tmp_path),
        "checkpoint 7: ": lambda: armillary.load(model.run, checkpoint="7"),
        "device cuda:99: ": lambda: armillary.load(model.run, device="cuda:99"),
        "or give checkpoint_dir for a new run": lambda: fresh.fit(data, checkpoint_dir=there, **FAST | {"lr": 1.0}),
        "has done 4; ask for as many": lambda: fresh.fit(data, checkpoint_dir=there, **FAST),
        "holds a saved model": lambda: fresh.fit(data, checkpoint_dir=tmp_path / "saved", epochs=60, **FAST),
        "more than the 8 windows": lambda: fresh.fit(data, grad_accum_steps=9),
        "all of it would be read": lambda: fresh.fit(
            data, val_data=TextData(LINES, "simple", max_length=4, val_split=0.5)
        ),
        "give a mapping such as {'training.steps": lambda: armillary.train("demo", ["seed=1"]),  # type: ignore[arg-type]
        "max_new_tokens: is True": lambda: model.generate("a", max_new_tokens=True),
        "seed: is -1": lambda: model.generate("a", seed=-1),
    }
    for words, run in refused.items():
        with pytest.raises(Refusal) as found:
            run()
        assert words in str(found.value) and "\n" not in str(found.value)
        assert "--" not in str(found.value).partition("torchrun ")[0]  # no word of the command line
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Refusal, match="one of 4 processes"):
        fresh.fit(data, ddp="off")


def test_a_saved_model_gives_the_same_in_a_fresh_process(model, tmp_path, capsys):
    path = tmp_path / "saved"
    model.save(path)
    wave = LanguageModel("waveresnet", d_model=16, n_layers=1, n_heads=2, tied=False)
    wave.fit(TextData([f"{line} {i}" for i, line in enumerate(LINES * 9)], tokenizer="sentencepiece", max_length=16))
    assert not wave.info()["tied"]
    wave.save(tmp_path / "wave")
    code = "from armillary import LanguageModel as M; " + "; ".join(
        f"print(repr(M.load({str(place)!r}).generate('good', 30, seed=3)))" for place in (path, tmp_path / "wave")
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = model.generate("good", 30, seed=3)
    assert fresh == f"{here!r}\n{wave.generate('good', 30, seed=3)!r}\n"
    words = ["--prompt", "good", "--max-new-tokens", 30, "--top-p", 0.9, "--temperature", 1, "--seed", 3, "--json"]
    assert json.loads(call(capsys, "sample", path, *words))[0]["text"] == here
    (path / "recipe.yaml").write_text((path / "recipe.yaml").read_text().replace("seed: 1337", "seed: 1338"))
    with pytest.raises(Refusal, match=r"recipe\.yaml"):
        LanguageModel.load(path)
    model.save(path)  # an earlier save may be replaced
    (weights,) = path.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(Refusal, match=r"model\.safetensors"):
        LanguageModel.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["llama", "bijective"])
def test_two_processes_fit_what_one_does(base, tmp_path):
    """Figures agree to rounding: two ranks add their gradients in another order. Reversible blocks hand theirs to the
    hooks of data parallelism from a backward pass of their own."""
    program = tmp_path / "program.py"
    program.write_text(
        f"from armillary import LanguageModel, TextData\n"
        f"data = TextData({LINES!r} * 4, tokenizer='simple', max_length=16, val_split=0.1)\n"
        f"model = LanguageModel({base!r}, d_model=16, n_layers=2, n_heads=2)\n"
        f"model.fit(data, epochs=2, amp='fp32', batch_tokens=64, lr=1e-2, grad_checkpoint=True,"
        f" checkpoint_dir='run', log_interval_steps=1, ddp=__import__('sys').argv[1])\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    found = []
    for name, words in (("one", [program, "off"]), ("two", [*launch, program, "on"])):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path / name, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        model = LanguageModel.load(tmp_path / name / "run")
        found.append((model, [(r["step"], r["n_tokens"], r["loss"]) for r in model.run.metrics("train")]))
    (one, alone), (two, together) = found
    assert two.run.facts()["system"]["processes"] == 2 and len(alone) > 10
    assert [step[:2] for step in alone] == [step[:2] for step in together]
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in alone], rel=1e-3)
    assert gap(one, two) < 1e-2


def test_python_and_the_command_line_give_the_same(tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(f"{line} {i}") + "\n" for i, line in enumerate(LINES * 5)))
    data = TextData([json.loads(line) for line in text.read_text().splitlines()], max_length=16, val_split=0.2, seed=3)
    model = LanguageModel(**SHAPE).fit(data, epochs=2, **FAST)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(model.run.recipe() | {"name": "same"}))
    call(capsys, "train", recipe, "--data", text, "--root", tmp_path)
    same = armillary.load("same", root=tmp_path)
    assert gap(same, model) == 0 and same.run.metrics("train")[-1]["loss"] == model.run.metrics("train")[-1]["loss"]
    told = json.loads(call(capsys, "evaluate", "same", "--json", "--root", tmp_path))[0]
    for figures in (model.evaluate(), model.evaluate(data), same.evaluate(data)):
        assert {key: figures[key] for key in ("bits_per_byte", "kind", "protocol_hash", "n_bytes", "protocol")} == {
            key: told[key] for key in ("bits_per_byte", "kind", "protocol_hash", "n_bytes", "protocol")
        }
    assert told["kind"] == "exact" and same.info()["run"] == "same" and same.run.recipe()["seed"] == 3
    third = armillary.train(json.loads(recipe.read_text()), data=text, name="third", root=tmp_path)
    assert gap(armillary.load(third), model) == 0


def test_torchs_own_generator_and_the_weights_are_left_as_they_were(data, tmp_path):
    """Texts may be drawn in bf16; figures are those of fp32, whatever was drawn before."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    LanguageModel(**SHAPE, dropout=0.1).fit(data, checkpoint_dir=tmp_path / "run", **FAST)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  precision: fp32\n  compile", "  precision: bf16\n  compile"))
    model = armillary.load(tmp_path / "run", checkpoint=2)
    assert torch.equal(before, torch.get_rng_state())
    assert model.opened.parts.recipe.sampling.precision == "bf16"
    figure, texts = model.evaluate(data)["nats"], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate("hello", 12, top_p=None, temperature=2.0))
    assert texts[0] == texts[1] != texts[2]
    assert model.evaluate(data)["nats"] == figure


def test_a_text_without_a_held_out_part_is_measured_with_a_warning(model):
    with pytest.warns(ArmillaryWarning, match="no held-out part"):
        assert model.evaluate()["protocol"]["split"] == "train"


def test_texts_are_measured_whole(model):
    found = model.evaluate(["hello world", "goodnight moon and all the stars"])
    assert found["n_bytes"] == 43 and found["bits_per_byte"] < 1.5 < model.evaluate(["xylophone"])["bits_per_byte"]


def test_an_interrupted_fit_keeps_its_weights_and_goes_on(data, tmp_path):
    def fitted(folder: str) -> LanguageModel:
        return LanguageModel(**SHAPE).fit(
            data, epochs=3, **FAST, log_interval_steps=2, checkpoint_dir=tmp_path / folder
        )

    class Impatient(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("step"):
                os.kill(os.getpid(), signal.SIGINT)

    logger, handler = logging.getLogger("armillary"), Impatient()
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        with pytest.raises(KeyboardInterrupt):
            fitted("one")
    finally:
        logger.removeHandler(handler)
        logger.setLevel("NOTSET")
    assert LanguageModel.load(tmp_path / "one").run.checkpoint_steps()[-1] < 6
    assert gap(fitted("one"), fitted("two")) == 0


def test_a_model_of_another_objective_draws_with_its_own_sampler(text_file, tmp_path):
    overrides = {"training": {"steps": 3, "schedule": {"warmup": 1}, "validation_rows": 2}, "packing.window": 16,
                 "tokenizer.vocabulary": 300}  # fmt: skip
    run = armillary.train("mdlm-smoke", overrides, data=text_file, root=tmp_path)
    model = armillary.load(run)
    assert model.generate("the", 5, seed=1) == armillary.load("mdlm-smoke", root=tmp_path).generate("the", 5, seed=1)
    assert model.opened.parts.recipe.objective.name == "masked_diffusion"
    with pytest.raises(Refusal, match="has no repetition_penalty"), pytest.warns(ArmillaryWarning, match="room for 61"):
        model.generate("the", repetition_penalty=2.0)
    model.fit(TextData(["the text"] * 30, max_length=16), amp="fp32", batch_tokens=32)
    assert model.opened.parts.recipe.objective.name == "masked_diffusion" and model.run.facts()["steps"] > 1


@pytest.mark.parametrize("base", names("backbones"))
def test_every_backbone_takes_the_same_sizes(base):
    LanguageModel(base=base, d_model=16, n_layers=1, n_heads=2)


@pytest.mark.parametrize("base", ["respsann", "waveresnet"])
def test_every_argument_reaches_the_network(base, data):
    def fitted(**change) -> LanguageModel:
        own = {"base": base, "d_model": 16, "n_layers": 1, "n_heads": 2} | change
        return LanguageModel(**own).fit(data, amp="fp32")

    usual = fitted().evaluate(data)["nats"]
    changes = [{"d_mlp": 48}, {"positional_encoding": "alibi"}, {"positional_encoding": "sinusoidal"}, {"n_heads": 4}]
    changes += [{"sine_params": {name: 0.5}} for name in ("amp_init", "freq_init", "damp_init")]
    assert [change for change in changes if fitted(**change).evaluate(data)["nats"] == usual] == []
    frozen = fitted(sine_params=MappingProxyType({"trainable": False}))
    assert frozen.run.recipe()["model"]["backbone"]["sine_params"]["trainable"] is False
    with pytest.raises(Refusal, match="did you mean 'amp_init'"):
        fitted(sine_params={"amp_int": 1.0})
