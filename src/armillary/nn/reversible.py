"""Two streams that change each other in ways that can be undone, and a backward pass that keeps nothing but the end.

Source: additive couplings: Dinh et al. 2014, arXiv 1410.8516; affine ones: Dinh et al. 2016, arXiv 1605.08803; a
backward pass that inverts: Gomez et al. 2017, arXiv 1707.04585, algorithm 1; in transformers: Kitaev et al. 2020, arXiv
2001.04451, section 3.
Differs: dropout and the arithmetic of autocast are replayed; parameters and the condition are inputs of the function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states

Change = tuple[Float[Tensor, "B L D"] | None, Float[Tensor, "B L D"]]
"""(s, t): x becomes x · e^s + t, and x + t where there is no s."""
Step = tuple[nn.Module, tuple[Any, ...]]
"""A conditioner and what else it is told: conditioner(the other stream, condition, *told) is a Change."""
Ended = tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"], Float[Tensor, "B L"]]
"""Both streams, and how much each position was stretched: the sum over a row is log|det| of its map."""


def couple(x: Float[Tensor, "B L D"], by: Change) -> Float[Tensor, "B L D"]:
    s, t = by
    return x + t if s is None else x * s.exp() + t


def uncouple(y: Float[Tensor, "B L D"], by: Change) -> Float[Tensor, "B L D"]:
    s, t = by
    return y - t if s is None else (y - t) * (-s).exp()


def run(
    steps: Sequence[Step], a: Tensor, b: Tensor, c: Float[Tensor, "..."] | None, *, recomputes: bool = False
) -> Ended:
    """Every first step changes a and reads b, every second one changes b and reads a, as it then is.

    recomputes: the backward pass goes through the steps from the last to the first and undoes each, so that memory does
    not grow with their number.
    """
    if recomputes and torch.is_grad_enabled():
        return _run_and_forget(steps, a, b, c, torch.compiler.is_compiling())
    streams, total = [a, b], a.new_zeros(a.shape[:2])
    for index, (conditioner, told) in enumerate(steps):
        k = index % 2
        by = conditioner(streams[1 - k], c, *told)
        streams[k], total = couple(streams[k], by), _more(total, by)
    return streams[0], streams[1], total


def undo(
    steps: Sequence[Step], a: Tensor, b: Tensor, c: Float[Tensor, "..."] | None
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """The streams that `run` began with, from those it ended with and nothing else; nothing may be drawn at random."""
    streams = [a, b]
    for index, (conditioner, told) in reversed(list(enumerate(steps))):
        k = index % 2
        streams[k] = uncouple(streams[k], conditioner(streams[1 - k], c, *told))
    return streams[0], streams[1]


def _more(total: Float[Tensor, "B L"], by: Change) -> Float[Tensor, "B L"]:
    return total if by[0] is None else total + by[0].sum(-1)


compiler = partial(torch.compile, dynamic=False)
"""Of what a conditioner does; all conditioners of one kind share what it makes."""


# Opaque to a compiler, which would keep the activations; as torch.compiler.disable, without a second of imports.
@torch._disable_dynamo
def _run_and_forget(steps: Sequence[Step], a: Tensor, b: Tensor, c: Tensor | None, is_compiled: bool) -> Ended:
    device = a.device.type
    arithmetic = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    plan = _Plan(steps, arithmetic, compiler(_ask) if is_compiled else _ask)
    learnt = [p for parameters in plan.parameters for p in parameters]
    return _Forgetful.apply(plan, a, b, c, *learnt)  # type: ignore[return-value]


def _ask(conditioner: nn.Module, x: Tensor, c: Tensor | None, told: tuple[Any, ...]) -> Change:
    return conditioner(x, c, *told)


@dataclass(frozen=True)
class _Plan:
    """What both passes do alike. arithmetic: whether autocast is on, and its type."""

    steps: Sequence[Step]
    arithmetic: tuple[bool, torch.dtype]
    ask: Callable[..., Change]

    @cached_property
    def parameters(self) -> list[list[nn.Parameter]]:
        """Of each step; one that two steps share is there twice, and autograd adds."""
        return [[p for p in conditioner.parameters() if p.requires_grad] for conditioner, _ in self.steps]

    def change(self, index: int, x: Tensor, c: Tensor | None) -> tuple[Change, list[Tensor]]:
        """With its graph in the forward pass too, so that both passes take the same kernels to the last bit; and the
        leaves of that graph."""
        conditioner, told = self.steps[index]
        leaves = [one.detach().requires_grad_() for one in (x, c) if one is not None]
        is_on, dtype = self.arithmetic
        with torch.enable_grad(), torch.autocast(x.device.type, dtype, is_on):
            return self.ask(conditioner, leaves[0], leaves[1] if c is not None else None, told), leaves


class _Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, a: Tensor, b: Tensor, c: Tensor | None, *learnt: Tensor) -> Ended:
        streams, total = [a, b], a.new_zeros(a.shape[:2])
        states = [_random_state(a)]
        for index in range(len(plan.steps)):
            k = index % 2
            with _kept_here():
                by = _detached(plan.change(index, streams[1 - k], c)[0])
            streams[k], total = couple(streams[k], by), _more(total, by)
            states.append(_random_state(a))
        ctx.plan = plan
        ctx.states = [None if _are_equal(*pair) else pair[0] for pair in pairwise(states)]
        ctx.save_for_backward(*streams, c)
        return streams[0], streams[1], total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        plan: _Plan = ctx.plan
        *streams, c = ctx.saved_tensors
        d: list[Any] = list(grads[:2])
        d_total, d_c = grads[2], None
        d_learnt: list[Tensor | None] = []
        for index in reversed(range(len(plan.steps))):
            k = index % 2
            with _replayed(ctx.states[index], streams[k]), _kept_here():
                by, leaves = plan.change(index, streams[1 - k], c)
            x = uncouple(streams[k], _detached(by)).requires_grad_()
            with torch.enable_grad(), _kept_here():
                ends = [(couple(x, by), d[k])] + ([(by[0], _spread(d_total, by[0]))] if by[0] is not None else [])
            outputs, given = zip(*ends, strict=True)
            found = torch.autograd.grad(outputs, [x, *leaves, *plan.parameters[index]], given, allow_unused=True)
            streams[k], d[k] = x.detach(), found[0]
            d[1 - k] = _sum(d[1 - k], found[1])
            if c is not None:
                d_c = _sum(d_c, found[2])
            d_learnt[:0] = found[1 + len(leaves) :]
        return None, d[0], d[1], d_c, *d_learnt


def _kept_here() -> saved_tensors_hooks:
    """What a step keeps lives for that step only: hooks from outside are not told of it. Detached, since an output kept
    with its graph would be in a cycle that no collector sees."""
    return saved_tensors_hooks(torch.Tensor.detach, _same)


def _same(x: Tensor) -> Tensor:
    return x


def _detached(by: Change) -> Change:
    return by[0] if by[0] is None else by[0].detach(), by[1].detach()


def _spread(d_total: Float[Tensor, "B L"], s: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    return d_total[..., None].expand_as(s).to(s.dtype)


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x if y is None else y if x is None else x + y


_State = tuple[Tensor, list[int], list[Tensor]]
"""Of the generators that dropout draws from: the host's, and those of the devices in use."""


def _random_state(x: Tensor) -> _State:
    return torch.get_rng_state(), *get_device_states(x)


def _are_equal(one: _State, other: _State) -> bool:
    """Nothing was drawn between them: such a state is not worth keeping."""
    pairs = zip([one[0], *one[2]], [other[0], *other[2]], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@contextlib.contextmanager
def _replayed(state: _State | None, x: Tensor) -> Iterator[None]:
    if state is None:
        yield
        return
    host, devices, states = state
    kind: dict[str, Any] = {} if x.device.type == "cpu" else {"device_type": x.device.type}
    with torch.random.fork_rng(devices, **kind):
        torch.set_rng_state(host)
        set_device_states(devices, states, **kind)
        yield
