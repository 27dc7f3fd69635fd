"""A language model: embedding + backbone + head."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from armillary.contracts import Backbone, BackbonePart, Cache, Layout
from armillary.nn.head import VocabularyHead
from armillary.nn.linear import Linear
from armillary.nn.sinusoidal import sinusoids


class LanguageNetwork(nn.Module):
    """See contracts.Network.

    The embedding has n_vocab + n_extra rows (an absorbing corruption's MASK is row V), the head n_vocab: the extra
    inputs have no probability by construction. Tied, the head is the first n_vocab rows of the embedding.

    is_told_targets: each position also receives the position it predicts, a sinusoidal code through one D × D matrix
    (Pannatier et al. 2024, arXiv 2404.09562, section 2). has_encoder: a token stands for a Gaussian over 2 D numbers.
    """

    def __init__(
        self,
        backbone: BackbonePart,
        n_vocab: int,
        *,
        tied: bool = True,
        n_extra: int = 0,
        is_told_targets: bool = False,
        has_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.n_vocab = n_vocab
        self.embedding = nn.Embedding(n_vocab + n_extra, backbone.width)
        self.backbone = backbone.build()
        self.output_head = None if tied else Linear(backbone.width, n_vocab, bias=False)
        self.target = Linear(backbone.width, backbone.width, bias=False) if is_told_targets else None
        self.encoder = Linear(backbone.width, 4 * backbone.width) if has_encoder else None
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.encoder is not None:  # means of unit size, far apart beside a deviation of 1/e
            nn.init.normal_(self.encoder.weight[: 2 * backbone.width], std=backbone.width**-0.5)
            nn.init.zeros_(self.encoder.weight[2 * backbone.width :])
            nn.init.zeros_(self.encoder.bias[: 2 * backbone.width])
            nn.init.constant_(self.encoder.bias[2 * backbone.width :], -1.0)
        if self.target is not None:
            nn.init.normal_(self.target.weight, std=0.02)
        if self.output_head is not None:
            nn.init.normal_(self.output_head.weight, std=0.02)

    @property
    def head(self) -> VocabularyHead:
        weight = self.embedding.weight[: self.n_vocab] if self.output_head is None else self.output_head.weight
        return VocabularyHead(weight)

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Last hidden state. A cache is written and advanced."""
        backbone = cast(Backbone, self.backbone)
        x = self.embedding(tokens)
        if self.target is not None and layout.target_positions is not None:
            x = x + self.target(sinusoids(layout.target_positions, x.shape[-1]).to(x.dtype))
        out = backbone(x, layout, noise_level, cache)
        if cache is not None:
            segments = layout.segments
            cache.advance(tokens.shape[1] if segments is None else (segments >= 0).sum(1).cpu())
        return out

    def encode(self, tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B L D2"], Float[Tensor, "B L D2"]]:
        """Mean and log of the deviation of what each token stands for: both streams of a bijective backbone."""
        assert self.encoder is not None, "an objective that needs an encoder says so"
        x = self.embedding(tokens)
        mean, log_std = self.encoder(torch.nn.functional.rms_norm(x, x.shape[-1:])).to(x.dtype).chunk(2, dim=-1)
        return mean, log_std

    def flow(
        self, z: Float[Tensor, "B L D2"], layout: Layout, where: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D2"], Float[Tensor, "B L"], Float[Tensor, "B L D"]]:
        """Where a bijective backbone takes latents, `where` alone, how far it stretches each position, and what the
        head reads of the latents."""
        backbone: Any = self.backbone
        a, b = z.chunk(2, dim=-1)
        *ends, stretched = backbone.streams(a, b, layout, where=where)
        return torch.cat(ends, dim=-1), stretched, backbone.read(a, b)

    def forward(self, tokens: Int[Tensor, "B L"], layout: Layout, noise_level: Any = None) -> Float[Tensor, "B L V"]:
        """log_p of every position: for small inputs and for looking, never for training."""
        hidden = self.hidden(tokens, layout, noise_level)
        return self.head.log_p(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    def allocate(self, n_rows: int, capacity: int) -> Cache:
        weight = self.embedding.weight
        backbone = cast(Backbone, self.backbone)
        return backbone.allocate(n_rows, capacity, device=weight.device, dtype=weight.dtype)


def count_parameters(network: LanguageNetwork) -> tuple[int, int]:
    """All parameters, and those that are no embedding (of tokens or positions) nor the output head."""
    every = sum(p.numel() for p in network.parameters())
    embeddings = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Embedding))
    if network.output_head is not None:
        embeddings += network.output_head.weight.numel()
    return every, every - embeddings


def meta_network(backbone: BackbonePart, n_vocab: int, *, tied: bool, **options: Any) -> LanguageNetwork:
    """The network without storage: to count a large one in no time. options: as LanguageNetwork takes them."""
    with torch.device("meta"):
        return LanguageNetwork(backbone, n_vocab, tied=tied, **options)
