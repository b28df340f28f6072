"""Order of batches, and which positions a bidirectional model must guess."""

import torch
from conftest import dataset_of

from skiprec.batches import batches, draw_masked_positions, training_sessions
from skiprec.dataset import training_prefix


def rows(part) -> list[tuple]:
    """The sessions of a batch, or of a dataset's part."""
    columns = (x.tolist() for x in (part.items, part.skip_levels, part.skipped, part.lengths))
    return [tuple(map(str, row)) for row in zip(*columns, strict=True)]


def rows_of(dataset, **options) -> list[list[tuple]]:
    """Each batch as a list of its sessions."""
    return [rows(batch) for batch in batches(training_prefix(dataset), 50, **options)]


def test_every_session_comes_once_an_epoch_with_its_flags(dataset):
    found = rows_of(dataset, seed=1, epoch=1)
    assert [len(batch) for batch in found] == [50, 50, 20]
    assert sorted(session for batch in found for session in batch) == sorted(rows(training_prefix(dataset)))


def test_the_order_depends_on_seed_and_epoch_alone(dataset):
    first = rows_of(dataset, seed=1, epoch=1)
    torch.manual_seed(123)  # the global state has no say
    assert rows_of(dataset, seed=1, epoch=1) == first
    assert rows_of(dataset, seed=1, epoch=2) != first
    assert rows_of(dataset, seed=2, epoch=1) != first


def test_the_position_mask_is_true_where_an_item_is(dataset):
    for batch in batches(training_prefix(dataset), 50, seed=1, epoch=1):
        assert torch.equal(batch.position_mask, batch.items != 0)


def test_without_options_what_is_trained_on_is_every_training_prefix(dataset):
    sessions, prefix = training_sessions(dataset), training_prefix(dataset)
    for name in ("items", "skip_levels", "skipped", "lengths"):
        assert torch.equal(getattr(sessions, name), getattr(prefix, name))


def test_a_threshold_says_which_levels_are_skips():
    """Levels of the prefix: 0, 1, 2, 3, then padding. The dataset's own threshold is 2."""
    small = dataset_of([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5]], [[0, 1, 2, 3, 3, 3], [3, 2, 1, 3, 3]], n_items=9)
    expected = {
        0: [[False, False, True, True], [True, True, False, False]],
        1: [[False, True, True, True], [True, True, True, False]],
        2: [[False, False, True, True], [True, True, False, False]],
        3: [[False, False, False, True], [True, False, False, False]],
    }
    for threshold, skipped in expected.items():
        assert training_sessions(small, skip_threshold=threshold).skipped.tolist() == skipped


def chosen(sessions: list[list[int]], share: float, digest: str = "one") -> list[int]:
    """The first items, by which sessions are told apart here."""
    small = dataset_of(sessions, n_items=2000, digest=digest)
    return training_sessions(small, session_share=share).items[:, 0].tolist()


def test_a_share_of_sessions_is_nested_in_larger_ones_and_drawn_by_the_dataset_alone():
    sessions = [[i, 1, 2, 3] for i in range(1, 1001)]
    tenth, third, all_of_them = (chosen(sessions, share) for share in (0.1, 0.3, 1.0))
    assert (len(tenth), len(third), len(all_of_them)) == (100, 300, 1000)
    assert set(tenth) < set(third) < set(all_of_them)
    torch.manual_seed(5)  # the global state has no say
    assert chosen(sessions, 0.1) == tenth
    assert chosen(sessions, 0.1, digest="another") != tenth
    assert sorted(third) == third
    assert 400 < sum(third) / 300 < 600  # neither the first ones nor the last
    assert len(chosen(sessions, 1e-6)) == 1


def draw(lengths: list[int], mask_rate: float, mask_last_only: float, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_masked_positions(torch.tensor(lengths), 8, mask_rate, mask_last_only, generator)


MANY = [2, 3, 5, 8] * 2000


def test_masks_are_at_least_one_a_session_and_never_padding():
    real = torch.arange(8) < torch.tensor(MANY)[:, None]
    for rate in (0.0, 0.2, 1.0):
        masked = draw(MANY, rate, 0.1)
        assert masked.any(1).all()
        assert not (masked & ~real).any()


def test_each_real_position_is_masked_at_the_given_rate():
    """With 8 positions and rate 0.2, and one chosen where none is hit (0.8^8 of the time): 0.2 + 0.8^8 / 8 each."""
    masked = draw([8] * 20_000, 0.2, 0.0).double()
    assert torch.allclose(masked.mean(0), torch.full((8,), 0.2 + 0.8**8 / 8, dtype=torch.float64), atol=0.012)


def test_with_rate_0_one_position_at_random_is_masked():
    masked = draw([5] * 10_000, 0.0, 0.0)
    assert (masked.sum(1) == 1).all()
    expected = torch.tensor([0.2] * 5 + [0.0] * 3, dtype=torch.float64)
    assert torch.allclose(masked.double().mean(0), expected, atol=0.015)


def test_with_rate_1_every_real_position_is_masked():
    assert draw([3, 8], 1.0, 0.0).tolist() == [[True] * 3 + [False] * 5, [True] * 8]


def test_a_share_of_sessions_masks_only_the_last_position():
    """With every position masked otherwise, the sessions that mask only their last are plain to see: 30%."""
    masked = draw([8] * 10_000, 1.0, 0.3)
    only_last = masked.sum(1) == 1
    assert masked[:, 7].all()
    assert abs(only_last.double().mean().item() - 0.3) < 0.015
    assert draw([3, 5], 1.0, 1.0).nonzero().tolist() == [[0, 2], [1, 4]]


def test_masks_depend_on_the_generator_alone():
    assert torch.equal(draw(MANY, 0.2, 0.1), draw(MANY, 0.2, 0.1))
    assert not torch.equal(draw(MANY, 0.2, 0.1), draw(MANY, 0.2, 0.1, seed=2))
