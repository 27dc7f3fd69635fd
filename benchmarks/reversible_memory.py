"""What a backward pass keeps, and what a step costs: ordinary, checkpointed and inverted, at 4, 16 and 64 blocks; and
how far the inverse is from where it began, by depth, coupling and arithmetic.

Usage: python benchmarks/reversible_memory.py [--rounds 5] [--depths 4,16,64] [--device cpu] [--precision fp32]

Blocks of width 256, 4 heads, 4 rows of 128; the checkpointed blocks are standard ones of equal size. Steps of the three
are taken in turn. Kept on a CPU: bytes of the tensors that autograd saved, parameters left out; on a GPU: peak of the
step beyond what was allocated before it and the gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from contest import ratios, saved_bytes, write
from torch import Tensor, nn

from armillary.allocator import keep_memory
from armillary.contracts import Layout
from armillary.nn.stack import recompute
from armillary.registry import make

WIDTH, HEADS, ROWS, LENGTH = 256, 4, 4, 128
MANNERS = {"ordinary": ("bijective", False), "checkpointed": ("llama", True), "inverted": ("bijective", True)}
"""The backbone, and whether activations are computed again."""


def main() -> None:
    keep_memory()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", default="4,16,64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    asked = parser.parse_args()
    readings: dict[str, Any] = {"memory": {}, "reconstruction": {}}
    for depth in map(int, asked.depths.split(",")):
        readings["memory"][str(depth)] = found = side_by_side(depth, asked)
        for manner, one in found.items():
            slower = ratios(one["seconds"], found["ordinary"]["seconds"])
            print(
                f"  {depth:3} blocks  {manner:12} keeps {one['kept_bytes'] / 2**20:9.2f} MiB"
                f"  step {1e3 * statistics.median(one['seconds']):8.1f} ms"
                "  {:.2f} x ordinary ({:.2f}-{:.2f})".format(*slower),
                flush=True,
            )
        for coupling in ("additive", "affine"):
            errors = {name: reconstruction(depth, coupling, name, asked.device) for name in ("fp64", "fp32", "bf16")}
            readings["reconstruction"][f"{depth} {coupling}"] = errors
            print(f"  {depth:3} blocks  {coupling:8}", *(f"{k} {v:.1e}" for k, v in errors.items()), flush=True)
    words = f"--rounds {asked.rounds} --depths {asked.depths} --device {asked.device} --precision {asked.precision}"
    name = f"reversible_memory_{torch.device(asked.device).type}_{asked.precision}"
    print(write(name, readings, f"python benchmarks/reversible_memory.py {words}"))


def side_by_side(depth: int, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Kept bytes, and seconds of a forward and backward pass in every round; the first round does not count."""
    contenders = {}
    for name, (kind, recomputes) in MANNERS.items():
        contenders[name] = backbone(depth, asked.device, kind).train()
        recompute(contenders[name], recomputes)
    x = torch.randn(ROWS, LENGTH, WIDTH, device=asked.device)
    found: dict[str, dict[str, Any]] = {
        name: {"kept_bytes": kept_bytes(network, x, asked.precision), "seconds": []}
        for name, network in contenders.items()
    }
    for number in range(asked.rounds + 1):
        for name, network in contenders.items():
            started = time.perf_counter()
            loss(network, x, asked.precision).backward()
            if x.is_cuda:
                torch.cuda.synchronize()
            if number:
                found[name]["seconds"].append(time.perf_counter() - started)
            network.zero_grad()
    return found


def backbone(depth: int, device: str, kind: str = "bijective", **fields: Any) -> Any:
    torch.manual_seed(0)
    shape = {"d_model": WIDTH, "n_layers": depth, "n_heads": HEADS} | fields
    return make("backbones", kind, shape).build().to(device)


def loss(network: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(x, Layout("causal")).square().sum()


def kept_bytes(network: nn.Module, x: Tensor, precision: str) -> int:
    if x.is_cuda:
        loss(network, x, precision).backward()
        gradients = sum(p.numel() * p.element_size() for p in network.parameters())
        network.zero_grad()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(network, x, precision).backward()
        peak = torch.cuda.max_memory_allocated() - before - gradients
        network.zero_grad()
        return peak
    return saved_bytes(lambda: loss(network, x, precision), network)


def reconstruction(depth: int, coupling: str, arithmetic: str, device: str) -> float:
    """Relative to the largest input; weights such that every block changes its streams about as much as they are."""
    network = backbone(depth, device, coupling=coupling).eval()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.05)
    dtype = torch.float64 if arithmetic == "fp64" else torch.float32
    x = torch.randn(ROWS, LENGTH, WIDTH, device=device, dtype=dtype)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=arithmetic == "bf16"):
        return network.to(dtype).reconstruction_error(x, x, Layout("causal"))


if __name__ == "__main__":
    main()
