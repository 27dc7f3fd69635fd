"""The view of a causal model that a left-to-right sampler has: see contracts.NextToken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armillary.contracts import Cache, Layout
from armillary.model.network import LanguageNetwork


class CachedNextToken:
    """Slots are rows of one preallocated cache. `start` takes prompts of mixed lengths in one pass.

    compiled: steps in which every slot advances run compiled; the first one pays for it, about ten seconds.
    """

    def __init__(self, network: LanguageNetwork, n_slots: int, capacity: int, *, compiled: bool = False) -> None:
        self.network = network
        self.cache = network.allocate(n_slots, capacity)
        self.device = network.embedding.weight.device
        self._step = torch.compile(_Step(network, self.cache.whole()), dynamic=False) if compiled else None

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    @property
    def n_slots(self) -> int:
        return self.cache.lengths.shape[0]

    @torch.inference_mode()
    def start(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Float[Tensor, "n V"]:
        self.release(slots)
        lengths = torch.tensor([len(p) for p in prompts])
        longest = int(lengths.max())
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        is_real = torch.arange(longest) < lengths[:, None]
        segments = None if bool(is_real.all()) else torch.where(is_real, 0, -1).to(self.device)
        last = (torch.arange(len(prompts)), lengths - 1)
        return self._log_p(slots, tokens, Layout("causal", segments=segments), last)

    @torch.inference_mode()
    def advance(self, slots: Sequence[int], tokens: Int[Tensor, " n"]) -> Float[Tensor, "n V"]:
        if self._step is not None and list(slots) == list(range(self.n_slots)):
            return self._step(tokens[:, None].to(self.device))
        last = (torch.arange(len(slots)), torch.zeros(len(slots), dtype=torch.long))
        return self._log_p(slots, tokens[:, None], Layout("causal"), last)

    def release(self, slots: Sequence[int]) -> None:
        self.cache.reset(torch.tensor(slots, dtype=torch.long))

    def _log_p(
        self, slots: Sequence[int], tokens: Tensor, layout: Layout, last: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "n V"]:
        # All slots in order need no gather of the cache; a part of them is copied out of it, layer by layer.
        is_all = list(slots) == list(range(self.n_slots))
        cache = self.cache if is_all else self.cache.at(torch.tensor(slots, device=self.device))
        hidden = self.network.hidden(tokens.to(self.device), layout, cache=cache)
        return self.network.head.log_p(hidden[last])


class _Step(torch.nn.Module):
    """One more token for every slot."""

    def __init__(self, network: LanguageNetwork, cache: Cache) -> None:
        super().__init__()
        self.network, self.cache = network, cache

    def forward(self, tokens: Int[Tensor, "n 1"]) -> Float[Tensor, "n V"]:
        hidden = self.network.hidden(tokens, Layout("causal"), cache=self.cache)
        return self.network.head.log_p(hidden[:, 0])
