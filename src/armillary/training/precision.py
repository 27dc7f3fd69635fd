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

Arithmetic = Literal["fp32", "bf16", "fp16"]


def resolve(asked: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Arithmetic:
    """auto: what `accelerate launch --mixed_precision` said, else bf16 where the hardware has it, else fp32."""
    if asked != "auto":
        return asked
    launched: dict[str, Arithmetic] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if said in launched:
        return launched[said]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"


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
