"""The best items for predicted embeddings, exactly, in less time than one pass over the item table.

For one session the pass is over an outline of the table, which has 16 bits a number; a row is looked at as it is only
where its outline cannot rule out that it is among the best. No score is kept that is not, so nothing of the catalogue's
size is made on a CPU.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, Int64
from torch import Tensor

from skiprec.device import one_thread
from skiprec.row_kernels import ask_for, compiled, over_rows

# B sessions, R rows of the item table, D embedding width, K items that are kept, N items that are left out; n rows of
# the table at a time.

ROWS_AT_ONCE = 4096
"""Where several sessions share a pass over the table: few enough for their scores to stay in the cache."""
ROWS_OF_A_THREAD = 1 << 14
"""Fewer are looked through by one thread: waking another would take longer."""
SCORES_AT_ONCE = 1 << 25
"""Scores that are held at once on other devices: 128 MiB."""
LARGEST_STEP = 32_767
AHEAD = 8
"""Rows that are asked for before they are needed."""
NOWHERE = np.iinfo(np.int64).max
"""The place of what is kept before there are K items: after every other."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A table in whole numbers of 16 bits: row r is about scales[r] * steps[r]."""

    steps: Int16[np.ndarray, "R D"]
    scales: Float32[np.ndarray, " R"]
    errors: Float32[np.ndarray, " R"]
    """What the score of the row may be above that of its outline, over the norm of the query (Cauchy-Schwarz)."""


Best = tuple[list[int], list[float]]
"""Places in the table and their scores, the best first."""


