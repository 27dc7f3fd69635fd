"""Score entropy: the ratios of the marginal law between neighbouring texts are learnt, without normalisation.

Source: Lou et al. 2023 (SEDD), arXiv 2310.16834, section 3.2, for the absorbing and the uniform corruption.
Differs: the absorbing ratios are written as logits over a known factor, log s_y = logit_y - log(e^σ - 1) - log V, so
that the loss is that of masked diffusion and Z - 1 - log Z beside it, Z the mean of e^logit, and needs no time; the
uniform one owes the distance between the end of its schedule and the prior.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.schedules import LogLinear, Schedule, end
from armillary.corruption.uniform import Uniform
from armillary.objectives import _masking
from armillary.objectives._masking import Masking, layout_of, twice, undecided
from armillary.records import Kind
from armillary.registry import Part


class ScoreEntropy(Part):
    """process "uniform" needs a backbone that knows the noise level. pairs: of the absorbing one, as in
    masked_diffusion."""

    process: Literal["absorbing", "uniform"] = "absorbing"
    schedule: Schedule = Field(
        default_factory=lambda data: LogLinear(floor=1e-3 if data.get("process") == "uniform" else 0.0)
    )
    pairs: bool = Field(default_factory=lambda data: data.get("process") != "uniform")

    @model_validator(mode="after")
    def schedule_ends_where_the_process_does(self) -> ScoreEntropy:
        left = end(self.schedule)
        if self.process == "absorbing" and left > _masking.MOST_LEFT:
            raise ValueError("schedule: alpha(1) must be 0, as texts are written from MASK alone; set floor to 0")
        if self.process == "uniform" and left <= 0:
            raise ValueError(
                "schedule: alpha(1) must be above 0, or the rate of noise is infinite; set log_linear with a floor"
            )
        return self

    @model_validator(mode="after")
    def pairs_belong_to_masks(self) -> ScoreEntropy:
        if self.process == "uniform" and self.pairs:
            raise ValueError("pairs: a set of replaced positions has no complement; leave it out or set it to false")
        return self

    @property
    def kind(self) -> Kind:
        return "monte_carlo_bound"

    @property
    def views(self) -> tuple[str, ...]:
        return (self.process,)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"noise_level", "float64"} if self.process == "uniform" else ())

    @property
    def n_extra_embeddings(self) -> int:
        return 1 if self.process == "absorbing" else 0

    def corruption(self, n_vocab: int) -> Absorbing | Uniform:
        return (Absorbing if self.process == "absorbing" else Uniform)(n_vocab, self.schedule)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn: dict[str, Tensor] = {"level": _masking.stratified(n_rows, generator)}
        if self.process == "absorbing":
            return drawn | {"order": _masking.random_order(n_rows, n_tokens, generator)}
        return drawn | {"u": _masking.fine(n_rows, n_tokens, generator)}

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        _, own, extra = self._nats(network, batch, draws)
        total = (own + extra).sum()
        name = "normalisation" if self.process == "absorbing" else "prior"
        return Loss(total, total.detach(), batch.scored[:, 1:].sum(), {name: extra.sum().detach()})

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        where, own, extra = self._nats(network, batch, draws)
        out = torch.zeros(where.shape, dtype=own.dtype, device=own.device)
        out[where] = own + extra
        return out.unflatten(0, (-1, batch.tokens.shape[0])).sum(0)

    def score_where(
        self, network: Network, batch: Batch, hidden: Bool[Tensor, "B T"], asked: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Of the normalised ratios; absorbing only."""
        assert self.process == "absorbing", "a uniform process does not say what it has hidden"
        own, _ = self._absorbing(network, batch, Masking(hidden, asked.float()))
        out = torch.zeros(asked.shape, dtype=own.dtype, device=own.device)
        out[asked] = own
        return out

    def log_p0(
        self,
        network: Network,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        t: Float[Tensor, " B"],
        where: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "n V"]:
        """Of the clean token, given all other positions: what the ratios say once they are normalised."""
        if self.process == "absorbing":
            return network.head.log_p(network.hidden(tokens, layout)[where])
        rows = network.hidden(tokens, layout, _masking.levels(where, t[:, None]))[where]
        alpha = self.schedule.alpha(t)[:, None].expand(tokens.shape)[where]
        return network.head.reduce(rows, _log_p0_of_ratios, tokens[where], alpha, normalised=False)

    def _nats(
        self, network: Network, batch: Batch, draws: dict[str, Tensor]
    ) -> tuple[Bool[Tensor, "R T"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(where, nats there, what is owed beside them): all differentiable."""
        if self.process == "absorbing":
            masking = _masking.by_count(undecided(batch), draws["order"], draws["level"], self.pairs)
            return masking.weight > 0, *self._absorbing(network, batch, masking)
        where = undecided(batch)
        return where, *self._uniform(network, batch, where, draws)

    def _absorbing(
        self, network: Network, batch: Batch, masking: Masking
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        tokens, layout = batch.tokens[:, 1:], layout_of(batch)
        if masking.hidden.shape[0] != tokens.shape[0]:
            tokens, layout = torch.cat([tokens, tokens]), twice(layout)
        rows = network.hidden(torch.where(masking.hidden, network.n_vocab, tokens), layout)
        where = masking.weight > 0
        found = network.head.reduce(rows[where], _nll_and_excess, tokens[where], normalised=False)
        weights = masking.weight[where].to(found.dtype)
        return weights * found[:, 0], weights * found[:, 1]

    def _uniform(
        self, network: Network, batch: Batch, where: Bool[Tensor, "B T"], draws: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        tokens = batch.tokens[:, 1:]
        t = draws["level"][:, None].clamp(min=1e-5)
        corruption = Uniform(network.n_vocab, self.schedule)
        noisy = torch.where(where, corruption.corrupt(tokens, t, draws["u"]), tokens)
        rows = network.hidden(noisy, layout_of(batch), _masking.levels(where, t))[where]
        alpha, slope = _masking.alpha_and_slope(self.schedule, t)
        extras = (x.expand(tokens.shape)[where] for x in (alpha, -slope / alpha))
        own = network.head.reduce(rows, ratio_entropy, tokens[where], noisy[where], *extras, normalised=False)
        return own, torch.full_like(own, corruption.prior_nats())


def _nll_and_excess(logits: Float[Tensor, "n V"], targets: Int[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """-log p of the target under the normalised logits, and Z - 1 - log Z."""
    total = logits.logsumexp(1)
    log_z = total - math.log(logits.shape[1])
    nll = total - logits.gather(1, targets[:, None]).squeeze(1)
    return torch.stack([nll, _masking.excess(log_z)], dim=1)


def ratio_entropy(
    logits: Float[Tensor, "n V"],
    clean: Int[Tensor, " n"],
    noisy: Int[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    rate: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """rate / V Σ_{y ≠ z} [s_y - r_y log s_y + r_y (log r_y - 1)], log s = logits. rate = dσ/dt."""
    n_vocab = logits.shape[1]
    alpha = alpha.double()[:, None]  # near t = 0, 1 - alpha is below what float32 can tell from 0
    log_others = torch.log1p(-alpha).to(logits.dtype)
    log_own = torch.log1p((n_vocab - 1) * alpha).to(logits.dtype)
    log_q = log_others.expand_as(logits).scatter(1, clean[:, None], log_own)
    log_r = log_q - log_q.gather(1, noisy[:, None])
    w = (logits - log_r).scatter(1, noisy[:, None], 0.0)  # y = z has no rate
    return (rate / n_vocab).to(logits.dtype) * (log_r.exp() * _masking.excess(w)).sum(1)


def _log_p0_of_ratios(
    logits: Float[Tensor, "n V"], noisy: Int[Tensor, " n"], alpha: Float[Tensor, " n"]
) -> Float[Tensor, "n V"]:
    """Ratios s_y of the noisy marginal give that marginal, and it is V alpha p + (1 - alpha), over V."""
    n_vocab, a = logits.shape[1], alpha.double()[:, None]
    marginal = torch.softmax(logits.double().scatter(1, noisy[:, None], 0.0), dim=1)
    p = ((marginal - (1 - a) / n_vocab) / a).clamp(min=1e-12)  # ratios that are not those of any p fall below 0
    return (p / p.sum(1, keepdim=True)).log().to(logits.dtype)
