"""Draws of unseen items, and which skipped items are pushed away."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skiprec.losses import next_positive
from skiprec.negatives import (
    SCOPES,
    beside_sharers,
    contrastive_negatives,
    draw_negatives,
    draw_popular,
    first_occurrence,
    is_in,
    next_item_negatives,
)

H, S = False, True  # heard, skipped


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def free_items(session: list[int], n_items: int) -> list[int]:
    """Slow and obvious: the items that may be drawn."""
    return [item for item in range(1, n_items + 1) if item not in session]


def chi_square(counts: Counter, among: list[int]) -> float:
    expected = sum(counts.values()) / len(among)
    return sum((counts[item] - expected) ** 2 / expected for item in among)


SESSIONS = [
    [3, 1, 3, 7, 0, 0],  # with item 1, a repeat and padding
    [10, 9, 8, 10, 2, 0],  # with the last item
    [5, 0, 0, 0, 0, 0],
    [1, 2, 3, 4, 5, 6],
    [5, 6, 7, 8, 9, 10],
    [0, 0, 0, 0, 0, 0],  # nothing is taken
]


def test_draws_are_uniform_over_the_free_items():
    """Chi-square with at most 9 degrees of freedom: above 33.7 once in 10,000 draws of this test, which are fixed."""
    draws = draw_negatives(torch.tensor(SESSIONS), 10, 20_000, rng())
    for session, drawn in zip(SESSIONS, draws.tolist(), strict=True):
        free = free_items(session, 10)
        counts = Counter(drawn)
        assert sorted(counts) == free  # every free item is reached, and no other
        assert chi_square(counts, free) < 33.7


@settings(max_examples=150, deadline=None)
@given(
    n_items=st.integers(1, 12),
    sessions=st.integers(1, 6).flatmap(
        lambda T: st.lists(st.lists(st.integers(0, 12), min_size=T, max_size=T), min_size=1, max_size=4)
    ),
    seed=st.integers(0, 1000),
)
def test_exactly_the_free_items_are_drawn(n_items, sessions, seed):
    sessions = [[min(item, n_items) for item in session] for session in sessions]
    free = [free_items(session, n_items) for session in sessions]
    if not all(free):
        with pytest.raises(ValueError, match=f"^a session holds all {n_items} items of the catalogue, so nothing is"):
            draw_negatives(torch.tensor(sessions), n_items, 5, rng(seed))
    else:
        # 300 draws miss one of 12 items once in 2 * 10^10.
        draws = draw_negatives(torch.tensor(sessions), n_items, 300, rng(seed))
        assert [sorted(set(row)) for row in draws.tolist()] == free


def test_the_same_seed_draws_the_same_and_another_does_not():
    items = torch.tensor(SESSIONS)
    first = draw_negatives(items, 1000, 50, rng(1))
    assert torch.equal(first, draw_negatives(items, 1000, 50, rng(1)))
    assert not torch.equal(first, draw_negatives(items, 1000, 50, rng(2)))


def test_sessions_draw_apart():
    draws = draw_negatives(torch.tensor([[5, 0], [5, 0]]), 1000, 50, rng())
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("same", [[3, 7, 1, 0, 0], [0, 1, 0, 3, 7], [7, 7, 3, 1, 1], [1, 3, 7, 7, 7]])
def test_padding_repeats_and_order_of_a_session_do_not_matter(same):
    expected = draw_negatives(torch.tensor([[1, 3, 7]]), 20, 100, rng())
    assert torch.equal(draw_negatives(torch.tensor([same]), 20, 100, rng()), expected)


def test_the_session_itself_is_not_changed():
    items = torch.tensor(SESSIONS)
    draw_negatives(items, 10, 5, rng())
    assert items.tolist() == SESSIONS


def test_nothing_left_to_draw_is_an_error():
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        draw_negatives(torch.tensor([[1, 2, 0], [3, 1, 2]]), 3, 5, rng())
    assert str(caught.value) == "a session holds all 3 items of the catalogue, so nothing is left to draw"


PLAYS = torch.tensor([0, 3, 0, 1, 4, 0, 2, 1, 5])  # of items 1 to 8


@pytest.mark.parametrize(
    "session", [[4, 1, 4, 0], [8, 7, 7, 8], [2, 5, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0], [6, 8, 1, 4]]
)
def test_popular_draws_count_every_play_outside_the_session_once(session, monkeypatch):
    """With the numbers 0, 1, 2, ... in place of random ones, each item comes as often as it was played."""
    outside = [0 if item in session else plays for item, plays in enumerate(PLAYS.tolist())]
    n = sum(outside)
    monkeypatch.setattr(torch, "randint", lambda top, shape, **options: torch.arange(shape[1]).expand(shape))
    draws, is_drawn = draw_popular(torch.tensor([session]), PLAYS.cumsum(0), 2 * n, rng())
    assert is_drawn.tolist() == [[True]]
    assert Counter(draws[0].tolist()) == {item: 2 * plays for item, plays in enumerate(outside) if plays}


@settings(max_examples=100, deadline=None)
@given(
    plays=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    sessions=st.integers(1, 5).flatmap(
        lambda T: st.lists(st.lists(st.integers(0, 9), min_size=T, max_size=T), min_size=1, max_size=3)
    ),
)
def test_popular_draws_reach_exactly_the_played_items_outside_the_session(plays, sessions):
    sessions = [[min(item, len(plays)) for item in session] for session in sessions]
    up_to = torch.tensor([0, *plays]).cumsum(0)
    draws, is_drawn = draw_popular(torch.tensor(sessions), up_to, 600, rng())  # 1 in 27 is missed once in 7 * 10^9
    for session, row, some in zip(sessions, draws.tolist(), is_drawn.tolist(), strict=True):
        played = [item for item, n in enumerate(plays, start=1) if n and item not in session]
        assert some == [bool(played)]
        assert sorted(set(row)) == played or not played
        assert all(1 <= item <= len(plays) for item in row)


def test_popular_draws_of_sessions_are_apart_and_repeatable():
    items = torch.tensor([[5, 0], [5, 0]])
    up_to = torch.ones(1001, dtype=torch.int64).cumsum(0) - 1
    first, _ = draw_popular(items, up_to, 50, rng())
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, draw_popular(items, up_to, 50, rng())[0])


class TestNextItemNegatives:
    def test_by_session_is_a_draw_a_session_outside_of_it(self):
        items = torch.tensor(SESSIONS)
        draws, mask = next_item_negatives("session", items, 10, 40, rng())
        assert mask is None
        assert torch.equal(draws, draw_negatives(items, 10, 40, rng()))

    def test_by_batch_is_one_uniform_draw_with_own_items_masked(self):
        draws, mask = next_item_negatives("batch", torch.tensor(SESSIONS), 10, 20_000, rng())
        assert draws.shape == (1, 20_000)
        counts = Counter(draws[0].tolist())
        assert sorted(counts) == list(range(1, 11))
        assert chi_square(counts, list(range(1, 11))) < 33.7
        assert mask.tolist() == [[n not in session for n in draws[0].tolist()] for session in SESSIONS]

    def test_full_is_the_whole_catalogue_without_a_draw(self):
        generator = rng()
        before = generator.get_state()
        items, mask = next_item_negatives("full", torch.tensor(SESSIONS), 10, 5, generator)
        assert (items.tolist(), mask) == ([list(range(1, 11))], None)
        assert torch.equal(generator.get_state(), before)

    def test_another_mode_is_refused(self):
        with pytest.raises(ValueError, match=r"^unknown negatives 'none', expected session, batch or full$"):
            next_item_negatives("none", torch.tensor(SESSIONS), 10, 5, rng())


ITEMS = torch.tensor([[1, 2, 2, 3, 1, 0], [2, 4, 5, 0, 0, 0], [6, 6, 7, 8, 6, 9]])
SKIPPED = torch.tensor([[H, S, S, S, S, H], [S, S, H, H, H, H], [S, S, H, H, S, H]])


def sets(scope: str, items=ITEMS, skipped=SKIPPED, n_items: int = 30, seed: int = 1) -> list[list[int]]:
    """The negatives of each session, in the order of their places."""
    anchors = next_positive(skipped, items != 0)
    plays = torch.arange(n_items + 1).cumsum(0)
    negatives, is_real = contrastive_negatives(
        scope, items, skipped, *anchors, n_items=n_items, generator=rng(seed), plays_up_to=plays
    )
    return [row[mask].tolist() for row, mask in zip(negatives, is_real, strict=True)]


class TestContrastiveNegatives:
    def test_session_is_the_set_of_its_own_skipped_items(self):
        assert sets("session") == [[2, 3, 1], [2, 4], [6]]

    def test_other_session_is_that_of_the_next_less_the_own_items(self):
        """Session 0 has heard or skipped 2, so 4 is left; session 2 is followed by session 0."""
        assert sets("other_session") == [[4], [6], [2, 3, 1]]

    def test_an_item_heard_in_the_own_session_is_no_negative_of_another(self):
        items, skipped = torch.tensor([[1, 2], [1, 3]]), torch.tensor([[H, H], [S, S]])
        assert sets("other_session", items, skipped) == [[3], []]

    def test_a_batch_of_one_has_no_other_session(self):
        assert sets("other_session", ITEMS[:1], SKIPPED[:1]) == [[]]

    def test_random_is_as_many_draws_as_there_are_distinct_skipped_items_outside_the_prefix(self):
        draws = sets("random")
        assert [len(row) for row in draws] == [3, 2, 1]
        many = [sets("random", n_items=12, seed=seed) for seed in range(400)]
        for b, session in enumerate(ITEMS.tolist()):
            assert sorted({n for draw in many for n in draw[b]}) == free_items(session, 12)

    def test_random_draws_may_repeat(self):
        """One item is free, so every draw is that item; each counts."""
        assert sets("random", torch.tensor([[1, 2, 3]]), torch.tensor([[S, S, H]]), n_items=4) == [[4, 4]]

    def test_popular_is_as_many_draws_as_random(self):
        assert [len(row) for row in sets("popular")] == [3, 2, 1]
        many = [sets("popular", n_items=12, seed=seed) for seed in range(400)]
        for b, session in enumerate(ITEMS.tolist()):
            assert sorted({n for draw in many for n in draw[b]}) == free_items(session, 12)

    def test_a_session_with_all_plays_has_no_popular_negatives(self):
        assert sets("popular", torch.tensor([[1, 2, 3]]), torch.tensor([[S, S, H]]), n_items=3) == [[]]

    def test_popular_without_plays_is_refused(self):
        with pytest.raises(ValueError, match=r"^negative_scope 'popular' needs plays_up_to, got None$"):
            contrastive_negatives(
                "popular", ITEMS, SKIPPED, *next_positive(SKIPPED, ITEMS != 0), n_items=9, generator=rng()
            )

    def test_past_is_by_position_what_was_skipped_before(self):
        items, skipped = torch.tensor([[1, 2, 1, 3]]), torch.tensor([[S, H, S, S]])
        anchors = next_positive(skipped, items != 0)
        negatives, mask = contrastive_negatives("past", items, skipped, *anchors, n_items=9, generator=rng())
        assert [negatives[0][row].tolist() for row in mask[0]] == [[], [1], [1], [1]]

    def test_in_batch_is_every_positive_of_the_batch_once(self):
        """Session 0: 1 after 2, 2, 3 (the skips are passed over). Session 1: 5. Session 2: 7, 8, 9."""
        items = torch.tensor([[1, 2, 2, 3, 1, 0], [2, 4, 5, 0, 0, 0], [6, 6, 7, 8, 6, 9]])
        skipped = torch.tensor([[H, S, S, S, H, H], [S, S, H, H, H, H], [S, S, H, H, S, H]])
        assert sets("in_batch", items, skipped) == [[1, 5, 7, 8, 9]]

    @pytest.mark.parametrize("scope", sorted(set(SCOPES) - {"random", "popular"}))
    def test_only_random_and_popular_draw(self, scope):
        generator = rng()
        before = generator.get_state()
        anchors = next_positive(SKIPPED, ITEMS != 0)
        contrastive_negatives(scope, ITEMS, SKIPPED, *anchors, n_items=30, generator=generator)
        assert torch.equal(generator.get_state(), before)

    @pytest.mark.parametrize("scope", sorted(set(SCOPES) - {"past"}))
    def test_padding_marked_skipped_is_no_item(self, scope):
        """The rows end with padding; whatever its flag says, the sets are the same."""
        assert sets(scope, ITEMS, SKIPPED | (ITEMS == 0)) == sets(scope)

    def test_another_scope_is_refused(self):
        with pytest.raises(
            ValueError, match=r"^unknown negative_scope 'future', expected one of session, past, other_s"
        ):
            sets("future")


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("B", [1, 2, 3, 7])
def test_released_positions_stand_in_the_row_whose_items_tile_gives_them(B, width):
    """Each position holds its own number; the source of position t of session b is session (b T + t) mod B."""
    x = torch.arange(B)[:, None] * width + torch.arange(4)
    rows = beside_sharers(x, "released", width)
    assert rows.shape == (B, width)
    for source, row in enumerate(rows.tolist()):
        assert all(number % B == source for number in row if number)
    kept = sorted(number for number in rows.flatten().tolist() if number)
    assert kept == sorted(number for number in x.flatten().tolist() if number)


def test_the_first_occurrence_is_marked_among_the_places_that_count():
    items = torch.tensor([[5, 5, 6, 5, 6]])
    mask = torch.tensor([[False, True, True, True, True]])
    assert first_occurrence(items, mask).tolist() == [[False, True, True, False, False]]


def test_is_in_looks_in_the_same_session_only():
    assert is_in(torch.tensor([[1, 2], [1, 2]]), torch.tensor([[2, 3, 3], [1, 1, 1]])).tolist() == [
        [False, True],
        [True, False],
    ]
