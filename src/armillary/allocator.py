"""glibc gives every large tensor back to the system and asks for it again: each training step then pays in page faults.

M_MMAP_MAX = 0 and no trimming keep the memory (about half as much again at its peak) and make an eager step up
to three times as fast on a CPU. Linux with glibc only; ARMILLARY_ALLOCATOR=system leaves it alone. Called by the
command's entry, never by an import.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
OPT_OUT = "ARMILLARY_ALLOCATOR"

_kept = False


def keep_memory() -> bool:
    """Whether glibc was told to keep freed memory."""
    global _kept
    if os.environ.get(OPT_OUT) == "system" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    _kept = bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1))
    return _kept


def state() -> str:
    return "glibc, keeps freed memory" if _kept else "system default"
