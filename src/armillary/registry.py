"""A folder is a registry: the name of a file is the name of its part, and its fields are the configuration.

A part is the one public subclass of `Part` that a file defines. Parts outside the package live in a folder that mirrors
its rooms (`my_parts/backbones/toy.py`, `my_parts/text/sources/toy.py`) and is named by a recipe's `parts`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from armillary.refusal import Refusal, nearest


class Part(BaseModel):
    """A frozen, stateless part. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=False)


class Compound(Part):
    """A part with parts inside it, which may lie outside the package as it may itself."""

    _folders: tuple[Path, ...] = PrivateAttr(default=())

    def model_post_init(self, context: Any, /) -> None:
        self._folders = (context or {}).get("folders", ())


def names(room: str, folders: Sequence[Path] = ()) -> list[str]:
    """Names of the parts in a room, such as "backbones" or "text/sources"."""
    return sorted(_files(room, folders))


def find(room: str, name: str, folders: Sequence[Path] = ()) -> type[Part]:
    """The part's class. Raises Refusal where no file of the room has that name."""
    files = _files(room, folders)
    if name not in files:
        raise Refusal(f"{room}: no part is called '{name}'; {nearest(name, files)}")
    module = _load(room, name, files[name])
    parts = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Part)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(parts) != 1:
        raise Refusal(f"{files[name]}: defines {len(parts)} public parts; a part file defines exactly one")
    return parts[0]


def make(room: str, name: str, fields: Mapping[str, Any], folders: Sequence[Path] = ()) -> Any:
    """The part with its fields checked. `Any`: what each room's parts promise is in contracts."""
    return check(find(room, name, folders), fields, f"{room}/{name}", folders)


def check(model: type[BaseModel], fields: Mapping[str, Any], where: str, folders: Sequence[Path] = ()) -> Any:
    """A pydantic model from plain fields; its first error becomes one line. folders: where parts inside it may lie."""
    try:
        return model.model_validate(dict(fields), context={"folders": tuple(folders)})
    except ValidationError as error:
        raise Refusal(_one_line(error, model, where)) from None


def _one_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    # An unknown key is most often the cause of the other errors: tell it first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        owner = _owner(model, first["loc"][:-1])
        return f"{where}: unknown key '{path}'; {nearest(str(first['loc'][-1]), owner.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r:.80})"
    return f"{where}: '{path}': {message}{got}" if path else f"{where}: {message}"


def _owner(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    is_key = False
    for step in path:
        if is_key:  # a name that the recipe gives, such as a corpus's
            is_key = False
            continue
        field = model.model_fields.get(str(step))
        inner = field.annotation if field else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        is_key = getattr(inner, "__origin__", None) is dict
        model = next((c for c in candidates if inspect.isclass(c) and issubclass(c, BaseModel)), model)
    return model


def _files(room: str, folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in [Path(__file__).parent, *folders]:
        folder = root / room
        if root != Path(__file__).parent and not root.is_dir():
            raise Refusal(f"parts: no folder '{root}'; give a folder that mirrors the package's rooms")
        if folder.is_dir():
            found |= {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    return found


def _load(room: str, name: str, path: Path) -> ModuleType:
    if path.is_relative_to(Path(__file__).parent):
        return importlib.import_module(f"armillary.{room.replace('/', '.')}.{name}")
    module_name = f"armillary_parts.{room.replace('/', '.')}.{name}:{path}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # pydantic resolves annotations through sys.modules
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]
