"""One recipe = one run. Parts are {name, fields}; YAML, JSON or TOML; `extends:` another; `--set a.b=c` on top.

This file knows the sections and the numbers of the loop. What fields a part has is the part's own business: the
registry checks them where the recipe is assembled.
"""

from __future__ import annotations

import copy
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from armillary.refusal import Refusal, nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(BaseModel):
    """A part: its name (a file of its room) and its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Corpus(Section):
    """Where text comes from, and how it is split where the source brings no splits of its own; 0: it is not."""

    source: Choice
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)


class Packing(Section):
    """Rows of window + 1 tokens, one every `stride` tokens (the window where it is not set).

    isolate_documents: those that share a row do not see each other; "padded": no row holds two.
    """

    window: int = Field(ge=2)
    stride: int | None = Field(default=None, ge=1)
    max_rows: int | None = Field(default=None, ge=1)
    isolate_documents: bool | Literal["padded"] = False

    @model_validator(mode="after")
    def rows_leave_no_gap(self) -> Packing:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} is more than the window, {self.window}: tokens would be in no row")
        return self


class Model(Section):
    backbone: Choice
    tied: bool = True


class Phase(Section):
    """Weights of the corpora, by name, until that many training tokens (None: to the end)."""

    weights: dict[str, float]
    until_tokens: int | None = None


class Training(Section):
    """The loop. One of batch_rows and batch_tokens; every `..._every` counts optimizer steps."""

    steps: int = Field(ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Choice
    schedule: Choice
    clip: float | None = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    deterministic: bool = True
    ema: float | None = Field(default=None, gt=0, lt=1)
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=500, ge=1)
    validation_rows: int | None = Field(default=None, ge=1)
    sample_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    early_stop: int | None = Field(default=None, ge=1)
    on_non_finite: Literal["stop", "roll_back"] = "stop"
    track: list[Literal["tensorboard", "wandb"]] = []

    @model_validator(mode="after")
    def one_batch_size(self) -> Training:
        if (self.batch_rows is None) == (self.batch_tokens is None):
            raise ValueError("set exactly one of batch_rows and batch_tokens")
        return self


class Evaluation(Section):
    """Windows of the sliding evaluation, in tokens; None: the packing's window, and half of it as stride."""

    window: int | None = Field(default=None, ge=2)
    stride: int | None = Field(default=None, ge=1)
    batch_rows: int = Field(default=16, ge=1)


class Sampling(Section):
    """Samples written while training, and what `sample` does where it is not told otherwise.

    sampler: None takes what fits the objective. max_new_tokens: of a text; None: what the sampler says, or 64.
    precision and compile are those of `sample`: compiling costs ten seconds, and decodes thrice as fast.
    """

    prompts: list[str] = Field(default=[""], min_length=1)
    sampler: Choice | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    seed: int = Field(default=42, ge=0)
    parts: list[str] = []
    corpora: dict[str, Corpus] = Field(min_length=1)
    tokenizer: Choice
    packing: Packing
    mixture: list[Phase] = []
    model: Model
    objective: Choice
    training: Training
    evaluation: Evaluation = Evaluation()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def mixture_names_corpora(self) -> Recipe:
        for phase in self.mixture:
            if set(phase.weights) != set(self.corpora):
                raise ValueError(
                    f"mixture: weights name {sorted(phase.weights)}, the corpora are {sorted(self.corpora)}"
                )
            if min(phase.weights.values()) < 0 or sum(phase.weights.values()) <= 0:
                raise ValueError("mixture: weights must be at least 0 and not all 0")
        ends = [phase.until_tokens for phase in self.mixture]
        if ends and ends[-1] is not None:
            raise ValueError("mixture: the last phase goes on to the end; leave its until_tokens out")
        if any(end is None for end in ends[:-1]) or ends[:-1] != sorted(e for e in ends[:-1] if e is not None):
            raise ValueError("mixture: until_tokens must rise, and only the last phase leaves it out")
        return self

    def as_yaml(self) -> str:
        data = self.model_dump(mode="json")
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        return (
            text if yaml.safe_load(text) == data else yaml.safe_dump(data, sort_keys=False)
        )  # U+0085 is lost otherwise


def shipped() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    folder = Path(str(importlib.resources.files("armillary") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def raw(recipe: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain data of a recipe (its name, file, or the data itself): `extends` merged, then each `a.b=c`.

    Raises Refusal where it is not found.
    """
    if isinstance(recipe, str):
        return override(_read(recipe), overrides)
    below = _read(str(recipe["extends"])) if recipe.get("extends") is not None else {}
    return override(merge(below, {key: value for key, value in recipe.items() if key != "extends"}), overrides)


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The data with each `a.b=c` set; the value is YAML. A corpus set to null is left out.

    Raises Refusal for one that cannot be read.
    """
    for one in overrides:
        key, sign, value = one.partition("=")
        if not sign or not key.strip():
            raise Refusal(f"--set {one}: write it as key=value, such as training.steps=100")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise Refusal(f"--set {one}: the value is not YAML; put quotes around it") from None
        data = merge(data, _nested(key.strip().split("."), parsed, data, one))
    corpora = data.get("corpora")
    if isinstance(corpora, Mapping):
        data = {**data, "corpora": {name: corpus for name, corpus in corpora.items() if corpus is not None}}
    return data


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe `above` over one `below`, mapping by mapping. A part of another name replaces the part whole."""
    out = dict(below)
    for key, value in above.items():
        inner = out.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            is_other_part = "name" in inner and value.get("name", inner["name"]) != inner["name"]
            out[key] = value if is_other_part else merge(inner, value)
        else:
            out[key] = value
    return copy.deepcopy(out)


def _nested(path: list[str], value: Any, data: Mapping[str, Any], override: str) -> dict[str, Any]:
    if path[0].isdigit() or isinstance(data, list):
        raise Refusal(f"--set {override}: lists are set whole, such as sampling.prompts='[one, two]'")
    if len(path) == 1:
        return {path[0]: value}
    inner = data.get(path[0], {})
    return {path[0]: _nested(path[1:], value, inner if isinstance(inner, Mapping) else {}, override)}


def _read(name_or_path: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = _locate(name_or_path, seen[-1].parent if seen else Path())
    if path in seen:
        raise Refusal(f"{path}: extends itself through {' → '.join(p.name for p in seen)}; break the circle")
    data = _parse(path)
    if not isinstance(data, dict):
        raise Refusal(f"{path}: holds {type(data).__name__}, not a recipe; write keys and values")
    parent = data.pop("extends", None)
    if "parts" in data:
        if not isinstance(data["parts"], list):
            raise Refusal(f"{path}: 'parts' is a list of folders; write parts: [{data['parts']}]")
        data["parts"] = [str((path.parent / folder).resolve()) for folder in data["parts"]]
    return merge(_read(str(parent), (*seen, path)), data) if parent is not None else data


def _locate(name_or_path: str, beside: Path) -> Path:
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    for path in (beside / name_or_path, Path(name_or_path)):
        if path.is_file():
            return path.resolve()
    if Path(name_or_path).suffix in {".yaml", ".yml", ".json", ".toml"}:
        raise Refusal(f"{name_or_path}: no such recipe file")
    raise Refusal(f"no recipe is called '{name_or_path}'; {nearest(name_or_path, known)}")


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        match path.suffix:
            case ".json":
                return json.loads(text)
            case ".toml":
                return tomllib.loads(text)
            case _:
                return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        first_line = str(error).replace("\n", " ")[:160]
        raise Refusal(f"{path}: cannot be read as {path.suffix.lstrip('.') or 'YAML'}: {first_line}") from None
