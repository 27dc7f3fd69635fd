"""The processes of a run: one, or as many as `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import str_to_bool
from torch import Tensor

from armillary import system
from armillary.refusal import Refusal

PLAIN = "several processes train by plain data parallelism here; launch without such options"


def join(device: Literal["auto", "cuda", "mps", "cpu"]) -> Accelerator:
    """Joins the process group the launcher set up, if any. auto: cuda, then mps, then cpu.

    Mixed precision is ours (training.precision): accelerate is asked for none.
    """
    usable, why = (None, "") if device == "cpu" else system.gpu()  # a CUDA that is broken is not woken for a CPU
    if device not in ("auto", "cpu", usable):
        raise Refusal(f"training.device: {device} cannot be used here (GPU {why}); set it to auto or cpu")
    for other in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # on a CPU, accelerate would leave them unread
        if str_to_bool(os.environ.get(f"ACCELERATE_USE_{other}") or "false"):
            raise Refusal(f"{other}: {PLAIN}")
    # cuBLAS reads it once, when it is first used: before any run knows whether it wants to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = PartialState() if PartialState._shared_state else None
    if before is not None and before.num_processes == 1 and (str(before.device) == "cpu") != (usable is None):
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process was on another device
    accelerator = Accelerator(cpu=usable is None, mixed_precision="no")
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise Refusal(f"{accelerator.distributed_type.value}: {PLAIN}")
    return accelerator


def fallen_back(device: str) -> str | None:
    """Why a device asked for as auto is the CPU; None where it is not."""
    usable, why = system.gpu() if device == "auto" else (device, "")
    return f"on the CPU: a GPU is {why}" if usable is None else None


def share(accelerator: Accelerator, n_rows: int, accumulation: int) -> list[slice]:
    """This rank's micro-batches, as slices of the global batch. Every world size sees the same global order.

    Raises Refusal where rows do not divide.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    if n_rows % (world * accumulation):
        raise Refusal(
            f"training: {n_rows} rows a step do not divide into {world} processes × {accumulation} micro-batches; "
            f"make batch_rows a multiple of {world * accumulation}"
        )
    n = n_rows // (world * accumulation)
    first = rank * accumulation * n
    return [slice(first + i * n, first + (i + 1) * n) for i in range(accumulation)]


def total(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Sum over ranks, on the device that talks to the others; where there is one process, the value itself."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.to(accelerator.device), reduction="sum")  # type: ignore[return-value]


def any_of(accelerator: Accelerator, fact: bool) -> bool:
    """Whether it holds on some rank: so all decide alike, and none waits for another that has gone."""
    return bool(total(accelerator, torch.tensor([float(fact)])).item())