def best_items(
    table: Float[Tensor, "R D"],
    queries: Float[Tensor, "B D"],
    left_out: Sequence[Sequence[int]],
    k: int,
    *,
    threads: int | None = None,
    outline: Outline | None = None,
) -> list[Best]:
    """The k rows of the table with the highest inner products, for each query.

    Args:
        table: Embeddings.
        queries: On the same device.
        left_out: For each query, rows that are not to be found.
        k: At least 1. Fewer are found where fewer are left. Of equal ones the first are.
        threads: That share the table on a CPU; torch's number unless said.
        outline: Of the table, as `outline_of` makes it: a single query is answered sooner with it, and the same.
    """
    k = min(k, len(table))
    if table.device.type == "cpu" and table.dtype == torch.float32:
        return best_by_parts(table, queries, padded(left_out), k, threads or torch.get_num_threads(), outline)
    at_once = max(1, SCORES_AT_ONCE // len(table))
    blocks = [slice(start, start + at_once) for start in range(0, len(queries), at_once)]
    return [one for rows in blocks for one in best_by_sorting(table, queries[rows], left_out[rows], k)]


def best_by_sorting(
    table: Float[Tensor, "R D"], queries: Float[Tensor, "B D"], left_out: Sequence[Sequence[int]], k: int
) -> list[Best]:
    """From all scores at once, on any device."""
    scores = queries @ table.T
    for row, places in enumerate(left_out):
        scores[row, list(places)] = -torch.inf
    best = scores.topk(k, dim=1)
    counts = (best.values > -torch.inf).sum(1)
    return [
        (places[:n], values[:n])
        for places, values, n in zip(best.indices.tolist(), best.values.tolist(), counts.tolist(), strict=True)
    ]


def best_by_parts(
    table: Float32[Tensor, "R D"],
    queries: Float32[Tensor, "B D"],
    left_out: Int64[np.ndarray, "B N"],
    k: int,
    threads: int,
    outline: Outline | None,
) -> list[Best]:
    """Each thread looks through its part of the table; what they keep is then put in order."""
    parts, B = min(threads, -(-len(table) // ROWS_OF_A_THREAD)), len(queries)
    scores = np.full((parts, B, k), -np.inf, dtype=np.float32)
    places = np.full((parts, B, k), NOWHERE)
    rows, own = table.numpy(), queries.numpy()
    search_rows, search_outline = searches_of(table.shape[1])

    def search(start: int, stop: int) -> None:
        for part in range(start, stop):
            first, last = (len(table) * edge // parts for edge in (part, part + 1))
            if B == 1 and outline is not None:
                norm = np.float32(np.linalg.norm(own[0].astype(np.float64)) * (1 + 1e-6))
                arrays = outline.steps, outline.scales, outline.errors
                search_outline(*arrays, norm, rows, own[0], left_out[0], first, last, scores[part, 0], places[part, 0])
            elif B == 1:
                search_rows(rows, own[0], left_out[0], first, last, scores[part, 0], places[part, 0])
            else:
                search_blocks(table, queries, left_out, first, last, scores[part], places[part])

    over_rows(search, parts, worth_a_thread=1, threads=threads)
    return [in_order(scores[:, b].ravel(), places[:, b].ravel(), k) for b in range(B)]


@one_thread()  # a product for each block: threads that wait for each other at every one stand still on a busy machine
def search_blocks(
    table: Float32[Tensor, "R D"],
    queries: Float32[Tensor, "B D"],
    left_out: Int64[np.ndarray, "B N"],
    first: int,
    last: int,
    scores: Float32[np.ndarray, "B K"],
    places: Int64[np.ndarray, "B K"],
) -> None:
    """Keep the best of rows first to last for many queries: a block's product of matrices is looked through."""
    products = torch.empty(ROWS_AT_ONCE, len(queries))
    for start in range(first, last, ROWS_AT_ONCE):
        rows = table[start : min(start + ROWS_AT_ONCE, last)]
        block = torch.mm(rows, queries.T, out=products[: len(rows)])
        search_block(block.numpy(), start, left_out, scores, places)


def padded(rows: Sequence[Sequence[int]]) -> Int64[np.ndarray, "B N"]:
    """Lists of places as a table; -1, which is no place, fills it up."""
    table = np.full((len(rows), max(map(len, rows), default=0)), -1)
    for into, places in zip(table, rows, strict=True):
        into[: len(places)] = places
    return table


def in_order(scores: Float32[np.ndarray, " K"], places: Int64[np.ndarray, " K"], k: int) -> Best:
    """The k best of what was kept, by falling scores and then by place."""
    order = np.lexsort((places, -scores))[:k]
    order = order[places[order] != NOWHERE]
    return places[order].tolist(), scores[order].tolist()


@compiled
def keep(scores: Float32[np.ndarray, " K"], places: Int64[np.ndarray, " K"], score: np.float32, place: int) -> None:
    """Compiled code alone: put an item in place of the worst that is kept, which is at 0: a heap."""
    at = 0
    while 2 * at + 1 < scores.size:
        worse, other = 2 * at + 1, 2 * at + 2
        if other < scores.size and (
            scores[other] < scores[worse] or (scores[other] == scores[worse] and places[other] > places[worse])
        ):
            worse = other
        if scores[worse] > score or (scores[worse] == score and places[worse] < place):
            break
        scores[at], places[at] = scores[worse], places[worse]
        at = worse
    scores[at], places[at] = score, place


@compiled
def is_in(places: Int64[np.ndarray, " N"], place: int) -> bool:
    """Compiled code alone: whether a place is one of those."""
    for one in places:  # noqa: SIM110  Numba has no `any` of a generator
        if one == place:
            return True
    return False


@functools.cache
def searches_of(width: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """`search_rows` and `search_outline` for tables of this width: if a compiler does not know it, both are slower."""

    # A product is summed in any order, or it could not be vectorised; it is the same order in every run.
    @functools.partial(compiled, fastmath={"reassoc", "contract"})
    def search_rows(
        table: Float32[np.ndarray, "R D"],
        query: Float32[np.ndarray, " D"],
        left_out: Int64[np.ndarray, " N"],
        first: int,
        last: int,
        scores: Float32[np.ndarray, " K"],
        places: Int64[np.ndarray, " K"],
    ) -> None:
        """Keep the best of rows first to last for one query, comparing scores as they are made."""
        for row in range(first, last):
            ask_for(table, min(row + AHEAD, last - 1))
            score = np.float32(0)
            for d in range(width):
                score += table[row, d] * query[d]
            # Rows come in their order, so of equal ones the first stays.
            if score > scores[0] and not is_in(left_out, row):
                keep(scores, places, score, row)

    @functools.partial(compiled, fastmath={"reassoc", "contract"})
    def search_outline(
        steps: Int16[np.ndarray, "R D"],
        scales: Float32[np.ndarray, " R"],
        errors: Float32[np.ndarray, " R"],
        norm: np.float32,
        table: Float32[np.ndarray, "R D"],
        query: Float32[np.ndarray, " D"],
        left_out: Int64[np.ndarray, " N"],
        first: int,
        last: int,
        scores: Float32[np.ndarray, " K"],
        places: Int64[np.ndarray, " K"],
    ) -> None:
        """The same, looking only at those rows whose scores may be high enough."""
        for row in range(first, last):
            ask_for(steps, min(row + 2 * AHEAD, last - 1))
            about = np.float32(0)
            for d in range(width):
                about += np.float32(steps[row, d]) * query[d]
            if about * scales[row] + norm * errors[row] > scores[0]:
                score = np.float32(0)
                for d in range(width):
                    score += table[row, d] * query[d]
                if score > scores[0] and not is_in(left_out, row):
                    keep(scores, places, score, row)

    return search_rows, search_outline


def outline_of(table: Float32[Tensor, "R D"]) -> Outline:
    """The outline of a table on the CPU: half as large as the table."""
    R, D = table.shape
    outline = Outline(np.empty((R, D), np.int16), np.empty(R, np.float32), np.empty(R, np.float32))
    # Two sums of products in float32 may be off by so much, over the product of the vectors' norms.
    rounding = 2 * (D + 8) * 2.0**-24
    for start in range(0, R, ROWS_AT_ONCE):
        rows = table[start : start + ROWS_AT_ONCE].numpy().astype(np.float64)
        part = slice(start, start + len(rows))
        is_finite = np.isfinite(rows).all(1)
        rows[~is_finite] = 0
        scales = (np.abs(rows).max(1, initial=0) / LARGEST_STEP).astype(np.float32)
        scales[scales == 0] = 1  # a row of zeros, or of next to nothing, which the error then covers
        wide = scales[:, None].astype(np.float64)
        steps = np.rint(rows / wide).clip(-LARGEST_STEP, LARGEST_STEP)
        off = np.linalg.norm(rows - steps * wide, axis=1) + rounding * np.linalg.norm(rows, axis=1)
        off[~is_finite] = np.inf
        outline.steps[part], outline.scales[part], outline.errors[part] = steps, scales, off * (1 + 1e-6)
    return outline


@compiled
def search_block(
    block: Float32[np.ndarray, "n B"],
    first: int,
    left_out: Int64[np.ndarray, "B N"],
    scores: Float32[np.ndarray, "B K"],
    places: Int64[np.ndarray, "B K"],
) -> None:
    """Keep what is among the best of a block of scores, whose first row is the table's `first`."""
    n, B = block.shape
    least = scores[:, 0].copy()  # side by side
    for row in range(n):
        better = 0  # counted first: a loop that only compares is vectorised
        for b in range(B):
            better += block[row, b] > least[b]
        if better:
            for b in range(B):
                if block[row, b] > least[b] and not is_in(left_out[b], first + row):
                    keep(scores[b], places[b], block[row, b], first + row)
                    least[b] = scores[b, 0]
