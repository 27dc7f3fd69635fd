"""Uniform-state diffusion: tokens are replaced by random ones, and nothing says which; the likelihood is a bound.

Source: Schiff et al. 2024 (UDLM), arXiv 2412.10193, eq. 19; Sahoo et al. 2025 (Duo), arXiv 2506.10892.
Differs: the head is read as the posterior of a token given all positions, its own noisy one included, and turned into the
one given all others, which is what the bound wants (arXiv 2605.22765). Each of the bound's terms is computed as
u (e^w - 1 - w) with w = log(v / u), which is never negative and does not cancel.
"""

from __future__ import annotations

import math

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
        return frozenset({"noise_level"})

    @property
    def n_extra_embeddings(self) -> int:
        return 0

    def corruption(self, n_vocab: int) -> Uniform:
        return Uniform(n_vocab, self.schedule)

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "level": _masking.stratified(n_rows, generator),
            "u": torch.rand(n_rows, n_tokens, generator=generator),
        }

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        nats = self._nats(network, batch, draws)
        total = nats.sum()
        return Loss(total, total.detach(), batch.scored[:, 1:].sum())

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        where = undecided(batch)
        nats = self._nats(network, batch, draws)
        out = torch.zeros(where.shape, dtype=nats.dtype, device=nats.device)
        out[where] = nats
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
        rows = network.hidden(tokens, layout, t[:, None])[where]
        alpha = self.schedule.alpha(t)[:, None].expand(tokens.shape)[where]
        return leave_one_out(network.head.log_p(rows), tokens[where], alpha)

    def _nats(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, " n"]:
        """The bound's integrand at the undecided positions, differentiable."""
        where, tokens = undecided(batch), batch.tokens[:, 1:]
        t = draws["level"][:, None].clamp(1e-5, 1 - 1e-5)
        noisy = self.corruption(network.n_vocab).corrupt(tokens, t, draws["u"])
        noisy = torch.where(where, noisy, tokens)
        rows = network.hidden(noisy, layout_of(batch), t)[where]
        alpha = self.schedule.alpha(t).expand(tokens.shape)[where]
        rate = (-self.schedule.slope(t)).expand(tokens.shape)[where]
        return network.head.reduce(rows, integrand, tokens[where], noisy[where], alpha, rate)


def leave_one_out(
    log_p: Float[Tensor, "n V"], noisy: Int[Tensor, " n"], alpha: Float[Tensor, " n"]
) -> Float[Tensor, "n V"]:
    """log p(x | all positions) → log p(x | all others): Bayes' rule backwards, for one token in V."""
    n_vocab = log_p.shape[1]
    likelier = torch.log1p(n_vocab * alpha / (1 - alpha)).to(log_p.dtype)
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
    alpha, rate = alpha.to(log_p.dtype)[:, None], rate.to(log_p.dtype)
    log_others, log_own = torch.log1p(-alpha), math.log(n_vocab) + alpha.log()
    # log(V alpha x + 1 - alpha), of the clean token and of the model's guess
    log_guess = torch.logaddexp(log_own + leave_one_out(log_p, noisy, alpha[:, 0]), log_others)
    log_truth = log_others.expand_as(log_p).scatter(1, clean[:, None], torch.logaddexp(log_own, log_others))
    log_u = log_truth - log_truth.gather(1, noisy[:, None])
    log_v = log_guess - log_guess.gather(1, noisy[:, None])
    w = log_v - log_u
    terms = log_u.exp() * (torch.expm1(w) - w)
    return rate / (n_vocab * alpha[:, 0]) * terms.sum(1)
