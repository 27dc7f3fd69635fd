"""A flow over latents of tokens: a bound on the likelihood of text, through a density that is exact.

Source: categorical normalising flows, Lippe & Gavves 2021, arXiv 2006.09790; affine couplings: Dinh et al. 2016, arXiv
1605.08803. log p(x) ≥ E_q[log p(z) + log p(x|z) - log q(z|x)].
Differs: a token's latent is both streams of the backbone, 2 · d numbers that an encoder draws, and never an embedding
written twice, which has no density. Given tokens keep the means of theirs, and the flow is one of the others alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Batch, Loss, Network
from armillary.objectives._masking import layout_of, undecided
from armillary.records import Kind
from armillary.registry import Part


class EmbeddingFlow(Part):
    """Alone, or as a term of a mixture beside a denoising loss on the same backbone."""

    @property
    def kind(self) -> Kind:
        return "monte_carlo_bound"

    @property
    def views(self) -> tuple[str, ...]:
        return ("latent",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"encoder"})

    @property
    def n_extra_embeddings(self) -> int:
        return 0

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A seed a row: how many numbers it takes is the network's to say."""
        return {"seed": torch.randint(2**62, (n_rows,), generator=generator)}

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        _, latent, decoding = self._nats(network, batch, draws)
        total = (latent + decoding).sum()
        return Loss(total, total.detach(), batch.scored[:, 1:].sum(), {"decoding": decoding.sum().detach()})

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        where, latent, decoding = self._nats(network, batch, draws)
        out = torch.zeros(where.shape, dtype=latent.dtype, device=latent.device)
        out[where] = latent + decoding
        return out

    def _nats(
        self, network: Network, batch: Batch, draws: dict[str, Tensor]
    ) -> tuple[Bool[Tensor, "B T"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(where, log q(z|x) - log p(z) there, -log p(x|z) there)."""
        owner: Any = cast(Any, network)  # of an encoder and a flow: what `needs` asked for
        tokens, where = batch.tokens[:, 1:], undecided(batch)
        mean, log_std = owner.encode(tokens)
        noise = torch.where(where[..., None], _normal(draws["seed"], mean), 0.0)
        end, stretched, rows = owner.flow(mean + log_std.exp() * noise, layout_of(batch), where)
        # The constants of both Gaussians cancel.
        latent = (end.square() - noise.square()).sum(-1) / 2 - log_std.sum(-1) - stretched
        return where, latent[where], network.head.nll(rows[where], tokens[where])


@torch._disable_dynamo  # a compiler takes no generator
def _normal(seeds: Int[Tensor, " B"], like: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
    """The same for every device, and for a row's first tokens whatever follows them."""
    u = [torch.rand(like.shape[1:], dtype=torch.float64, generator=_seeded(s)) for s in seeds.tolist()]
    return torch.special.ndtri(torch.stack(u).clamp(min=2**-60)).to(like)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
