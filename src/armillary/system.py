"""What this machine and its software are: for run.json, `doctor` and the report. torch is imported when asked."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "accelerate", "safetensors", "tokenizers", "sentencepiece", "numpy", "pydantic", "matplotlib")


def describe() -> dict[str, Any]:
    """Plain facts: versions, processor, threads, accelerator, memory."""
    import torch

    from armillary import __version__, allocator

    return {
        "armillary": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_name": torch.cuda.get_device_name() if gpu()[0] == "cuda" else _processor(),
        "allocator": allocator.state(),
    }


def peak_bytes() -> int | None:
    """The most memory this process has had, None where the system does not say. Linux's getrusage goes on from what the
    process had that started it."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def diagnose(root: Path) -> dict[str, Any]:
    """`describe`, and what a person asks when something is slow or missing."""
    free = shutil.disk_usage(root if root.exists() else Path()).free
    return describe() | {
        "memory": _memory(),
        "bf16_on_cpu": bf16_on_cpu(),
        "compiler": shutil.which("g++") or shutil.which("clang++") or "none: torch.compile on a CPU needs g++",
        "gpu": gpu()[1],
        "free_disk": f"{free / 2**30:.1f} GiB at {root}",
        "versions": versions(),
    }


def bf16_on_cpu() -> bool | None:
    """Whether the processor multiplies in bf16 by itself: AVX-512 or AMX may have it, AVX2 emulates it. None: it is
    none of theirs, and not known."""
    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def gpu() -> tuple[str | None, str]:
    """The accelerator that this torch can use (cuda or mps; None: none), and why that one, in a sentence."""
    import torch

    if torch.cuda.is_available():
        capability, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
        card = f"{torch.cuda.get_device_name()} (compute capability {capability[0]}.{capability[1]})"
        if torch.version.hip is not None or not built or _covers(built, capability):
            return "cuda", f"{card} is used"
        return None, f"not used: {card}, and this torch was built for {', '.join(built)}; install one for this card"
    if torch.backends.mps.is_available():
        return "mps", "Apple GPU (mps) is used"
    if torch.version.cuda is None and torch.version.hip is None:
        seen = "an NVIDIA driver is here, but " if shutil.which("nvidia-smi") else ""
        return None, f"not used: {seen}this torch ({torch.__version__}) was built for the CPU only"
    if not shutil.which("nvidia-smi"):
        return None, "not used: torch could, but there is no NVIDIA driver on this machine"
    cuda = torch.version.cuda
    return None, f"not used: torch was built for CUDA {cuda}, and the driver does not offer it; update the driver"


def _covers(built: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code built for these runs on a card: binaries on later cards of their generation, PTX on all later ones;
    with an a on that card alone, with an f on its generation."""
    for one in filter(None, (re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in built)):
        first = (int(one[2]), int(one[3]))
        is_later = first <= capability and ((one[1] == "compute" and not one[4]) or first[0] == capability[0])
        if first == capability or (is_later and one[4] != "a"):
            return True
    return False


def _memory() -> str:
    info = Path("/proc/meminfo")
    if not info.is_file():
        return "not known on this system"
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
    kib = {name: int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    return f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB available"


def versions() -> dict[str, str]:
    """Installed versions of what the package stands on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
