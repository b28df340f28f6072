"""Which items a step pushes away: unseen ones drawn at random, and the skipped ones of a session, or their controls."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from skiprec.device import has_kernels
from skiprec.schema import PADDING

# B sessions in the batch, T positions, N draws a session, R items in the catalogue and padding.

Scope = Literal["session", "past", "other_session", "released", "random", "popular", "in_batch"]
SCOPES = get_args(Scope)


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
    # Padding and repeats go to the end, where no draw reaches.
    items = items.masked_fill(repeats_before(items) | (items == PADDING), n_items + T + 1).sort(dim=1).values
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


def draw_popular(
    session_items: Int[Tensor, "B T"], plays_up_to: Int[Tensor, " R"], n_draws: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B {n_draws}"], Bool[Tensor, "B 1"]]:
    """Draw items in proportion to plays, with replacement, from those that do not occur in each session.

    Exact and without rejection: a play is drawn from those outside of the session, counted by item, and moved up by the
    plays of the session's items at or below it.

    Args:
        session_items: Item indices, padded with 0.
        plays_up_to: Plays of all items up to an index, that item's included; padding has none.
        n_draws: Draws a session.
        generator: On the same device as session_items.

    Returns:
        Item indices, none of them in its session; and False where a session's own items have all plays, whose draws
        mean nothing.
    """
    items = session_items.sort(dim=1).values
    plays = (plays_up_to[items] - plays_up_to[(items - 1).clamp(min=0)]).masked_fill(repeats_before(items), 0)
    own = plays.cumsum(1)  # of the session's items so far
    outside = plays_up_to[-1] - own[:, -1:]
    bits = torch.randint(2**62, (len(items), n_draws), generator=generator, device=items.device)
    draws = bits % outside.clamp(min=1)
    # From (plays up to a session item - own plays so far) on, a draw lies past that item.
    n_passed = torch.searchsorted(plays_up_to[items] - own, draws, right=True)
    draws = draws + F.pad(own, (1, 0)).gather(1, n_passed)
    # The first item whose plays reach past the draw; clamped for sessions without any.
    return torch.searchsorted(plays_up_to, draws, right=True).clamp(max=len(plays_up_to) - 1), outside > 0


def repeats_before(ordered: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True where an item of an ordered row is the one before it once more."""
    return F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))


def next_item_negatives(
    mode: str, session_items: Int[Tensor, "B T"], n_items: int, n_negatives: int, generator: torch.Generator
) -> tuple[Int[Tensor, "draws N"], Bool[Tensor, "B N"] | None]:
    """The items that targets are ranked above by the softmax (semantics: section 4).

    Args:
        mode: "session": one draw a session, outside of it. "batch": one draw for all, over the whole catalogue. "full":
            nothing is drawn, and the whole catalogue is shared, item i at index i - 1.
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
    if mode == "full":
        return torch.arange(1, n_items + 1, device=session_items.device)[None], None
    raise ValueError(f"unknown negatives '{mode}', expected session, batch or full")


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


def contrastive_negatives(
    scope: str,
    items: Int[Tensor, "B T"],
    skipped: Bool[Tensor, "B T"],
    positive_at: Int[Tensor, "B T"],
    is_anchor: Bool[Tensor, "B T"],
    *,
    n_items: int,
    generator: torch.Generator,
    plays_up_to: Int[Tensor, " R"] | None = None,
) -> tuple[Int[Tensor, "G N"], Bool[Tensor, "G N"] | Bool[Tensor, "B T N"]]:
    """The items that positions are pushed away from, each once, before p_m and item i are taken out.

    Seshadri & Knees 2023 (arXiv:2309.11623), section 3.4, and its controls. G groups of positions share their items:
    the sessions, or the one batch (see `beside_sharers`).

    Args:
        scope: "session": its own skipped items. "past": of these, for each position, those that were skipped before it.
            "other_session": those of the next session of the batch, less items of the own prefix. "released": its own
            ones as well, but other positions share them. "random": as many uniform draws outside the prefix as the
            session has skipped items. "popular": the same in proportion to plays; none for a session that has all
            plays itself. "in_batch": the positives of all anchors of the batch.
        items: Training prefixes, padded with 0.
        skipped: True where the item was skipped; False at padding.
        positive_at: Where p_m of each position stands; read by "in_batch" alone, as is the next.
        is_anchor: True where a position has a p_m that it may be pulled to. One that has no negatives in the end is
            still among them: whether it has any depends on what all of them give.
        n_items: Items in the catalogue.
        generator: Drawn from by "random" and "popular" alone.
        plays_up_to: Plays of all items up to an index, that item's included; read by "popular" alone.

    Returns:
        Item indices, and True where one is real: by position for "past".

    Raises:
        ValueError: If the scope is unknown, or needs plays that were not handed in.
    """
    B, T = items.shape
    if scope == "in_batch":
        places = torch.zeros(B, T + 1, dtype=torch.bool, device=items.device)
        is_positive = places.scatter_(1, torch.where(is_anchor, positive_at, T), True)[:, :T]
        positives = items.masked_fill(~is_positive, PADDING).flatten().sort().values[None]
        is_real = (positives != PADDING) & ~repeats_before(positives)
        if has_kernels(items.device):  # some half of the work; asking a GPU how many there are would wait for it
            positives = positives[is_real][None]
            is_real = torch.ones_like(positives, dtype=torch.bool)
        return positives, is_real
    mask = first_occurrence(items, skipped & (items != PADDING))
    if scope in ("session", "released"):
        return items, mask
    if scope == "past":
        # An item was skipped before a position if it was skipped for the first time there.
        return items, mask[:, None, :] & torch.ones(T, T, dtype=torch.bool, device=items.device).tril(-1)
    if scope == "other_session":
        # A batch of one meets itself here, and all its items are taken out as its own: no anchors.
        others, other_mask = items.roll(-1, 0), mask.roll(-1, 0)
        return others, other_mask & ~is_in(others, items)
    if scope == "random":
        return draw_negatives(items, n_items, T, generator), mask
    if scope == "popular":
        if plays_up_to is None:
            raise ValueError("negative_scope 'popular' needs plays_up_to, got None")
        draws, is_drawn = draw_popular(items, plays_up_to, T, generator)
        return draws, mask & is_drawn
    raise ValueError(f"unknown negative_scope '{scope}', expected one of {', '.join(SCOPES)}")


def beside_sharers(x: Shaped[Tensor, "B P *rest"], scope: str, width: int) -> Shaped[Tensor, "G Q *rest"]:
    """Values of positions, by the group whose negatives the position has.

    "released" gives position t of session b those of session (b T + t) mod B, which is what repeating the (B, N) items
    with `tile` does to T positions a session, listed one session after the other. T is the width of the batch of
    prefixes, padding and the last item included, for both architectures: the released code tiles by the padded width
    too. So a position's source depends on how far the batch is padded.

    Args:
        x: Anything that there is of each position; P may leave out the last.
        scope: A negative_scope.
        width: T.
    """
    if scope == "in_batch":
        return x.flatten(0, 1)[None]
    if scope == "released":
        # Each session is met T times: by the positions that stand B apart.
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, width - x.shape[1]))
        return x.reshape(width, len(x), *x.shape[2:]).transpose(0, 1)
    return x
