"""The view of a flow over latents: see contracts.Latent."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from armillary.contracts import Given, Layout
from armillary.model.denoise import without
from armillary.model.network import LanguageNetwork


class LatentView:
    """The flow backwards, behind what is given. forbidden: ids that are never written."""

    def __init__(self, network: LanguageNetwork, forbidden: Collection[int] = frozenset()) -> None:
        self.network, self.forbidden = network, frozenset(forbidden)

    @property
    def n_numbers(self) -> int:
        return 2 * self.network.embedding.weight.shape[1]

    @torch.inference_mode()
    def log_p(self, noise: Float[Tensor, "B L N"], given: Given) -> Float[Tensor, "n V"]:
        is_open, backbone = ~given.is_given, self.network.backbone
        assert callable(backbone.inverse) and callable(backbone.read), "a backbone that is a flow"
        mean, _ = self.network.encode(given.tokens)
        ends: Any = torch.where(is_open[..., None], noise.to(mean), mean).chunk(2, dim=-1)
        a, b = backbone.inverse(*ends, Layout("full"), where=is_open)
        return without(self.network.head.log_p(backbone.read(a, b)[is_open]), self.forbidden)
