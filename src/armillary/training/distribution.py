"""The processes of a run: one, or as many as `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from armillary.refusal import Refusal


def join(device: Literal["auto", "cuda", "mps", "cpu"]) -> Accelerator:
    """Joins the process group the launcher set up, if any. auto: cuda, then mps, then cpu.

    Mixed precision is ours (training.precision): accelerate is asked for none.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "auto": True}
    if not has[device]:
        raise Refusal(f"training.device: no {device} here (`armillary doctor` says why); set it to auto or cpu")
    # cuBLAS reads it once, when it is first used: before any run knows whether it wants to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator = Accelerator(cpu=device == "cpu" or not (has["cuda"] or has["mps"]), mixed_precision="no")
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise Refusal(
            f"{accelerator.distributed_type.value}: several processes train by plain data parallelism here; "
            "launch without FSDP, DeepSpeed or TPU options"
        )
    return accelerator


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
