"""Uniform-state diffusion: tokens are replaced by random ones, and nothing says which; the likelihood is a bound.

Source: Schiff et al. 2024 (UDLM), arXiv 2412.10193, eq. 19; Sahoo et al. 2025 (Duo), arXiv 2506.10892.
Differs: the head is read as the posterior of a token given all positions, its own noisy one included, and turned into
the one given all others, which is what the bound wants (arXiv 2605.22765). Each of the bound's terms is computed as
u (e^w - 1 - w) with w = log(v / u), which is never negative and does not cancel. The turn from one posterior into the
other stops growing below LEAST_NOISE. Any reading of the head gives a bound; without that, a head that leaves its own
noisy token a doubt of ε pays ε ∫ dt / t, which is infinite, and a clamped t would hide it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts import Batch, Layout, Loss, Network
from armillary.corruption.schedules import LogLinear, Schedule
from armillary.corruption.uniform import Uniform
from armillary.objectives import _masking
from armillary.objectives._masking import layout_of, undecided
from armillary.records import Kind
from armillary.registry import Part

LEAST_NOISE = 1e-3
"""1 - alpha below which the head is read as at this noise. A head that gives a clean token p pays at most about
(1 - p) / (p LEAST_NOISE) there, and (1 - p) log(1 / (p LEAST_NOISE)) in all."""


class UniformDiffusion(Part):
    """Needs a backbone that knows the noise level."""

    schedule: Schedule = LogLinear()

    @property
    def kind(self) -> Kind:
        return "monte_carlo_bound"

    @property
    def views(self) -> tuple[str, ...]:
        return ("uniform",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"noise_level", "float64"})

    @property
    def n_extra_embeddings(self) -> int:
        return 0

    def corruption(self, n_vocab: int) -> Uniform:
        return Uniform(n_vocab, self.schedule)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "level": _masking.stratified(n_rows, generator),
            "u": _masking.fine(n_rows, n_tokens, generator),
        }

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        own, extra = self._nats(network, batch, draws)
        total = (own + extra).sum()
        return Loss(total, total.detach(), batch.scored[:, 1:].sum(), {"prior": extra.sum()})

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        where = undecided(batch)
        own, extra = self._nats(network, batch, draws)
        out = torch.zeros(where.shape, dtype=own.dtype, device=own.device)
        out[where] = own + extra
        return out

    def log_p0(
        self,
        network: Network,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        t: Float[Tensor, " B"],
        where: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "n V"]:
        """Of the clean token, given all other positions."""
        rows = network.hidden(tokens, layout, _masking.levels(where, t[:, None]))[where]
        alpha = self.schedule.alpha(t)[:, None].expand(tokens.shape)[where]
        return leave_one_out(network.head.log_p(rows), tokens[where], alpha)

    def _nats(
        self, network: Network, batch: Batch, draws: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The bound at the undecided positions: its integrand, and what the end of the schedule owes beside it."""
        where, tokens = undecided(batch), batch.tokens[:, 1:]
        t = draws["level"][:, None].clamp(1e-5, 1 - 1e-5)
        corruption = self.corruption(network.n_vocab)
        noisy = torch.where(where, corruption.corrupt(tokens, t, draws["u"]), tokens)
        rows = network.hidden(noisy, layout_of(batch), _masking.levels(where, t))[where]
        alpha, slope = _masking.alpha_and_slope(self.schedule, t)
        extras = (x.expand(tokens.shape)[where] for x in (alpha, -slope))
        own = network.head.reduce(rows, integrand, tokens[where], noisy[where], *extras)
        return own, torch.full_like(own, corruption.prior_nats()).detach()


def leave_one_out(
    log_p: Float[Tensor, "n V"], noisy: Int[Tensor, " n"], alpha: Float[Tensor, " n"]
) -> Float[Tensor, "n V"]:
    """log p(x | all positions) → log p(x | all others): Bayes' rule backwards, for one token in V."""
    n_vocab = log_p.shape[1]
    alpha = alpha.double()
    likelier = torch.log1p(n_vocab * alpha / (1 - alpha).clamp(min=LEAST_NOISE)).to(log_p.dtype)
    return torch.log_softmax(log_p.scatter_add(1, noisy[:, None], -likelier[:, None]), dim=1)


def integrand(
    log_p: Float[Tensor, "n V"],
    clean: Int[Tensor, " n"],
    noisy: Int[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    rate: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """rate / (V alpha) Σ_j [u_j log(u_j / v_j) - u_j + v_j] of each position. rate = -d alpha / d t."""
    n_vocab = log_p.shape[1]
    factor = (rate.double() / (n_vocab * alpha.double())).to(log_p.dtype)
    log_others = torch.log1p(-alpha.double()).to(log_p.dtype)[:, None]
    log_own = (n_vocab * alpha.double()).log().to(log_p.dtype)[:, None]
    # log(V alpha x + 1 - alpha), of the clean token and of the model's guess
    log_guess = torch.logaddexp(log_own + leave_one_out(log_p, noisy, alpha), log_others)
    log_truth = log_others.expand_as(log_p).scatter(1, clean[:, None], torch.logaddexp(log_own, log_others))
    log_u = log_truth - log_truth.gather(1, noisy[:, None])
    log_v = log_guess - log_guess.gather(1, noisy[:, None])
    w = log_v - log_u
    return factor * (log_u.exp() * _masking.excess(w)).sum(1)
