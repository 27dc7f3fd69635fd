"""Two pieces of a training step beside torch's own, forward and backward, in one process and in turn: attention in
blocks of queries, and the head whose gradient is computed in the forward pass.

Usage: python benchmarks/training_pieces.py [--rounds 15]

Shapes of the GPT baseline (32 rows of 128) and of `tiny` (4 rows of 1,024), 4 heads of 64; V 8,192 and 32,768.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contest import ratios, write
from torch import Tensor

from armillary.allocator import keep_memory
from armillary.nn import blocked_attention
from armillary.nn.head import VocabularyHead

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    keep_memory()
    arguments = sys.argv[1:]
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 15
    readings: dict[str, Any] = {}
    for precision, dtype in DTYPES.items():
        for rows, length in ((32, 128), (4, 1_024)):
            readings[f"attention {precision} {rows} x {length}"] = in_turn(attention(rows, length, dtype), n_rounds)
        for n_vocab in (8_192, 32_768):
            readings[f"head {precision} V {n_vocab:,}"] = in_turn(head(n_vocab, dtype), n_rounds)
    for name, found in readings.items():
        ours, theirs = found["armillary"], found["torch"]
        faster = ratios(theirs, ours)
        print(
            f"  {name:28} ours {1e3 * statistics.median(ours):7.1f} ms  torch {1e3 * statistics.median(theirs):7.1f} ms"
            "  {:.2f} x as fast ({:.2f}-{:.2f})".format(*faster)
        )
    print(write("training_pieces", readings, "python benchmarks/training_pieces.py " + " ".join(arguments)))


def in_turn(contenders: dict[str, Callable[[], Tensor]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds of a forward and backward pass, one of each contender a round; the first two rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(n_rounds + 2):
        for name, forward in contenders.items():
            start = time.perf_counter()
            forward().backward()
            seconds[name].append(time.perf_counter() - start)
    return {name: found[2:] for name, found in seconds.items()}


def attention(rows: int, length: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    q, k, v = (torch.randn(rows, length, 4, 64, dtype=dtype).requires_grad_() for _ in range(3))

    def heads() -> list[Tensor]:
        return [x.transpose(1, 2) for x in (q, k, v)]

    return {
        "armillary": lambda: blocked_attention.attend(*heads(), is_causal=True).sum(),
        "torch": lambda: F.scaled_dot_product_attention(*heads(), is_causal=True).sum(),
    }


def head(n_vocab: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """4,096 rows of 256, weights in fp32, under autocast where the dtype is bf16."""
    rows, weight = torch.randn(4_096, 256).requires_grad_(), (0.02 * torch.randn(n_vocab, 256)).requires_grad_()
    targets = torch.randint(n_vocab, (4_096,))

    def under_autocast(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                return loss()

        return run

    return {
        "armillary": under_autocast(lambda: VocabularyHead(weight).weighted_nll(rows, targets)[0]),
        "torch": under_autocast(lambda: F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="sum")),
    }


if __name__ == "__main__":
    main()
