"""The public surface is a promise: its names, its signatures and its defaults are frozen here."""

from __future__ import annotations

import inspect
from importlib.resources import files

import pytest

import armillary
from armillary.language_model.fitting import FitOptions

SETTINGS = (
    "max_new_tokens: 'int' = 64, top_k: 'int | None' = None, top_p: 'float | None' = 0.9, "
    "temperature: 'float | None' = 1.0, repetition_penalty: 'float | None' = None, *, seed: 'int | None' = None"
)
SURFACE = {
    "TextData": "(texts_or_paths: 'Iterable[str | Path]', tokenizer: 'str' = 'auto', tokenizer_model_path: "
    "'str | Path | None' = None, max_length: 'int' = 256, pack_sequences: 'bool' = True, val_split: 'float' = 0.0, "
    "seed: 'int' = 1337) -> 'None'",
    "TextData.__len__": "(self) -> 'int'",
    "LanguageModel": "(base: 'str' = 'waveresnet', d_model: 'int' = 512, n_layers: 'int' = 8, n_heads: 'int' = 8, "
    "d_mlp: 'int | None' = None, vocab_size: 'int | None' = None, positional_encoding: 'str | None' = None, "
    "sine_params: 'Mapping[str, Any] | None' = None, tied: 'bool' = True, **options: 'Any') -> 'None'",
    "LanguageModel.fit": "(self, data: 'TextData', val_data: 'TextData | Iterable[str | Path] | None' = None, "
    "epochs: 'float' = 1, batch_tokens: 'int' = 65536, lr: 'float' = 0.0002, amp: \"Literal['bf16', 'fp16', 'fp32']\" "
    "= 'bf16', ddp: \"Literal['auto', 'on', 'off']\" = 'auto', **train_options: 'Any') -> 'LanguageModel'",
    "LanguageModel.generate": f"(self, prompt: 'str', {SETTINGS}) -> 'str'",
    "LanguageModel.generate_batch": f"(self, prompts: 'Sequence[str]', {SETTINGS}) -> 'list[str]'",
    "LanguageModel.evaluate": "(self, data: 'TextData | Iterable[str | Path] | None' = None) -> 'dict[str, Any]'",
    "LanguageModel.info": "(self) -> 'dict[str, Any]'",
    "LanguageModel.save": "(self, path: 'str | Path') -> 'None'",
    "LanguageModel.load": "(path: 'str | Path') -> 'LanguageModel'",
    "load": "(run: 'RunFolder | str | Path', *, checkpoint: 'str | int' = 'best', device: 'str' = 'auto', "
    "root: 'str | Path' = '.') -> 'LanguageModel'",
    "train": "(recipe: 'str | Path | Mapping[str, Any]', overrides: 'Mapping[str, Any] | None' = None, *, "
    "data: 'str | Path | None' = None, tokenizer: 'str | Path | None' = None, name: 'str | None' = None, "
    "minutes: 'float | None' = None, resume: 'bool' = False, root: 'str | Path' = '.') -> 'RunFolder'",
}
PROPERTIES = {
    "TextData": {"vocab_size", "dataset", "val_dataset", "tokenizer", "tokenizer_backend"},
    "LanguageModel": {"run", "tokenizer", "opened"},
}
OPTIONS = {
    "warmup_steps": None,
    "weight_decay": 0.1,
    "label_smoothing": 0.0,
    "grad_clip": 1.0,
    "grad_accum_steps": 1,
    "grad_checkpoint": False,
    "compile": False,
    "checkpoint_dir": None,
    "log_interval_steps": 10,
    "save_interval_steps": 500,
}


def found(path: str):
    thing = armillary
    for step in path.split("."):
        thing = getattr(thing, step)
    return thing


@pytest.mark.parametrize("path", SURFACE)
def test_signatures_are_those_promised(path):
    assert str(inspect.signature(found(path))) == SURFACE[path]


def test_names_are_those_promised():
    assert {path.split(".")[0] for path in SURFACE} == set(armillary.__all__) - {"__version__"} <= set(dir(armillary))
    for name, properties in PROPERTIES.items():
        cls = found(name)
        public = {key for key in vars(cls) if not key.startswith("_")}
        assert properties == {key for key in public if isinstance(vars(cls)[key], property)}
    with pytest.raises(AttributeError, match="LangaugeModel"):
        _ = armillary.LangaugeModel
    assert files("armillary").joinpath("py.typed").is_file()


def test_train_options_are_those_promised():
    own = {"epochs", "batch_tokens", "lr", "amp", "ddp"}
    assert {name: field.default for name, field in FitOptions.model_fields.items() if name not in own} == OPTIONS
