"""The reference every fast loss is held to: one bound for all continuous-time Markov objectives, by enumeration.

Source: Lou et al. 2023, arXiv 2310.16834, eq. 9, and Campbell et al. 2022, arXiv 2205.14987, proposition 2:

    NELBO(x) = KL(q_1(.|x) | prior)
               + ∫ E_{z ~ q_t} Σ_l Σ_{y ≠ z_l} Q_t(y → z_l) [s_y - r_y log s_y + r_y (log r_y - 1)] dt

In float64, slow and plain on purpose. It shares schedules with the package, and nothing else of the objectives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Nodes = list[tuple[float, float]]
"""(t, weight) of a quadrature."""


@dataclass(frozen=True)
class Process:
    """A token keeps its value with probability alpha(t), and is drawn from `noise` (one entry a state) otherwise."""

    schedule: Any
    noise: Tensor

    @property
    def n_states(self) -> int:
        return len(self.noise)

    def alpha(self, t: float) -> float:
        return float(self.schedule.alpha(torch.tensor(t, dtype=torch.float64)))

    def rate(self, t: float) -> float:
        """dσ/dt, σ = -log alpha."""
        return -float(self.schedule.slope(torch.tensor(t, dtype=torch.float64))) / self.alpha(t)

    def kernel(self, t: float) -> Tensor:
        """(S, S): q(z_t | x), row x."""
        return self.between(self.alpha(t))

    def between(self, alpha: float) -> Tensor:
        """(S, S): the kernel of a stretch of time over which a token stays with probability alpha."""
        return alpha * torch.eye(self.n_states, dtype=torch.float64) + (1 - alpha) * self.noise

    def jumps(self, t: float) -> Tensor:
        """(S, S): Q_t(y → z), row y; zero where y = z."""
        return self.rate(t) * self.noise.expand(self.n_states, -1) * (1 - torch.eye(self.n_states, dtype=torch.float64))

    def prior_nats(self, texts: Tensor) -> Tensor:
        """KL(q_1(.|x) | prior) of each text."""
        q = self.kernel(1.0)
        each = (torch.special.xlogy(q, q) - torch.special.xlogy(q, self.noise)).sum(1)
        return each[texts].sum(1)


def absorbing(n_vocab: int, schedule: Any) -> Process:
    """State V is MASK, and all noise."""
    return Process(schedule, torch.nn.functional.one_hot(torch.tensor(n_vocab), n_vocab + 1).double())


def uniform(n_vocab: int, schedule: Any) -> Process:
    return Process(schedule, torch.full((n_vocab,), 1 / n_vocab, dtype=torch.float64))


def all_texts(n_states: int, length: int) -> Tensor:
    """(n_states ** length, length), the last position running fastest."""
    return torch.tensor(list(itertools.product(range(n_states), repeat=length)))


def all_orders(length: int) -> Tensor:
    """(length!, length): each row a permutation."""
    return torch.tensor(list(itertools.permutations(range(length))))


def number_of(texts: Tensor, n_states: int) -> Tensor:
    """Where texts stand in all_texts."""
    powers = n_states ** torch.arange(texts.shape[-1] - 1, -1, -1)
    return (texts * powers).sum(-1)


def quadrature(n: int, power: int = 1, start: float = 0.0, end: float = 1.0) -> Nodes:
    """Gauss-Legendre on [start, end] after t = start + (end - start) v ** power: tames what is singular at start."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    v, width = (nodes + 1) / 2, end - start
    return list(
        zip((start + width * v**power).tolist(), (width * power * v ** (power - 1) * weights / 2).tolist(), strict=True)
    )


def law(process: Process, texts: Tensor, noisy: Tensor, t: float) -> Tensor:
    """(X, Z): q(z_t | x)."""
    return process.kernel(t)[texts[:, None], noisy[None]].prod(-1)


def integrand(process: Process, texts: Tensor, s: Tensor, t: float) -> Tensor:
    """What the bound integrates, of each text. s: (Z, L, S) model ratios of every noisy text, as all_texts has them."""
    noisy = all_texts(process.n_states, texts.shape[1])
    kernel = process.kernel(t)
    p = law(process, texts, noisy, t)
    r = kernel[texts][:, None] / kernel[texts[:, None], noisy[None]][..., None]
    r = torch.where(p[..., None, None] > 0, r, 0.0)
    jumps = process.jumps(t).T[noisy]  # (Z, L, S): from y to what stands at z_l
    s = torch.where(jumps > 0, s, 1.0)
    terms = s - torch.special.xlogy(r, s) + torch.special.xlogy(r, r) - r
    return (p * (jumps * terms).sum((-1, -2))).sum(1)


