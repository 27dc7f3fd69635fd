"""A draw from a flow over latents: noise, the flow backwards, and a token from each latent, all at once.

Source: Lippe & Gavves 2021, arXiv 2006.09790, for the model it draws from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from armillary.contracts import Given, State
from armillary.contracts import Latent as LatentView
from armillary.corruption.categorical import draw
from armillary.registry import Part
from armillary.samplers._parallel import possible, tempered, uniform


class Latent(Part):
    """temperature: of each token's law; 0 takes the likeliest token of a latent."""

    views: ClassVar[tuple[str, ...]] = ("latent",)

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    def run(self, view: LatentView, given: Given, generators: Sequence[torch.Generator]) -> Iterator[State]:
        shape = (given.tokens.shape[1], view.n_numbers + 1)
        u = uniform(generators, shape, given.tokens.device)
        log_p = possible(view.log_p(torch.special.ndtri(u[..., 1:].clamp(min=2**-60)), given))
        is_open = ~given.is_given
        found = draw(tempered(log_p, self.temperature).double().exp(), u[..., 0][is_open])
        yield State(given.tokens.masked_scatter(is_open, found), 1.0)
