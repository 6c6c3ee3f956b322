"""Counter-based random numbers: a draw is a function of (seed, position) and of nothing else.

No generator state means nothing to save, and a sample that is the same whatever else is in the batch, whichever worker
runs it, and however often it has to be run again.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from any integers (run seed, step, prompt, sample, ...); different parts, independent seeds."""
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), fp64, one for each (seed, position) pair of int64 (SplitMix64, Steele et al. 2014)."""
    x = seed + (position + 1) * _GOLDEN  # 64-bit wrap-around is meant
    for shift, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ _shift_right(x, shift)) * factor
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 11).to(torch.float64) * 2.0**-53


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's `>>` on int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
