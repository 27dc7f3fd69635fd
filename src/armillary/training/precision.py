"""Which arithmetic a run trains in, the loss scaling that fp16 needs, and kernels that repeat themselves.

Weights stay fp32; autocast chooses the type of each matmul. bf16 needs no scaling, fp16 does (Micikevicius et al. 2017,
arXiv 1710.03740).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from armillary.system import bf16_on_cpu

Arithmetic = Literal["fp32", "bf16", "fp16"]
Asked = Literal["auto", "fp32", "bf16", "fp16"]


def wanted(asked: Asked) -> Asked:
    """auto: what `accelerate launch --mixed_precision` said, if anything."""
    launched: dict[str, Asked] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    return launched.get(os.environ.get("ACCELERATE_MIXED_PRECISION", ""), "auto") if asked == "auto" else asked


def resolve(asked: Asked, device: torch.device) -> Arithmetic:
    """What is wanted; auto: bf16 where the hardware is known to have it, else fp32. fp32 in place of a bf16 that the
    hardware does not have: emulated, a product of matrices took fifty times as long on a CPU with AVX2."""
    found, has = wanted(asked), has_bf16(device)
    if found == "auto":
        return "bf16" if has else "fp32"
    return "fp32" if found == "bf16" and has is False else found


def has_bf16(device: torch.device) -> bool | None:
    """Whether it multiplies in bf16 by itself; None: not known."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_on_cpu() if device.type == "cpu" else None


def autocast(arithmetic: Arithmetic, device: torch.device) -> AbstractContextManager[object]:
    if arithmetic == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if arithmetic == "bf16" else torch.float16)


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Kernels that give the same bits every time, where torch has them; it warns of one that it has not."""
    was, was_filling = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if is_wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = was_filling  # type: ignore[attr-defined]


def scaler(arithmetic: Arithmetic, device: torch.device) -> torch.amp.GradScaler:
    """Does nothing unless the arithmetic is fp16."""
    return torch.amp.GradScaler(device.type, enabled=arithmetic == "fp16")
