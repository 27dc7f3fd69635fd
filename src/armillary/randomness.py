"""One seed, many purposes: the key of every random draw of a run. Imports nothing of the house."""

from __future__ import annotations

import hashlib
import json


def key(seed: int, *purpose: str | int) -> int:
    """A number in [0, 2**63) that depends on every argument: `key(seed, "dropout", step, rank)`.

    Other purposes give unrelated keys, so a draw may be repeated, skipped or reordered without touching another. The
    same on every machine. 1 and "1" are different purposes.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: what torch and a signed 64-bit integer hold
