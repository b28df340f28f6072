"""Lists of different lengths in two flat arrays, and the lists of who played what in the training prefixes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer

from skiprec.dataset import Sessions
from skiprec.schema import PADDING

# n lists, N values in all; B sessions at a time, T positions.


@dataclass(frozen=True)
class Lists:
    """List i is values[edges[i] : edges[i + 1]]."""

    values: Int32[np.ndarray, " N"]
    edges: Int64[np.ndarray, " n_and_one"]

    @classmethod
    def of_owners(cls, owners: Integer[np.ndarray, " N"], values: Integer[np.ndarray, " N"], n: int) -> "Lists":
        """The values of owner 0, of owner 1, ... of n; owners ascend."""
        edges = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=n))])
        return cls(values.astype(np.int32), edges.astype(np.int64))

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """How long each list is."""
        return np.diff(self.edges)


@dataclass(frozen=True)
class Incidence:
    """Which items each session has in its training prefix, each once."""

    items: Lists
    """Of each session, ascending."""
    sessions: Lists
    """Of each item index, ascending."""

    @classmethod
    def of(cls, seen: Sessions, n_items: int) -> "Incidence":
        """Who played what.

        Args:
            seen: Training prefixes.
            n_items: Size of the catalogue.
        """
        rows, items, _ = distinct(seen.items.numpy())
        # Sorted as one number each, which is several times faster than finding an order.
        rows, items = np.divmod(np.sort(rows * (n_items + 1) + items), n_items + 1)
        by_item = np.argsort(items, kind="stable")
        return cls(
            items=Lists.of_owners(rows, items, len(seen.lengths)),
            sessions=Lists.of_owners(items[by_item], rows[by_item], n_items + 1),
        )


def distinct(
    items: Int64[np.ndarray, "B T"],
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """The distinct items of each session, where they stand last: row, item, position from 1. Rows ascend."""
    T = items.shape[1]
    is_last = items != PADDING
    for t in range(T - 1):
        is_last[:, t] &= (items[:, t, None] != items[:, t + 1 :]).all(1)
    rows, columns = np.nonzero(is_last)
    return rows, items[rows, columns], columns + 1
