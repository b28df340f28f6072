"""Which items a step pushes away: unseen ones drawn at random, and the skipped ones of a session."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skiprec.schema import PADDING
from skiprec.touched_rows import has_kernels

# B sessions in the batch, T positions, N draws a session.


def draw_negatives(
    session_items: Int[Tensor, "B T"], n_items: int, n_negatives: int, generator: torch.Generator
) -> Int[Tensor, "B {n_negatives}"]:
    """Draw items uniformly, with replacement, from those that do not occur in each session.

    Exact and without rejection: a draw from 1..(n_items - k), with k the session's distinct items, is moved up by the
    number of session items at or below it.

    Args:
        session_items: Item indices, padded with 0. Held-out items are not in it, and so may be drawn.
        n_items: Items in the catalogue; indices 1 to n_items.
        n_negatives: Draws a session.
        generator: On the same device as session_items.

    Returns:
        Item indices, none of them in its session, none 0.

    Raises:
        ValueError: If a session holds the whole catalogue.
    """
    B, T = session_items.shape
    items = session_items.sort(dim=1).values
    repeat = torch.zeros_like(items, dtype=torch.bool)
    repeat[:, 1:] = items[:, 1:] == items[:, :-1]
    # Padding and repeats go to the end, where no draw reaches.
    items = items.masked_fill(repeat | (items == PADDING), n_items + T + 1).sort(dim=1).values
    n_distinct = (items <= n_items).sum(1, keepdim=True)  # (B, 1)
    free = n_items - n_distinct
    if has_kernels(session_items.device) and bool((free < 1).any()):  # asking a GPU would wait for it
        raise ValueError(f"a session holds all {n_items} items of the catalogue, so nothing is left to draw")
    # 62 random bits modulo at most 2^31: uniform to one part in 2^31.
    bits = torch.randint(2**62, (B, n_negatives), generator=generator, device=session_items.device)
    draws = 1 + bits % free
    # The j-th smallest session item (from 0) has (item - j) free items up to it; a draw from there on moves past it.
    thresholds = items - torch.arange(T, device=items.device)
    return draws + torch.searchsorted(thresholds, draws, right=True)


def next_item_negatives(
    mode: str, session_items: Int[Tensor, "B T"], n_items: int, n_negatives: int, generator: torch.Generator
) -> tuple[Int[Tensor, "draws N"], Bool[Tensor, "B N"] | None]:
    """The draws of the sampled softmax (semantics: section 4).

    Args:
        mode: "session": one draw a session, outside of it. "batch": one draw for all, over the whole catalogue.
        session_items: Training prefixes, padded with 0.
        n_items: Items in the catalogue.
        n_negatives: Items a draw.
        generator: On the same device as session_items.

    Returns:
        Item indices, a row a session or a single row; and where a shared draw is no item of the session's own, or
        None where that holds everywhere.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode == "session":
        return draw_negatives(session_items, n_items, n_negatives, generator), None
    if mode == "batch":
        draws = 1 + torch.randint(n_items, (1, n_negatives), generator=generator, device=session_items.device)
        return draws, ~occurs_in(draws[0], session_items)
    raise ValueError(f"unknown negatives '{mode}', expected session or batch")


def is_in(items: Int[Tensor, "B N"], others: Int[Tensor, "B T"]) -> Bool[Tensor, "B N"]:
    """True where an item of a session occurs among the others of the same session."""
    return (items[:, :, None] == others[:, None, :]).any(-1)


def occurs_in(draws: Int[Tensor, " N"], session_items: Int[Tensor, "B T"]) -> Bool[Tensor, "B N"]:
    """True where a draw that all sessions share occurs in the session.

    By looking the few session items up among the draws: comparing all with all takes as long as a product of scores.
    """
    ordered = draws.sort().values
    N = len(ordered)
    # An item's place is that of its first equal among the ordered draws; N if there is none.
    place = torch.searchsorted(ordered, session_items)
    is_drawn = ordered[place.clamp(max=N - 1)] == session_items
    hit = torch.zeros(len(session_items), N + 1, dtype=torch.bool, device=draws.device)
    hit.scatter_(1, torch.where(is_drawn, place, N), True)
    return hit[:, torch.searchsorted(ordered, draws)]


def first_occurrence(items: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the first masked-in place of each item of a session: a list of places as a set of items."""
    same = (items[:, :, None] == items[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    return mask & ~same.tril(-1).any(-1)


def skipped_items(
    scope: str,
    items: Int[Tensor, "B T"],
    skipped: Bool[Tensor, "B T"],
    *,
    n_items: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The items that a session's positions are pushed away from, each once, before p_m and item i are taken out.

    Seshadri & Knees 2023 (arXiv:2309.11623), section 3.4, and its controls.

    Args:
        scope: "session": its own skipped items. "other_session": those of the next session of the batch, less items
            of the own prefix. "random": as many uniform draws outside the prefix as the session has skipped items.
        items: Training prefixes, padded with 0.
        skipped: True where the item was skipped; False at padding.
        n_items: Items in the catalogue.
        generator: Drawn from by "random" alone.

    Returns:
        Item indices, and True where one is real.

    Raises:
        ValueError: If the scope is unknown.
    """
    mask = first_occurrence(items, skipped & (items != PADDING))
    if scope == "session":
        return items, mask
    if scope == "other_session":
        # A batch of one meets itself here, and all its items are taken out as its own: no anchors.
        others, other_mask = items.roll(-1, 0), mask.roll(-1, 0)
        return others, other_mask & ~is_in(others, items)
    if scope == "random":
        return draw_negatives(items, n_items, items.shape[1], generator), mask
    raise ValueError(f"unknown negative_scope '{scope}', expected session, other_session or random")
