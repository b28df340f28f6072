"""Numbers that draws are made from, without torch: seeds from what a draw is for, and random bits by counting."""

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts that name a draw, such as (seed, epoch, step, "negatives")."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def counter_bits(key: int, counter: np.ndarray) -> np.ndarray:
    """64 random bits for each counter (uint64), by SplitMix64 (Steele, Lea & Flood 2014): same on every machine.

    NumPy promises no stable streams between its versions; evaluation candidates must not move when it is updated.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the algorithm
        z = (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
