"""Masked (absorbing) diffusion: hidden tokens are predicted from those that are left; the likelihood is a bound.

Source: Sahoo et al. 2024 (MDLM), arXiv 2406.07524; Shi et al. 2024, arXiv 2406.04329.
Differs: the weight is n / k for k hidden of n tokens, in place of a time; draws are stratified over the global batch
and come as a set and its complement, so that a step costs two forward passes and every token is predicted once.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.schedules import LogLinear, Schedule, end
from armillary.objectives import _masking
from armillary.objectives._masking import Masking, layout_of, twice, undecided
from armillary.records import Kind
from armillary.registry import Part


class MaskedDiffusion(Part):
    """estimator: "count" (k of n hidden), "time" (t under the schedule), or "rate" (a fixed share hidden: a training
    loss of older recipes that bounds nothing; scores use the count).

    pairs: each set of hidden tokens with its complement. drop_given: how often the given tokens of a row (a prompt) are
    hidden too while training, for guidance.
    """

    estimator: Literal["count", "time", "rate"] = "count"
    pairs: bool = True
    schedule: Schedule = LogLinear()
    rate: float | None = Field(default=None, gt=0, le=1)
    drop_given: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def rate_belongs_to_its_estimator(self) -> MaskedDiffusion:
        if (self.rate is None) == (self.estimator == "rate"):
            raise ValueError("set rate with estimator: rate, and only there")
        return self

    @model_validator(mode="after")
    def schedule_ends_with_all_hidden(self) -> MaskedDiffusion:
        if end(self.schedule) > _masking.MOST_LEFT:
            raise ValueError("schedule: alpha(1) must be 0, as texts are written from MASK alone; set floor to 0")
        return self

    @property
    def kind(self) -> Kind:
        return "monte_carlo_bound"

    @property
    def views(self) -> tuple[str, ...]:
        return ("absorbing",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"float64"} if self.estimator == "time" else ())

    @property
    def n_extra_embeddings(self) -> int:
        return 1

    def corruption(self, n_vocab: int) -> Absorbing:
        return Absorbing(n_vocab, self.schedule)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "level": _masking.stratified(n_rows, generator),
            "order": _masking.random_order(n_rows, n_tokens, generator),
            "u": torch.rand(n_rows, n_tokens, generator=generator),
            "drop": torch.rand(n_rows, generator=generator),
        }

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        masking = self._masking(undecided(batch), draws)
        dropped = (draws["drop"] < self.drop_given)[:, None] if self.drop_given else None
        total, nats = self._weighted_nats(network, batch, masking, dropped)
        return Loss(total, nats.sum(), batch.scored[:, 1:].sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        masking = _masking.by_count(undecided(batch), draws["order"], draws["level"], self.pairs)
        _, nats = self._weighted_nats(network, batch, masking)
        return nats.unflatten(0, (-1, batch.tokens.shape[0])).sum(0)

    def score_where(
        self, network: Network, batch: Batch, hidden: Bool[Tensor, "B T"], asked: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        return self._weighted_nats(network, batch, Masking(hidden, asked.float()))[1]

    def log_p0(
        self,
        network: Network,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        t: Float[Tensor, " B"],
        where: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "n V"]:
        """The denoiser as a sampler sees it. It does not depend on t."""
        return network.head.log_p(network.hidden(tokens, layout)[where])

    def _masking(self, open_: Bool[Tensor, "B T"], draws: dict[str, Tensor]) -> Masking:
        if self.estimator == "count":
            return _masking.by_count(open_, draws["order"], draws["level"], self.pairs)
        if self.estimator == "time":
            return _masking.by_time(open_, draws["u"], draws["level"], self.schedule, self.pairs)
        assert self.rate is not None
        hidden = open_ & (draws["u"] < self.rate)
        return Masking(hidden, hidden / self.rate)

    def _weighted_nats(
        self, network: Network, batch: Batch, masking: Masking, dropped: Bool[Tensor, "B 1"] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "R T"]]:
        """(what is differentiated, the weighted nats of each position, detached)."""
        tokens, layout = batch.tokens[:, 1:], layout_of(batch)
        unseen = masking.hidden
        is_paired = unseen.shape[0] != tokens.shape[0]
        if dropped is not None:
            given = dropped & ~undecided(batch)
            unseen = unseen | (torch.cat([given, given]) if is_paired else given)
        if is_paired:
            tokens, layout = torch.cat([tokens, tokens]), twice(layout)
        rows = network.hidden(torch.where(unseen, network.n_vocab, tokens), layout)
        return _masking.weighted_nats(network, rows, tokens, masking.weight)
