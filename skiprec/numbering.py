"""Texts -> numbers, a block of texts at a time and without a Python object a text."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64, UInt64

# N texts of a block, K known texts.

FIRST, SECOND = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
"""Odd multipliers of the two hashes (2^64 over the golden ratio; a prime of xxHash64)."""


AT_ONCE = 1 << 20
"""Numbers that are used as indices at once: numpy makes eight bytes of each."""


class Codes(dict[str, int]):
    """Numbers texts 0, 1, 2, ... in the order in which they are first met. For few distinct texts."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


class Numbering:
    """Numbers texts 0, 1, 2, ... as they are met and keeps each once. For millions of distinct texts.

    A hash table with linear probing that looks up a whole block of texts at once: at every pass, each text that has
    no number yet looks at one slot. Texts are told apart by two 64-bit hashes: among ten million ids, two that share
    both come up with a chance of some 1e-25.
    """

    def __init__(self) -> None:
        self.n = 0
        self.texts: list[pa.StringArray] = []
        """Those of numbers 0 to n - 1 in turn."""
        self.slots = np.full(1 << 12, -1, dtype=np.int32)
        """The number that lives in a slot, -1 where none does. At most half of them are taken."""
        self.hashes = np.empty((2, len(self.slots) // 2), dtype=np.uint64)
        """Of each number; the rest is room."""

    def numbers(self, texts: pa.StringArray) -> Int32[np.ndarray, " N"]:
        """The number of each text, none of which is missing; new texts are given one."""
        hashes = hash_pairs(texts)
        self.make_room(len(texts))
        numbers = np.empty(len(texts), dtype=np.int32)
        left = np.arange(len(texts))  # those without a number, with their hashes and the slots that they look at
        first, second = hashes
        slot = self.home(first)
        while left.size:
            found = self.slots[slot]
            if (is_free := found < 0).any():
                new = self.settle(left[is_free], slot[is_free])
                self.hashes[:, self.n : self.n + len(new)] = hashes[:, new]
                self.texts.append(texts.take(pa.array(new)))
                self.n += len(new)
                found[is_free] = self.slots[slot[is_free]]
            is_own = (self.hashes[0].take(found) == first) & (self.hashes[1].take(found) == second)
            numbers[left[is_own]] = found[is_own]
            others = ~is_own
            left, first, second = left[others], first[others], second[others]
            slot = (slot[others] + 1) % len(self.slots)
        return numbers

    def settle(self, texts: Int64[np.ndarray, " F"], at: Int64[np.ndarray, " F"]) -> Int64[np.ndarray, " W"]:
        """Give free slots the next numbers. Of texts that look at the same one, the one that gets it is returned."""
        self.slots[at] = texts  # the last one stays
        has_slot = self.slots[at] == texts
        self.slots[at[has_slot]] = self.n + np.arange(has_slot.sum())
        return texts[has_slot]

    def make_room(self, n: int) -> None:
        """Grow so that n more texts fit."""
        size = len(self.slots)
        while size < 2 * (self.n + n):
            size *= 2
        if size == len(self.slots):
            return
        known = self.hashes[:, : self.n]
        self.hashes = np.empty((2, size // 2), dtype=np.uint64)
        self.hashes[:, : self.n] = known
        self.slots = np.full(size, -1, dtype=np.int32)
        left = np.arange(self.n)
        slot = self.home(known[0])
        while left.size:
            at = slot[left]
            is_free = self.slots[at] < 0
            self.slots[at[is_free]] = left[is_free]
            left = left[self.slots[at] != left]
            slot[left] = (slot[left] + 1) % size

    def home(self, hashes: UInt64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """The slot where a text is looked for first."""
        return (hashes & np.uint64(len(self.slots) - 1)).astype(np.int64)

    def in_order(self) -> tuple[pa.StringArray, Int32[np.ndarray, " K"]]:
        """All texts sorted, and the place of each number's text among them."""
        texts = pa.concat_arrays(self.texts)
        order = pc.array_sort_indices(texts)
        places = np.empty(self.n, dtype=np.int32)
        places[order.to_numpy()] = np.arange(self.n, dtype=np.int32)
        return texts.take(order), places


def renumber(numbers: Int32[np.ndarray, " N"], table: Int32[np.ndarray, " K"]) -> None:
    """Put table[number] in the place of each number."""
    for i in range(0, len(numbers), AT_ONCE):
        numbers[i : i + AT_ONCE] = table.take(numbers[i : i + AT_ONCE])


def counted(numbers: Int32[np.ndarray, " N"], n: int) -> Int64[np.ndarray, " n"]:
    """How often each number under n is there: np.bincount, without the memory that it takes."""
    counts = np.zeros(n, dtype=np.int64)
    for i in range(0, len(numbers), AT_ONCE):
        counts += np.bincount(numbers[i : i + AT_ONCE], minlength=n)
    return counts


def hash_pairs(texts: pa.StringArray) -> UInt64[np.ndarray, "2 N"]:
    """Two 64-bit hashes of each text, made from eight of its bytes at a time."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    # The words that start at each byte; eight more bytes, as the last text's last word may reach beyond the end.
    data = np.concatenate([np.frombuffer(texts.buffers()[2], dtype=np.uint8)[: offsets[-1]], np.zeros(8, np.uint8)])
    words = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))
    # By number of bytes: what of a word is the text's own.
    own_bits = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
    hashes = np.tile(lengths.astype(np.uint64), (2, 1))
    shortest = lengths.min()
    for at in range(0, lengths.max(), 8):
        here = slice(None) if at < shortest else np.flatnonzero(lengths > at)  # texts that have not ended
        word = words[starts[here] + at]
        if shortest < at + 8:
            word &= own_bits[np.minimum(lengths[here] - at, 8)]
        first, second = hashes[0, here], hashes[1, here]
        first = (first ^ word) * np.uint64(FIRST)
        second = (second + word) * np.uint64(SECOND)
        hashes[0, here] = first ^ (first >> np.uint64(32))
        hashes[1, here] = second ^ (second >> np.uint64(29))
    return hashes