def nelbo(process: Process, texts: Tensor, ratios: Callable[[float], Tensor], nodes: Nodes) -> Tensor:
    """The reference bound of each text. ratios(t): as `integrand` takes them."""
    pieces = [weight * integrand(process, texts, ratios(t), t) for t, weight in nodes]
    return process.prior_nats(texts) + torch.stack(pieces).sum(0)


def absorbing_ratios(process: Process, likely: Tensor) -> Callable[[float], Tensor]:
    """s_y = alpha / (1 - alpha) likely_y at masked positions. likely: (Z, L, V), normalised or not."""

    def at(t: float) -> Tensor:
        alpha = process.alpha(t)
        return torch.nn.functional.pad(alpha / (1 - alpha) * likely, (0, 1), value=1.0)

    return at


def uniform_ratios(process: Process, p_loo: Callable[[float], Tensor]) -> Callable[[float], Tensor]:
    """s_y = q(z_l = y | other positions) / q(z_l | other positions), from p_loo(t): (Z, L, V) of the clean token."""

    def at(t: float) -> Tensor:
        p = p_loo(t)
        noisy = all_texts(process.n_states, p.shape[1])
        marginal = process.alpha(t) * p + (1 - process.alpha(t)) * process.noise
        return marginal / marginal.gather(2, noisy[..., None])

    return at


def denoiser(process: Process, n_vocab: int, texts: Tensor, q: Tensor, t: float, *, sees_own: bool) -> Tensor:
    """(Z, L, V): the law of each clean token given a noisy text, for texts drawn with probability q.

    sees_own: given all of the noisy text; otherwise given all but the position itself. Uniform where it cannot occur.
    """
    noisy = all_texts(process.n_states, texts.shape[1])
    each = process.kernel(t)[texts[:, None], noisy[None]]  # (X, Z, L)
    tables = []
    for place in range(texts.shape[1]):
        kept = torch.ones(texts.shape[1], dtype=torch.bool)
        kept[place] = sees_own
        weight = q[:, None] * each[..., kept].prod(-1)
        table = weight.T @ torch.nn.functional.one_hot(texts[:, place], n_vocab).double()
        total = table.sum(1, keepdim=True)
        tables.append(torch.where(total > 0, table / total.clamp(min=1e-300), 1 / n_vocab))
    return torch.stack(tables, 1)


def stepwise_nelbo(
    process: Process, corruption: Any, texts: Tensor, p0: Callable[[float], Tensor], times: Iterable[float]
) -> Tensor:
    """The exact bound of a chain that goes down `times`, from 1 to 0, with corruption.posterior as its steps.

    Σ E KL(q(z_s | z_t, x) | p(z_s | z_t)), the last step from t to 0 included. p0(t): (Z, L, V), what a sampler is told
    of the clean tokens. The true posterior is Bayes' rule on the kernels, not corruption.posterior.
    """
    noisy = all_texts(process.n_states, texts.shape[1])
    total = process.prior_nats(texts)
    for t, s in itertools.pairwise(times):
        step = process.between(process.alpha(t) / process.alpha(s))
        truth = process.kernel(s)[:, None, :] * step.T[None, :, :]  # (x, z_t, z_s)
        truth = truth / truth.sum(-1, keepdim=True).clamp(min=1e-300)
        p, at = p0(t), torch.full((1,), t, dtype=torch.float64)
        model = torch.stack(
            [corruption.posterior(noisy[:, i], p[:, i], at, torch.full_like(at, s)) for i in range(noisy.shape[1])], 1
        )
        known = truth[texts[:, None], noisy[None]]  # (X, Z, L, S)
        kl = torch.special.xlogy(known, known) - torch.special.xlogy(known, model[None])
        weight = law(process, texts, noisy, t)
        total = total + torch.where(weight > 0, weight * kl.sum((-1, -2)), 0.0).sum(1)
    return total


def order_nats(log_p: Tensor, texts: Tensor, order: Tensor) -> Tensor:
    """-log p of each text when a masked denoiser reveals positions in this order. log_p: (Z, L, V), V + 1 states."""
    n_vocab = log_p.shape[2]
    seen, nats = torch.full_like(texts, n_vocab), torch.zeros(len(texts), dtype=log_p.dtype)
    for place in order.tolist():
        here = log_p[number_of(seen, n_vocab + 1), place]
        nats = nats - here.gather(1, texts[:, place : place + 1])[:, 0]
        seen = seen.clone()
        seen[:, place] = texts[:, place]
    return nats
