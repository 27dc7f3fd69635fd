"""Training by recipe, and any run opened again: what the commands `train` and `sample` do first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from armillary.assemble import build, training
from armillary.language_model.fitting import follow, logger
from armillary.language_model.model import LanguageModel
from armillary.language_model.wording import in_python_words
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder, open_run


@in_python_words()
def train(  # noqa: PLR0913
    recipe: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    name: str | None = None,
    minutes: float | None = None,
    resume: bool = False,
    root: str | Path = ".",
) -> RunFolder:
    """`armillary train`: a recipe (its name, file, or the data itself) and a text → a trained run, under ROOT/runs.

    overrides: what `--set` takes, {"training.steps": 100}. Raises Refusal before any work where something is wrong.
    Ctrl-C saves and stops; resume goes on.
    """
    if not isinstance(overrides, Mapping | None):
        raise Refusal(f"overrides: is {type(overrides).__name__}; give a mapping such as {{'training.steps': 100}}")
    request = training.Request(
        recipe=recipe if isinstance(recipe, Mapping) else str(recipe),
        overrides=[f"{key}={_yaml(value)}" for key, value in (overrides or {}).items()],
        data=None if data is None else Path(data),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        name=name,
        minutes=minutes,
        resumes=resume,
        root=Path(root),
    )
    run = training.start(training.check(request), logger.info)
    follow(run)
    if run.state == "interrupted":
        raise KeyboardInterrupt
    return run.run


@in_python_words()
def load(
    run: RunFolder | str | Path, *, checkpoint: str | int = "best", device: str = "auto", root: str | Path = "."
) -> LanguageModel:
    """A trained run as a model: by name (under ROOT/runs), by folder, or as `train` returned it.

    checkpoint: "best" (on validation), "last", or a step.
    """
    folder = run if isinstance(run, RunFolder) else open_run(str(run), Path(root))
    return LanguageModel.of(build.open_model(folder, str(checkpoint), device), Path(root))


def _yaml(value: Any) -> str:
    plain = str(value) if isinstance(value, Path) else value
    try:
        return yaml.safe_dump(plain, default_flow_style=True, width=1_000_000_000)
    except yaml.YAMLError:
        raise Refusal(
            f"overrides: {value!r:.60} is no plain value; give numbers, strings, lists and mappings"
        ) from None
