"""A pseudo-random order of range(n), evaluated at any place without holding the order in memory.

Source: alternating (unbalanced) Feistel network, Luby & Rackoff 1988; cycle walking, Black & Rogaway 2002, "Ciphers
with arbitrary finite domains"; round function: the finaliser of SplitMix64, Steele, Lea & Flood 2014.
Differs: no cipher. Sixteen rounds: theory's four assume wide halves; with eight, n = 5 is measurably not uniform.
"""

from __future__ import annotations

import numpy as np

N_ROUNDS = 16
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the key's permutation of range(n) sends each index: int64, of the shape of `index`.

    A pure function, the same on every platform. Costs sixteen hashes an index, twice that just above a power of two.
    Raises IndexError for an index outside range(n).
    """
    index = np.asarray(index)
    if index.size and (int(index.min()) < 0 or int(index.max()) >= n):
        raise IndexError(f"an index is outside range({n})")
    n_bits = max(1, (n - 1).bit_length())
    keys = _mix(np.array([(key + i * _GOLDEN) & _MASK_64 for i in range(1, N_ROUNDS + 1)], np.uint64))
    out = _shuffle(index.astype(np.uint64).ravel(), n_bits, keys)
    # The network permutes all numbers of n_bits. Walking its cycle until it is below n again permutes range(n).
    outside = np.flatnonzero(out >= n)
    while outside.size:
        out[outside] = _shuffle(out[outside], n_bits, keys)
        outside = outside[out[outside] >= n]
    return out.astype(np.int64).reshape(index.shape)


def _shuffle(x: np.ndarray, n_bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of n_bits: each half in turn is XORed with a hash of the other."""
    low_bits = np.uint64((n_bits + 1) // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(n_bits) - low_bits)) - np.uint64(1)
    low, high = x & low_mask, x >> low_bits
    for low_key, high_key in zip(keys[0::2], keys[1::2], strict=True):
        low = low ^ (_mix(high ^ low_key) & low_mask)
        high = high ^ (_mix(low ^ high_key) & high_mask)
    return (high << low_bits) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """Every bit of the input changes every bit of the output about half of the time. Wraps at 64 bits, as arrays do."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
