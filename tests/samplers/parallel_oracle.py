"""Tiny worlds whose law is a table, and the exact law of a chain over them: what the parallel samplers are held to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from armillary.contracts import Given
from armillary.corruption.absorbing import Absorbing
from armillary.corruption.uniform import Uniform

Law = Callable[[float], Tensor]
"""t → p(clean token) at each position of each state, (states, L, V), float64. A table alone does not depend on t."""


class Oracle:
    """A Denoise whose law is a table. It writes down which rows it was asked, when, and with which tokens."""

    def __init__(self, corruption: Absorbing | Uniform, law: Law | Tensor) -> None:
        self.corruption, self.law = corruption, law
        self.n_vocab = corruption.n_vocab
        self.prior, self.undecided, self.reverse = corruption.prior, corruption.undecided, corruption.reverse
        self.alpha, self.time = corruption.schedule.alpha, corruption.schedule.time
        self.asked: list[Tensor] = []
        self.times: list[Tensor] = []
        self.seen: list[Tensor] = []

    def log_p0(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        asked = where.any(1)
        self.asked.append(asked)
        self.times.append(t.clone())
        self.seen.append(tokens.clone())
        index = index_of(tokens, self.corruption.n_states)
        if isinstance(self.law, Tensor):
            return self.law[index][where].log()
        p = torch.zeros(*tokens.shape, self.n_vocab, dtype=torch.float64)
        for moment in t[asked].unique().tolist():
            rows = asked & (t == moment)
            p[rows] = self.law(moment)[index[rows]]
        return p[where].log()


def index_of(tokens: Tensor, n_states: int) -> Tensor:
    powers = n_states ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * powers).sum(1)


def all_states(n_states: int, n_positions: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(n_states), repeat=n_positions)))


def random_table(n_vocab: int, n_positions: int, seed: int) -> Tensor:
    """A law of its own for each pattern of revealed tokens: no joint has them all, so that every order matters."""
    generator = torch.Generator().manual_seed(seed)
    shape = ((n_vocab + 1) ** n_positions, n_positions, n_vocab)
    return torch.softmax(1.5 * torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def random_joint(n_vocab: int, n_positions: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(1.5 * torch.randn(n_vocab**n_positions, generator=generator, dtype=torch.float64), dim=0)


def conditionals(joint: Tensor, n_vocab: int, n_positions: int) -> Tensor:
    """p(x_l | revealed tokens) of each state with MASK = n_vocab."""
    texts, states = all_states(n_vocab, n_positions), all_states(n_vocab + 1, n_positions)
    agrees = ((states[:, None] == texts) | (states[:, None] == n_vocab)).all(2).double()
    one_hot = torch.nn.functional.one_hot(texts, n_vocab).double()
    table = torch.einsum("zx,x,xlv->zlv", agrees, joint, one_hot)
    return table / table.sum(2, keepdim=True)


def leave_one_out(joint: Tensor, n_vocab: int, n_positions: int, alpha: Callable[[Tensor], Tensor]) -> Law:
    """p(x_l | all noisy tokens but that at l), under uniform noise."""
    texts = all_states(n_vocab, n_positions)
    one_hot = torch.nn.functional.one_hot(texts, n_vocab).double()

    def law(t: float) -> Tensor:
        a = alpha(torch.tensor(t, dtype=torch.float64))
        q = a * (texts[:, None] == texts).double() + (1 - a) / n_vocab  # (z, x, L)
        columns = []
        for position in range(n_positions):
            others = [other for other in range(n_positions) if other != position]
            p = torch.einsum("zx,x,xv->zv", q[:, :, others].prod(2), joint, one_hot[:, position])
            columns.append(p / p.sum(1, keepdim=True))
        return torch.stack(columns, dim=1)

    return law


def given_of(pattern: Sequence[int | None], n_rows: int) -> Given:
    tokens = torch.tensor([0 if token is None else token for token in pattern])
    is_given = torch.tensor([token is not None for token in pattern])
    return Given(tokens.repeat(n_rows, 1), is_given.repeat(n_rows, 1))


def product(laws: Tensor) -> Tensor:
    """(n, L, states) → (n, states ** L): positions are independent."""
    out = laws[:, 0]
    for position in range(1, laws.shape[1]):
        out = (out[:, :, None] * laws[:, position, None]).flatten(1)
    return out


def prior_of(corruption: Absorbing | Uniform) -> Tensor:
    """The law of one position at t = 1."""
    if isinstance(corruption, Uniform):
        return torch.full((corruption.n_vocab,), 1 / corruption.n_vocab, dtype=torch.float64)
    return torch.nn.functional.one_hot(torch.tensor(corruption.mask), corruption.n_states).double()


def bayes(z: Tensor, p0: Tensor, alpha_t: float, alpha_s: float, prior: Tensor) -> Tensor:
    """q(z_s | z_t = z) by Bayes' rule from the forward process, the clean token having law p0 given all others."""
    clean = torch.nn.functional.pad(p0, (0, len(prior) - p0.shape[1]))
    stays = alpha_t / alpha_s
    likelihood = stays * torch.nn.functional.one_hot(z, len(prior)) + (1 - stays) * prior[z][:, None]
    weights = likelihood * (alpha_s * clean + (1 - alpha_s) * prior)
    return (weights / weights.sum(1, keepdim=True)).nan_to_num(0)  # of a z that cannot be at that time


def chain(
    corruption: Absorbing | Uniform,
    moves: Callable[[Tensor, int, float, float], Tensor],
    pattern: Sequence[int | None],
    n_steps: int,
) -> Tensor:
    """The law of the states after n_steps. moves: (states, position, t, s) → the law of that position at s."""
    n_positions = len(pattern)
    states = all_states(corruption.n_states, n_positions)
    prior = prior_of(corruption)

    def fixed(position: int) -> Tensor:
        return torch.nn.functional.one_hot(states[:, position], corruption.n_states).double()

    clamped = [
        prior if token is None else torch.nn.functional.one_hot(torch.tensor(token), corruption.n_states).double()
        for token in pattern
    ]
    law = product(torch.stack(clamped)[None])[0]
    for step in range(n_steps):
        t, s = (n_steps - step) / n_steps, (n_steps - step - 1) / n_steps
        columns = [moves(states, i, t, s) if token is None else fixed(i) for i, token in enumerate(pattern)]
        law = law @ product(torch.stack(columns, dim=1))
    return law


def alpha_of(corruption: Absorbing | Uniform, t: float) -> float:
    return float(corruption.schedule.alpha(torch.tensor(t, dtype=torch.float64)))


def p_value(tokens: Tensor, law: Tensor, n_states: int) -> float:
    """χ² of rows against a law over all states; 0 where one was drawn that has no probability."""
    observed = torch.bincount(index_of(tokens, n_states), minlength=len(law)).double()
    expected = law * tokens.shape[0]
    if bool((observed[expected < 1e-9] > 0).any()):
        return 0.0
    is_rare = expected < 5
    observed = torch.cat([observed[~is_rare], observed[is_rare].sum()[None]])
    expected = torch.cat([expected[~is_rare], expected[is_rare].sum()[None]])
    if expected[-1] < 5:
        observed = torch.cat([observed[:-2], observed[-2:].sum()[None]])
        expected = torch.cat([expected[:-2], expected[-2:].sum()[None]])
    if len(expected) == 1:
        return 1.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2))


def last(states):
    *_, state = states
    return state
