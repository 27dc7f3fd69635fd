"""The small Python surface: text, a model, training by recipe, and trained runs opened again."""

from armillary.language_model.model import LanguageModel
from armillary.language_model.runs import load, train
from armillary.language_model.text_data import TextData

__all__ = ["LanguageModel", "TextData", "load", "train"]
