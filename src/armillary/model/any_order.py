"""The view of a causal model that reads and writes in any order: see contracts.AnyOrder.

Source: Pannatier et al. 2024 (σ-GPT), arXiv 2404.09562, sections 2 and 4.
Differs: a draft is one pass 2 L wide under the mask of blocks of one token (arXiv 2503.09573): the known tokens are its
clean half, and each place that is asked for is a block of its own in the other half, so that none sees another.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import BOS, Layout, Network
from armillary.model.denoise import without
from armillary.objectives.any_order import reading


class AnyOrderView:
    """first: the token that every row is read behind, and that is never predicted. forbidden: ids never written."""

    def __init__(self, network: Network, forbidden: Collection[int] = frozenset(), first: int = BOS) -> None:
        self.network, self.forbidden, self.first = network, frozenset(forbidden), first

    @property
    def n_vocab(self) -> int:
        return self.network.n_vocab

    @torch.inference_mode()
    def draft(
        self, tokens: Int[Tensor, "B L"], order: Int[Tensor, "B L"], n_known: Int[Tensor, " B"]
    ) -> Float[Tensor, "n V"]:
        inputs, at, to = self._read(tokens, order)
        is_known = torch.arange(order.shape[1], device=order.device) < n_known[:, None]
        # The last known token is read at slot n_known, as the one that predicts what comes next. Here every slot from
        # there on is that token, each asking for its own place; of the others it sees the slots below n_known.
        last = n_known.clamp(max=order.shape[1] - 1)[:, None].expand_as(order)
        # Segments two halves wide: asked slots and known ones together, and all that is neither apart.
        segments = torch.cat([torch.where(is_known, -1, 0), torch.where(is_known, 0, -1)], dim=1)
        layout = Layout(
            "blocks",
            segments=segments,
            positions=torch.cat([at.gather(1, last), at], dim=1),
            target_positions=torch.cat([to, to], dim=1),
            block=1,
        )
        hidden = self.network.hidden(torch.cat([inputs.gather(1, last), inputs], dim=1), layout)
        return without(self.network.head.log_p(hidden[:, : order.shape[1]][~is_known]), self.forbidden)

    @torch.inference_mode()
    def verify(
        self, tokens: Int[Tensor, "B L"], order: Int[Tensor, "B L"], where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "n V"]:
        rows = where.any(1).nonzero()[:, 0]
        if rows.numel() == 0:
            return torch.empty(0, self.n_vocab, device=tokens.device)
        n_read = int(where.any(0).nonzero().max()) + 1  # nothing after the last slot asked for is seen
        inputs, at, to = (x[:, :n_read] for x in self._read(tokens[rows], order[rows]))
        hidden = self.network.hidden(inputs, Layout("causal", positions=at, target_positions=to))
        return without(self.network.head.log_p(hidden[where[rows, :n_read]]), self.forbidden)

    def _read(
        self, tokens: Int[Tensor, "B L"], order: Int[Tensor, "B L"]
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """(what each slot reads, where that stands, which position it predicts)."""
        layout = reading(order)
        assert layout.positions is not None and layout.target_positions is not None
        read = torch.nn.functional.pad(tokens.gather(1, order)[:, :-1], (1, 0), value=self.first)
        # What is not known has no embedding, and nobody who is asked sees what stands for it.
        read = torch.where(read < self.n_vocab, read, self.first)
        return read, layout.positions, layout.target_positions
