"""Armillary: a laboratory for small language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armillary.language_model import LanguageModel, TextData, load, train

__version__ = "0.1.0"
__all__ = ["LanguageModel", "TextData", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """The Python surface, imported when it is first asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'armillary' has no attribute '{name}'")
    from armillary import language_model

    return getattr(language_model, name)


def __dir__() -> list[str]:
    return __all__
