"""What the sine activation keeps for the backward pass, and its time: ours, the same formula written plainly, GELU.

Usage: python benchmarks/sine_memory.py [--rounds 15] [fp32 | bf16 ...]

A feed-forward network of width 256 and 1,024 hidden numbers, on 4,096 positions; the three in turn, in one process.
Kept: tensors that autograd saved, parameters left out, in units of one hidden tensor of that arithmetic.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from contest import ratios, saved_bytes, write
from torch import Tensor, nn

from armillary.allocator import keep_memory
from armillary.nn.sine import SineNetwork, SineParams

WIDTH, HIDDEN, POSITIONS = 256, 1_024, 4_096


def main() -> None:
    keep_memory()
    arguments = sys.argv[1:]
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 15
    readings: dict[str, Any] = {}
    for precision in [name for name in ("fp32", "bf16") if name in arguments] or ["fp32", "bf16"]:
        readings[precision] = found = in_turn(precision, n_rounds)
        for name, one in found.items():
            slower = ratios(one["seconds"], found["gelu"]["seconds"])
            print(
                f"  {precision}  {name:8} keeps {one['hidden_tensors']:5.2f} hidden tensors"
                f"  {1e3 * statistics.median(one['seconds']):7.1f} ms"
                "  {:.2f} x GELU ({:.2f}-{:.2f})".format(*slower)
            )
    print(write("sine_memory", readings, " ".join(["python benchmarks/sine_memory.py", *arguments])))


def in_turn(precision: str, n_rounds: int) -> dict[str, dict[str, Any]]:
    """Of a forward and backward pass; the first two rounds do not count."""
    torch.manual_seed(0)
    network = SineNetwork(WIDTH, HIDDEN, SineParams())
    x = torch.randn(1, POSITIONS, WIDTH)
    hidden_bytes = POSITIONS * HIDDEN * (2 if precision == "bf16" else 4)
    activations = {"ours": network.sine, "formula": lambda z: formula(network.sine, z), "gelu": F.gelu}

    def forward(activation: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network.down(activation(network.up(x))).square().sum()

    found: dict[str, dict[str, Any]] = {}
    for name, activation in activations.items():
        n_bytes = saved_bytes(lambda it=activation: forward(it), network)
        found[name] = {"hidden_tensors": n_bytes / hidden_bytes, "seconds": []}
    for number in range(n_rounds + 2):
        for name, activation in activations.items():
            start = time.perf_counter()
            forward(activation).backward()
            if number > 1:
                found[name]["seconds"].append(time.perf_counter() - start)
            network.zero_grad()
    return found


def formula(sine: nn.Module, z: Tensor) -> Tensor:
    """A exp(-d |z|) sin(f z), left to autograd."""
    a, f, d = F.softplus(sine.amplitude), F.softplus(sine.frequency) + 1e-6, F.softplus(sine.damping)
    return a * torch.exp(-d * z.abs()) * torch.sin(f * z)


if __name__ == "__main__":
    main()
