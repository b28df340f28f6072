"""Draws of unseen items, and which skipped items are pushed away."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skiprec.negatives import draw_negatives, first_occurrence, is_in, next_item_negatives, skipped_items

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

    def test_another_mode_is_refused(self):
        with pytest.raises(ValueError, match=r"^unknown negatives 'full', expected session or batch$"):
            next_item_negatives("full", torch.tensor(SESSIONS), 10, 5, rng())


ITEMS = torch.tensor([[1, 2, 2, 3, 1, 0], [2, 4, 5, 0, 0, 0], [6, 6, 7, 8, 6, 9]])
SKIPPED = torch.tensor([[H, S, S, S, S, H], [S, S, H, H, H, H], [S, S, H, H, S, H]])


def sets(scope: str, items=ITEMS, skipped=SKIPPED, n_items: int = 30, seed: int = 1) -> list[list[int]]:
    """The negatives of each session, in the order of their places."""
    negatives, is_real = skipped_items(scope, items, skipped, n_items=n_items, generator=rng(seed))
    return [row[mask].tolist() for row, mask in zip(negatives, is_real, strict=True)]


class TestSkippedItems:
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

    @pytest.mark.parametrize("scope", ["session", "other_session"])
    def test_only_random_draws(self, scope):
        generator = rng()
        before = generator.get_state()
        skipped_items(scope, ITEMS, SKIPPED, n_items=30, generator=generator)
        assert torch.equal(generator.get_state(), before)

    @pytest.mark.parametrize("scope", ["session", "other_session", "random"])
    def test_padding_marked_skipped_is_no_item(self, scope):
        """The rows end with padding; whatever its flag says, the sets are the same."""
        assert sets(scope, ITEMS, SKIPPED | (ITEMS == 0)) == sets(scope)

    @pytest.mark.parametrize("scope", ["past", "popular", "released", "in_batch"])
    def test_another_scope_is_refused(self, scope):
        with pytest.raises(ValueError, match=rf"^unknown negative_scope '{scope}', expected session, other_session or"):
            sets(scope)


def test_the_first_occurrence_is_marked_among_the_places_that_count():
    items = torch.tensor([[5, 5, 6, 5, 6]])
    mask = torch.tensor([[False, True, True, True, True]])
    assert first_occurrence(items, mask).tolist() == [[False, True, True, False, False]]


def test_is_in_looks_in_the_same_session_only():
    assert is_in(torch.tensor([[1, 2], [1, 2]]), torch.tensor([[2, 3, 3], [1, 1, 1]])).tolist() == [
        [False, True],
        [True, False],
    ]
