"""Several objectives at once, by weight: autoregression and masked diffusion in one network, or an auxiliary loss.

Source: dual training, arXiv 2512.14549; masked inputs beside the usual ones, arXiv 2510.04071.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from armillary import registry
from armillary.contracts import Batch, Loss, Network, Objective
from armillary.recipe import Choice, Section
from armillary.records import Kind
from armillary.registry import Compound


class Term(Section):
    weight: float = Field(gt=0)
    objective: Choice


class Mixture(Compound):
    """terms by name; the first one is what the model is judged by. Each term's nats are logged under its name."""

    terms: dict[str, Term] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def terms_are_no_mixtures(cls, terms: dict[str, Term]) -> dict[str, Term]:
        if any(term.objective.name == "mixture" for term in terms.values()):
            raise ValueError("a term of a mixture is no mixture; name its terms here")
        return terms

    @cached_property
    def objectives(self) -> dict[str, Objective]:
        return {
            name: registry.make("objectives", term.objective.name, term.objective.fields, self._folders)
            for name, term in self.terms.items()
        }

    @property
    def first(self) -> Any:
        return next(iter(self.objectives.values()))

    @property
    def kind(self) -> Kind:
        return self.first.kind

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(view for objective in self.objectives.values() for view in objective.views))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(objective.needs for objective in self.objectives.values()))

    @property
    def n_extra_embeddings(self) -> int:
        return max(objective.n_extra_embeddings for objective in self.objectives.values())

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {}
        for name, objective in self.objectives.items():
            found = objective.draw(n_rows, n_tokens, generator)
            drawn |= {f"{name}.{key}": value for key, value in found.items()}
        return drawn

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        """nats are those of the first term."""
        losses = {name: o.loss(network, batch, _of(name, draws)) for name, o in self.objectives.items()}
        total = sum((self.terms[name].weight * loss.total for name, loss in losses.items()), torch.zeros(()))
        parts = {name: loss.nats for name, loss in losses.items()}
        for name, loss in losses.items():
            parts |= {f"{name}.{key}": value for key, value in loss.parts.items()}
        first = next(iter(losses.values()))
        assert isinstance(total, Tensor)
        return Loss(total, first.nats, first.n_tokens, parts)

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        return self.first.score(network, batch, _of(next(iter(self.terms)), draws))

    def offering(self, view: str) -> Any:
        """The term whose model offers that view."""
        return next(objective for objective in self.objectives.values() if view in objective.views)


def _of(name: str, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in draws.items() if key.startswith(f"{name}.")}
