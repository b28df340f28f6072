"""Where random numbers come from: every draw has a seed of its own, made from what it is for.

A draw depends on (seed, epoch, step, purpose) alone. So a resumed run sees what the uninterrupted one would have,
and one arm's extra draws shift nothing in another's.
"""

import hashlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts that name a draw, such as (seed, epoch, step, "negatives")."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded by the parts that name what it is for."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def counter_bits(key: int, counter: np.ndarray) -> np.ndarray:
    """64 random bits for each counter (uint64), by SplitMix64 (Steele, Lea & Flood 2014): same on every machine.

    NumPy promises no stable streams between its versions; evaluation candidates must not move when it is updated.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the algorithm
        z = (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
