"""Order of batches, and which positions a bidirectional model must guess."""

import torch

from skiprec.batches import batches, draw_masked_positions
from skiprec.dataset import training_prefix


def rows_of(dataset, **options) -> list[list[tuple]]:
    """Each batch as a list of its sessions."""
    return [
        [
            (tuple(i), tuple(s), n)
            for i, s, n in zip(*(t.tolist() for t in (b.items, b.skipped, b.lengths)), strict=True)
        ]
        for b in batches(training_prefix(dataset), 50, **options)
    ]


def test_every_session_comes_once_an_epoch_with_its_flags(dataset):
    found = rows_of(dataset, seed=1, epoch=1)
    assert [len(batch) for batch in found] == [50, 50, 20]
    prefix = training_prefix(dataset)
    expected = [
        (tuple(i), tuple(s), n)
        for i, s, n in zip(prefix.items.tolist(), prefix.skipped.tolist(), prefix.lengths.tolist(), strict=True)
    ]
    assert sorted(session for batch in found for session in batch) == sorted(expected)


def test_the_order_depends_on_seed_and_epoch_alone(dataset):
    first = rows_of(dataset, seed=1, epoch=1)
    torch.manual_seed(123)  # the global state has no say
    assert rows_of(dataset, seed=1, epoch=1) == first
    assert rows_of(dataset, seed=1, epoch=2) != first
    assert rows_of(dataset, seed=2, epoch=1) != first


def test_the_position_mask_is_true_where_an_item_is(dataset):
    for batch in batches(training_prefix(dataset), 50, seed=1, epoch=1):
        assert torch.equal(batch.position_mask, batch.items != 0)


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
