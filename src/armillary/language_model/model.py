"""A language model as a Python object: it wraps a run, so that Python and the command line give the same."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch

from armillary import artefact, registry
from armillary import recipe as recipes
from armillary.assemble import build, evaluating, inspecting, sampling
from armillary.assemble.build import OpenModel
from armillary.contracts import Tokenizer
from armillary.language_model.fitting import FitOptions, follow, start
from armillary.language_model.text_data import ELSE, TextData, as_data, temporary
from armillary.language_model.wording import in_python_words
from armillary.refusal import ArmillaryWarning, Refusal
from armillary.run_folder import RunFolder

KIND = "model"
"""Of the artefact that `save` writes: a run's folder with one checkpoint."""

SAME = {"d_model": "model_dim", "n_layers": "num_layers", "n_heads": "num_heads"}
"""Arguments that Perigee has under the names of its own papers."""

USUAL_SAMPLING = {"top_p": 0.9, "temperature": 1.0}


class LanguageModel:
    """A model of one shape. It has weights and a tokenizer once it was fitted or loaded.

    base: a backbone's name; the other arguments are its fields, `options` those that have no argument of their own, and
    None is its own default (PSANN's: four times the width, rope, sines of amplitude 1, frequency 1 and damping 0.01).
    vocab_size None: that of the data it is fitted on. tied: whether the embedding is the head too.
    """

    def __init__(  # noqa: PLR0913
        self,
        base: str = "waveresnet",
        d_model: int = 512,
        n_layers: int = 8,
        n_heads: int = 8,
        d_mlp: int | None = None,
        vocab_size: int | None = None,
        positional_encoding: str | None = None,
        sine_params: Mapping[str, Any] | None = None,
        tied: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(tied, bool):
            raise Refusal(f"tied: is {tied!r}; give True or False")
        if not isinstance(sine_params, Mapping | None):
            raise Refusal(f"sine_params: is {type(sine_params).__name__}; give a mapping such as {{'freq_init': 2.0}}")
        known = registry.find("backbones", base).model_fields
        shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_mlp": d_mlp}
        fields = {name if name in known else SAME.get(name, name): value for name, value in shape.items()}
        fields |= {"positional_encoding": positional_encoding, "sine_params": sine_params and dict(sine_params)}
        fields = {name: value for name, value in fields.items() if value is not None} | options
        registry.make("backbones", base, fields)
        self.vocab_size = vocab_size
        self._recipe: dict[str, Any] = recipes.merge(
            ELSE, {"model": {"tied": tied, "backbone": {"name": base, **fields}}}
        )
        self._opened: OpenModel | None = None
        self._home: _Home | None = None
        self._root = Path()
        self._data: TextData | None = None  # its folder stays as long: the text that the run was validated on

    @classmethod
    def of(cls, opened: OpenModel, root: Path = Path()) -> LanguageModel:
        """The model of a run that is open. root: where artefacts lie, should they have moved."""
        self = cls.__new__(cls)
        self._root = root
        own = opened.parts.recipe.model_dump(mode="json")
        self._recipe = ELSE | {key: own[key] for key in ("name", "parts", "model", "objective", "sampling")}
        self._opened, self._home, self._data = opened, None, None
        self.vocab_size = opened.network.n_vocab
        return self

    @classmethod
    @in_python_words()
    def load(cls, path: str | Path) -> LanguageModel:
        """What `save` wrote, or any run's folder, after every file was checked against its SHA-256."""
        run = RunFolder(Path(path))
        if not run.exists():
            raise Refusal(f"{path}: no model here; give a folder that `save` or `armillary train` made")
        if (run.path / artefact.MANIFEST).is_file():
            artefact.read(run.path, KIND)
        return cls.of(build.open_model(run))

    @property
    def run(self) -> RunFolder:
        """The folder of its training: recipe, facts, metrics, checkpoints. Without a checkpoint_dir it is a temporary
        one, which goes with the model or at its next `fit`."""
        return self.opened.run

    @property
    def tokenizer(self) -> Tokenizer:
        return self.opened.tokenizer

    @property
    def opened(self) -> OpenModel:
        """The run and its parts, as the rest of the package takes them. Raises Refusal before there are weights."""
        if self._opened is None:
            raise Refusal("LanguageModel: has no weights yet; call fit, or load a model")
        return self._opened

    @in_python_words(name="checkpoint_dir")
    def fit(
        self,
        data: TextData,
        val_data: TextData | Iterable[str | Path] | None = None,
        epochs: float = 1,
        batch_tokens: int = 65_536,
        lr: float = 2e-4,
        amp: Literal["bf16", "fp16", "fp32"] = "bf16",
        ddp: Literal["auto", "on", "off"] = "auto",
        **train_options: Any,
    ) -> LanguageModel:
        """Trains, and keeps the weights that were best on validation text, or the last ones. Returns itself.

        Another call goes on from these weights, in a run of its own, with its own options; the tokenizer stays.
        train_options: see FitOptions. Ctrl-C ends it after the step in hand; the weights are kept.
        """
        given = {"epochs": epochs, "batch_tokens": batch_tokens, "lr": lr, "amp": amp, "ddp": ddp, **train_options}
        options: FitOptions = registry.check(FitOptions, given, "fit")
        if not isinstance(data, TextData):
            raise Refusal(f"fit: data is {type(data).__name__}; make it with TextData(...)")
        before = self._opened
        if before is None and self.vocab_size not in (None, data.vocab_size):
            raise Refusal(f"vocab_size: is {self.vocab_size}, and the data has {data.vocab_size} tokens; give that")
        home = _Home() if options.checkpoint_dir is None else None
        folder = home.folder / "model" if home is not None else options.checkpoint_dir
        assert folder is not None
        if folder.is_file():
            raise Refusal(f"checkpoint_dir: {folder} is a file; give a folder")
        if before is not None and RunFolder(folder).exists():
            raise Refusal(f"checkpoint_dir: {folder} holds a run, and this model goes on in a new one; give another")
        training = start(options, self._recipe, data, val_data, before, folder)
        follow(training)
        self._opened = build.open_model(training.run)
        self._data, self.vocab_size = data, self._opened.network.n_vocab
        training.accelerator.wait_for_everyone()  # the folder of the weights before may go now
        self._home = home
        if training.state == "interrupted":
            raise KeyboardInterrupt
        return self

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        top_k: int | None = None,
        top_p: float | None = 0.9,
        temperature: float | None = 1.0,
        repetition_penalty: float | None = None,
        *,
        seed: int | None = None,
    ) -> str:
        """What follows the prompt, without it; up to the end of the text, where the model writes one.

        None: as the run's recipe says, which is no filter where `fit` made it. seed None: from torch's own generator.
        """
        if not isinstance(prompt, str):
            raise Refusal(f"prompt: is {type(prompt).__name__}; give a string, or a list to generate_batch")
        settings = (max_new_tokens, top_k, top_p, temperature, repetition_penalty)
        return self.generate_batch([prompt], *settings, seed=seed)[0]

    @in_python_words()
    def generate_batch(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        top_k: int | None = None,
        top_p: float | None = 0.9,
        temperature: float | None = 1.0,
        repetition_penalty: float | None = None,
        *,
        seed: int | None = None,
    ) -> list[str]:
        """`generate` of several prompts at once, through one cache. Row i draws from (seed, i), whatever the others."""
        model = self.opened
        given = [None] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else list(prompts)
        prompts = [prompt for prompt in given if isinstance(prompt, str)]
        if len(prompts) < len(given):
            raise Refusal("prompts: give a list of strings")
        _refuse_unless_whole("max_new_tokens", max_new_tokens, 1)
        if seed is not None:
            _refuse_unless_whole("seed", seed, 0)
        if not prompts:
            return []
        sampler = model.parts.sampler
        known = {*type(sampler).model_fields, *type(getattr(sampler, "inside", sampler)).model_fields}
        asked = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "repetition_penalty": repetition_penalty}
        fields = {k: v for k, v in asked.items() if v is not None and (k in known or USUAL_SAMPLING.get(k) != v)}
        limit = model.parts.backbone.max_length
        if limit is not None and max_new_tokens == sampling.USUAL_NEW_TOKENS:  # nobody asked for just so many
            longest = max(len(model.tokenizer.encode(prompt)) + 1 for prompt in prompts)
            room = max(1, limit - longest)
            if room < max_new_tokens:
                message = f"max_new_tokens: the model's context is {limit} tokens, which leaves room for {room}"
                warnings.warn(message, ArmillaryWarning, stacklevel=2)
            max_new_tokens = min(max_new_tokens, room)
        manner = sampling.settings(model.parts, model.tokenizer, prompts, fields, int(max_new_tokens))
        drawn = int(torch.randint(2**31, ())) if seed is None else int(seed)
        return [found.text for found in sampling.from_model(model, prompts, manner, drawn)]

    @in_python_words()
    def evaluate(self, data: TextData | Iterable[str | Path] | None = None) -> dict[str, Any]:
        """The likelihood of a text, as `armillary evaluate --json` gives it: bits_per_byte, kind, interval, protocol.

        Of a TextData with a val_split it is the validation part that is scored, else all of it. None: the last split of
        the text that it was trained on (test, else validation, else train, with a warning); the first of several.
        """
        model = self.opened
        if data is None:
            return evaluating.evaluate(model, evaluating.Wanted(root=self._root))[0]
        own = model.run.recipe()
        with warnings.catch_warnings():  # a text to measure may well be short
            warnings.filterwarnings("ignore", ".*do not fill a window", ArmillaryWarning)
            text = as_data(data, model.run.tokenizer, own["packing"]["window"])
            raw = {**own, "corpora": text.recipe["corpora"], "mixture": []}
            packed = text.prepare(raw, model.run.tokenizer).packed["text"]
        return evaluating.evaluate(model, evaluating.Wanted(packed=packed))[0]

    @in_python_words()
    def info(self) -> dict[str, Any]:
        """What it is, as `armillary info --json` says it."""
        return inspecting.inspect(self.opened, self._root)

    def save(self, path: str | Path) -> None:
        """A folder that `load` opens, and every command that takes a run. An earlier save there is replaced.

        It holds the tokenizer, the weights with their optimizer, the recipe and the record of the training.
        """
        model, folder = self.opened, Path(path)
        if folder.exists() and not _is_saved(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise Refusal(f"{folder}: is there already, and `save` did not make it; give a new folder")
        if os.environ.get("RANK", "0") != "0":  # of several processes the first one writes
            return
        checkpoint = model.run.checkpoint(model.step)
        artefact.read(checkpoint)
        with artefact.writing(folder, KIND, {"step": model.step}) as beside:
            for file in ("recipe.yaml", "run.json", "metrics.jsonl", "events.jsonl"):
                if (model.run.path / file).is_file():
                    shutil.copy2(model.run.path / file, beside)
            for part in (model.run.tokenizer, checkpoint):
                shutil.copytree(part, beside / part.relative_to(model.run.path))
            RunFolder(beside).update_facts(name=folder.name)


def _refuse_unless_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise Refusal(f"{name}: is {value!r:.60}; give a whole number, at least {least}")


class _Home:
    """A temporary folder as long as something refers to it."""

    def __init__(self) -> None:
        self.folder = temporary(self)


def _is_saved(folder: Path) -> bool:
    return (folder / artefact.MANIFEST).is_file() and artefact.read(folder, verify=False).kind == KIND
