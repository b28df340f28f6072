"""The losses of a batch against the slow reference, by hand, and their gradients."""

import itertools
from math import exp, log

import numpy as np
import pytest
import slow_reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import skiprec.negatives
import skiprec.randomness
import skiprec.training_loss
from skiprec.batches import Batch, draw_masked_positions
from skiprec.losses import sampled_softmax_nll
from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.negatives import SCOPES, contrastive_negatives, next_item_negatives
from skiprec.randomness import Draws, generator
from skiprec.sampled_softmax import SampledSoftmax
from skiprec.touched_rows import Buffers, dense_gradient, group_ids, sparse_gradient, squared_norm
from skiprec.training_loss import LossConfig, LossParts, contrastive_anchors, next_item_targets
from skiprec.training_loss import contrastive_loss as contrastive_loss_of_rows
from skiprec.training_loss import training_loss as training_loss_of_rows

CONTEXTS = ("session", "item")
ARCHITECTURES = ("unidirectional", "bidirectional")
ANCHORS = ("all", "heard")

H, S = False, True  # heard, skipped


def pushed_away(batch, masked, config, draws, n_items) -> tuple[torch.Tensor, torch.Tensor]:
    """The contrastive negatives of a batch; an item's index is its number of plays."""
    return contrastive_negatives(
        config.negative_scope,
        batch.items,
        batch.skipped,
        *contrastive_anchors(batch, masked, config),
        n_items=n_items,
        generator=draws,
        plays_up_to=torch.arange(n_items + 1).cumsum(0),
    )


def contrastive_loss(predicted, table, batch, masked, skips, is_skip, config) -> torch.Tensor:
    """From a whole table."""
    vectors, negatives = F.embedding(batch.items, table), F.embedding(skips, table)
    anchors = contrastive_anchors(batch, masked, config)
    return contrastive_loss_of_rows(predicted, vectors, batch, *anchors, skips, is_skip, negatives, config)


def plain_next_item_loss(predicted, table, batch, masked, draws, is_real, weight=1.0) -> torch.Tensor:
    """From a whole table, by the plain form."""
    target, _, position_weight = next_item_targets(F.embedding(batch.items, table), batch, masked, weight)
    return sampled_softmax_nll(
        predicted,
        target,
        F.embedding(draws, table).expand(len(batch.items), -1, -1),
        position_mask=position_weight > 0,
        negative_mask=is_real,
        position_weight=position_weight,
    )


def full_next_item_loss(predicted, table, batch, masked, n_items, weight) -> torch.Tensor:
    """By torch's cross-entropy over the whole catalogue: items 1 to n_items, neither padding nor [MSK]."""
    if masked is None:
        items, skipped, has_target = batch.items[:, 1:], batch.skipped[:, 1:], batch.position_mask[:, 1:]
    else:
        items, skipped, has_target = batch.items, batch.skipped, masked
    classes = torch.where(has_target, items - 1, 0).flatten()
    losses = F.cross_entropy((predicted @ table[1 : n_items + 1].T).flatten(0, 1), classes, reduction="none")
    weights = (has_target.to(table.dtype) * (1 + (weight - 1) * skipped.to(table.dtype))).flatten()
    return (losses * weights).sum() / weights.sum()


def next_item_loss(predicted, table, batch, masked, draws, is_real, weight=1.0) -> torch.Tensor:
    """From a whole table, by the fused form."""
    target, _, position_weight = next_item_targets(F.embedding(batch.items, table), batch, masked, weight)
    negatives = F.embedding(draws, table)
    scale, filled = torch.ones((), dtype=table.dtype), torch.empty_like(negatives)
    return SampledSoftmax.apply(predicted, target, negatives, filled, position_weight, is_real, None, scale)[1]


def training_loss(model: SequenceEncoder, batch: Batch, config: LossConfig, draw: tuple) -> LossParts:
    """With rows from the model's own table."""

    def read(ids, out):
        torch.index_select(model.items.weight.detach(), 0, ids, out=out)

    buffers = Buffers(model.items.weight.shape[1], model.items.weight.dtype, torch.device("cpu"))
    plays_up_to = torch.arange(model.n_items + 1).cumsum(0)
    weights = model.items.weight.new_tensor([config.alpha, config.beta])
    return training_loss_of_rows(model, batch, config, weights, Draws("cpu").start(*draw), read, buffers, plays_up_to)


def batch_of(items: list[list[int]], skipped: list[list[bool]], lengths: list[int] | None = None) -> Batch:
    lengths = lengths or [len(row) for row in items]
    return with_levels(torch.tensor(items), torch.tensor(skipped), torch.tensor(lengths))


def with_levels(items: torch.Tensor, skipped: torch.Tensor, lengths: torch.Tensor) -> Batch:
    """Levels 2 and 3 where skipped, else 0 and 1; 0 at padding."""
    return Batch(items, ((2 * skipped + items % 2) * (items > 0)).to(torch.int8), skipped, lengths)


def random_batch(rng: np.random.Generator, n_items: int, B: int, T: int) -> Batch:
    """Sessions of 2 to T items of a small catalogue: repeats everywhere, some without skips, some with nothing else."""
    lengths = rng.integers(2, T + 1, size=B)
    is_real = np.arange(T) < lengths[:, None]
    items = np.where(is_real, rng.integers(1, n_items + 1, size=(B, T)), 0)
    skip_rate = rng.choice([0.0, 0.3, 0.6, 1.0], size=(B, 1))
    skipped = is_real & (rng.random((B, T)) < skip_rate)
    return with_levels(torch.tensor(items), torch.tensor(skipped), torch.tensor(lengths))


# Three sessions with skips, replays, an item of the next session, and padding.
RICH = batch_of(
    [[1, 2, 3, 2, 4, 5], [5, 6, 1, 7, 7, 0], [8, 1, 9, 3, 0, 0]],
    [[H, S, S, H, S, H], [S, S, H, S, H, H], [H, S, H, H, H, H]],
    [6, 5, 4],
)


def random_masked(rng: np.random.Generator, batch: Batch) -> torch.Tensor:
    return torch.tensor(rng.random(batch.items.shape) < 0.5) & batch.position_mask


def random_vectors(rng: np.random.Generator, batch: Batch, n_items: int, width: int):
    """Outputs and a table in float64; two items are alike, so that scores are tied."""
    table = torch.tensor(rng.normal(size=(n_items + 2, 3)))
    table[2] = table[1]
    return torch.tensor(rng.normal(size=(len(batch.items), width, 3))), table


def as_lists(batch: Batch) -> tuple[list, list, list]:
    return batch.items.tolist(), batch.skipped.tolist(), batch.lengths.tolist()


def draws_of(negatives: torch.Tensor, is_real: torch.Tensor) -> list[list[int]]:
    return [n[real].tolist() for n, real in zip(negatives, is_real, strict=True)]


def compare_contrastive(rng, B, T, n_items, scope, context, architecture, anchors, visible_positive):
    """Both losses of one random batch; the fast one is returned."""
    batch = random_batch(rng, n_items, B, T)
    bidirectional = architecture == "bidirectional"
    masked = random_masked(rng, batch) if bidirectional else None
    predicted, table = random_vectors(rng, batch, n_items, T if bidirectional else T - 1)
    config = LossConfig(
        context=context, anchors=anchors, visible_positive=visible_positive, negative_scope=scope, temperature=0.3
    )
    draw = generator("cpu", int(rng.integers(2**31)))
    negatives, is_negative = pushed_away(batch, masked, config, draw, n_items)
    fast = contrastive_loss(predicted, table, batch, masked, negatives, is_negative, config)
    items, skipped, lengths = as_lists(batch)
    slow = slow_reference.contrastive_loss(
        predicted.numpy(),
        table.numpy(),
        items,
        skipped,
        lengths,
        masked=masked.tolist() if bidirectional else None,
        architecture=architecture,
        context=context,
        scope=scope,
        anchors=anchors,
        visible_positive=visible_positive,
        temperature=0.3,
        random_draws=draws_of(negatives, is_negative) if scope in ("random", "popular") else None,
    )
    assert fast.dtype == torch.float64
    assert fast.item() == pytest.approx(slow, abs=1e-6)
    assert (fast.item() == 0) == (slow == 0)
    return slow


@pytest.mark.parametrize("visible_positive", [False, True], ids=["hidden", "visible"])
@pytest.mark.parametrize(
    ("scope", "context", "architecture", "anchors"),
    list(itertools.product(SCOPES, CONTEXTS, ARCHITECTURES, ANCHORS)),
)
def test_the_contrastive_loss_is_the_slow_one(scope, context, architecture, anchors, visible_positive):
    rng = np.random.default_rng(7)
    options = (scope, context, architecture, anchors, visible_positive)
    shapes = [(1, 6), (2, 4), (3, 7), (5, 5), (5, 8), (4, 9)] * 3
    losses = [compare_contrastive(rng, B, T, 12, *options) for B, T in shapes]
    assert sum(loss > 0 for loss in losses) >= 5  # comparing nothing with nothing shows nothing


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_contrastive_loss_is_the_slow_one_where_no_shape_depends_on_data(monkeypatch, context, architecture):
    """As on a GPU, where the batch's positives stand among as many places as the batch has."""
    monkeypatch.setattr(skiprec.negatives, "has_kernels", lambda device: False)
    rng = np.random.default_rng(7)
    shapes = [(1, 6), (2, 4), (3, 7), (5, 8)] * 3
    losses = [compare_contrastive(rng, B, T, 12, "in_batch", context, architecture, "all", False) for B, T in shapes]
    assert sum(loss > 0 for loss in losses) >= 5


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    B=st.integers(1, 5),
    T=st.integers(2, 8),
    n_items=st.integers(9, 20),
    options=st.tuples(
        st.sampled_from(SCOPES),
        st.sampled_from(CONTEXTS),
        st.sampled_from(ARCHITECTURES),
        st.sampled_from(ANCHORS),
        st.booleans(),
    ),
)
def test_the_contrastive_loss_is_the_slow_one_on_any_batch(seed, B, T, n_items, options):
    compare_contrastive(np.random.default_rng(seed), B, T, n_items, *options)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    B=st.integers(1, 5),
    T=st.integers(2, 8),
    n_items=st.integers(9, 20),
    mode=st.sampled_from(["session", "batch"]),
    architecture=st.sampled_from(ARCHITECTURES),
    weight=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_the_next_item_loss_is_the_slow_one(seed, B, T, n_items, mode, architecture, weight):
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, n_items, B, T)
    bidirectional = architecture == "bidirectional"
    masked = random_masked(rng, batch) if bidirectional else None
    predicted, table = random_vectors(rng, batch, n_items, T if bidirectional else T - 1)
    draws, is_real = next_item_negatives(mode, batch.items, n_items, 15, generator("cpu", seed))
    fast = next_item_loss(predicted, table, batch, masked, draws, is_real, weight)
    items, skipped, lengths = as_lists(batch)
    slow = slow_reference.next_item_loss(
        predicted.numpy(),
        table.numpy(),
        items,
        lengths,
        masked=masked.tolist() if bidirectional else None,
        architecture=architecture,
        negatives=draws.expand(B, -1).tolist(),
        # Written again from the text: a drawn item of the session's own prefix is as if absent.
        negative_is_real=[
            [n not in row for n in shared] for row, shared in zip(items, draws.expand(B, -1).tolist(), strict=True)
        ],
        skipped=skipped,
        skipped_target_weight=weight,
    )
    assert fast.item() == pytest.approx(slow, abs=1e-6)


# Item k's embedding is k times the unit vector e_k: every cosine is 0 or 1, and inner products tell items apart.
TABLE = torch.diag(torch.arange(8.0, dtype=torch.float64))


def nce_by_hand(batch: Batch, predicted=None, masked=None, scope="session", **options) -> float:
    P = batch.items.shape[1] - (masked is None)
    predicted = torch.ones(len(batch.items), P, 8, dtype=torch.float64) if predicted is None else predicted
    config = LossConfig(temperature=0.5, negative_scope=scope, **options)
    negatives, is_negative = pushed_away(batch, masked, config, generator("cpu", 1), 7)
    return contrastive_loss(predicted, TABLE, batch, masked, negatives, is_negative, config).item()


def test_by_hand_an_anchor_is_pulled_to_the_next_heard_item_and_pushed_from_the_sessions_skips():
    """1 heard, 2 skipped, 3 skipped, 4 heard, then padding: every position but the last has 4 as its positive.

    With context "item" all cosines between different items are 0, so the loss is log(number of candidates):
    at 1 the negatives are {2, 3}, at 2 {3} and at 3 {2}.
    """
    batch = batch_of([[1, 2, 3, 4, 0]], [[H, S, S, H, H]], [4])
    assert nce_by_hand(batch, context="item") == pytest.approx((log(3) + log(2) + log(2)) / 3, abs=1e-12)
    assert nce_by_hand(batch, context="item", anchors="heard") == pytest.approx(log(3), abs=1e-12)


def test_by_hand_the_context_session_measures_from_the_models_output():
    """1 heard, 2 skipped, 3 heard. The output at 1 points at 3, at 2 halfway between 2 and 3.

    At 1 the positive 3 has cosine 1 and the negative 2 has 0: log(1 + e^-2) at T = 0.5. Position 2 has no negative but
    itself, and is no anchor.
    """
    batch = batch_of([[1, 2, 3]], [[H, S, H]])
    predicted = torch.zeros(1, 2, 8, dtype=torch.float64)
    predicted[0, 0, 3] = 5.0  # only the direction counts
    predicted[0, 1, 2] = predicted[0, 1, 3] = 1.0
    assert nce_by_hand(batch, predicted, context="session") == pytest.approx(log(1 + exp(-2)), abs=1e-12)


def test_by_hand_a_position_that_sees_its_positive_is_no_anchor_unless_told():
    """1 heard, 2 skipped, 3 heard, 4 heard, with 3 masked: positives are 3, 3, 4, none.

    N is {2}, but at position 2 it is empty. The output is alike everywhere, so an anchor costs log 2. Masked positives
    only: position 1, the sole anchor, with output along its positive: log(1 + e^-2). Visible: position 3 (output along
    2) costs log(1 + e^2) as well.
    """
    batch = batch_of([[1, 2, 3, 4]], [[H, S, H, H]])
    masked = torch.tensor([[False, False, True, False]])
    predicted = torch.zeros(1, 4, 8, dtype=torch.float64)
    predicted[0, [0, 1, 2, 3], [3, 3, 2, 4]] = 1.0
    hidden = nce_by_hand(batch, predicted, masked, context="session")
    visible = nce_by_hand(batch, predicted, masked, context="session", visible_positive=True)
    assert hidden == pytest.approx(log(1 + exp(-2)), abs=1e-12)
    assert visible == pytest.approx((log(1 + exp(-2)) + log(1 + exp(2))) / 2, abs=1e-12)


def test_by_hand_other_session_takes_the_skips_of_the_next_session_less_the_own_items():
    """Session 0: 1 heard, 2 heard. Session 1: 2 skipped, 3 skipped, 4 heard. Session 2: 5 heard, 6 heard.

    Session 0 gets {3} (2 is its own), session 1 gets nothing (session 2 has no skips), session 2 those of session 0:
    nothing. So one anchor, position 0 of session 0, with one negative: log 2.
    """
    batch = batch_of([[1, 2, 0], [2, 3, 4], [5, 6, 0]], [[H, H, H], [S, S, H], [H, H, H]], [2, 3, 2])
    assert nce_by_hand(batch, context="item", scope="other_session") == pytest.approx(log(2), abs=1e-12)


def test_by_hand_past_takes_what_was_skipped_before_the_position():
    """1 skipped, 2 heard, 3 skipped, 4 heard, 5 heard: nothing before position 0, then {1}, {1}, {1, 3}."""
    batch = batch_of([[1, 2, 3, 4, 5]], [[S, H, S, H, H]])
    assert nce_by_hand(batch, context="item", scope="past") == pytest.approx((2 * log(2) + log(3)) / 3, abs=1e-12)


def test_by_hand_released_counts_positions_through_the_batch():
    """Two sessions of three: positions 0 to 5 take the skips of sessions 0, 1, 0, 1, 0, 1.

    Session 0 has skipped {2}, session 1 {4, 5}. Anchors are positions 0 and 1 of each session: the first session's take
    {2} and {4, 5}, those of the second {4, 5} less item 4 and, at item 5, {2}.
    """
    batch = batch_of([[1, 2, 3], [4, 5, 6]], [[H, S, H], [S, S, H]])
    expected = (log(2) + log(3) + log(2) + log(2)) / 4
    assert nce_by_hand(batch, context="item", scope="released") == pytest.approx(expected, abs=1e-12)


def test_by_hand_released_takes_out_nothing_else_that_the_prefix_holds():
    """Session 0 hears 1, 2, 3; position 1 takes the 1 that session 1 skipped, though session 0 has heard it."""
    batch = batch_of([[1, 2, 3], [1, 5, 6]], [[H, H, H], [S, H, H]])
    # Positions 0 to 5 take from 0, 1, 0, 1, 0, 1: position 1 has {1}; position 3 has {1}, its own item; 4 has nothing.
    assert nce_by_hand(batch, context="item", scope="released") == pytest.approx(log(2), abs=1e-12)


def test_by_hand_in_batch_takes_the_other_positives_each_once():
    """Positives 2, 3 of session 0 and 3, 4 of session 1 (from 2 and 3): {2, 3, 4} for all, less p_m and item i.

    Position 0 (item 1, p_m 2): {3, 4}. Position 1 (2, 3): {4}. Session 1: (2, 3): {4}; (3, 4): {2}.
    """
    batch = batch_of([[1, 2, 3], [2, 3, 4]], [[H, H, H], [H, H, H]])
    expected = (log(3) + 3 * log(2)) / 4
    assert nce_by_hand(batch, context="item", scope="in_batch") == pytest.approx(expected, abs=1e-12)


def test_by_hand_in_batch_has_no_positive_of_what_is_no_anchor():
    """Session 0 has 3 as its positive; 6 is that of a skipped item alone, and so of no heard anchor."""
    batch = batch_of([[1, 2, 3], [5, 6, 0]], [[H, S, H], [S, H, H]], [3, 2])
    assert nce_by_hand(batch, context="item", scope="in_batch") == pytest.approx(log(2), abs=1e-12)  # {3, 6}
    assert nce_by_hand(batch, context="item", scope="in_batch", anchors="heard") == 0  # {3} alone


def test_by_hand_the_next_item_loss_of_a_causal_model():
    """Two targets, 2 and 3, of one session, negatives 4 and 4 again; the output is e_2 + e_3 at the first, 0 after.

    Scores: target 2 has 2, negatives 0: log(e^2 + 2) - 2. All alike at the second: log 3.
    """
    batch = batch_of([[1, 2, 3, 0]], [[H, H, H, H]], [3])
    predicted = torch.zeros(1, 3, 8, dtype=torch.float64)
    predicted[0, 0, [2, 3]] = 1.0
    loss = next_item_loss(predicted, TABLE, batch, None, torch.tensor([[4, 4]]), None)
    assert loss.item() == pytest.approx((log(exp(2) + 2) - 2 + log(3)) / 2, abs=1e-12)


def test_by_hand_the_next_item_loss_of_a_masked_model_has_its_targets_at_the_masked_positions():
    batch = batch_of([[1, 2, 3]], [[H, H, H]])
    predicted = torch.zeros(1, 3, 8, dtype=torch.float64)
    predicted[0, 1, 2] = 1.0  # <e_2, item 2> = 2
    masked = torch.tensor([[False, True, False]])
    loss = next_item_loss(predicted, TABLE, batch, masked, torch.tensor([[4, 5]]), torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(log(exp(2) + 1) - 2, abs=1e-12)


def test_a_replayed_item_both_heard_and_skipped_stays_a_negative():
    """1 heard, 2 skipped, 2 heard, 3 heard: 2 is the positive of positions 0 and 1, so a negative at position 2 only.

    And there it is the item itself. So there is no anchor; with another heard item between, there is one.
    """
    nothing = batch_of([[1, 2, 2, 3]], [[H, S, H, H]])
    assert nce_by_hand(nothing, context="item") == 0
    one = batch_of([[1, 2, 2, 3, 4]], [[H, S, H, H, H]])  # position 3: positive 4, negative 2
    assert nce_by_hand(one, context="item") == pytest.approx(log(2), abs=1e-12)


def test_an_item_skipped_twice_is_one_negative():
    batch = batch_of([[1, 2, 2, 3]], [[H, S, S, H]])
    assert nce_by_hand(batch, context="item") == pytest.approx(log(2), abs=1e-12)  # of position 0; not log 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["session", "past", "other_session", "in_batch"])
def test_padding_is_as_if_absent(scope, architecture):
    """Three more columns of padding, marked skipped, change nothing."""
    rng = np.random.default_rng(3)
    batch = RICH
    wide = with_levels(F.pad(batch.items, (0, 3)), F.pad(batch.skipped, (0, 3)), batch.lengths)
    masked = random_masked(rng, batch) if architecture == "bidirectional" else None
    predicted, table = random_vectors(rng, batch, 9, 6 if masked is not None else 5)
    wide_masked = None if masked is None else torch.nn.functional.pad(masked, (0, 3))
    wide_predicted = torch.nn.functional.pad(predicted, (0, 0, 0, 3), value=7.0)
    losses = []
    for b, m, y in [(batch, masked, predicted), (wide, wide_masked, wide_predicted)]:
        config = LossConfig(context="session", negative_scope=scope)
        skips = pushed_away(b, m, config, generator("cpu", 1), 9)
        losses.append(contrastive_loss(y, table, b, m, *skips, config).item())
        draws = next_item_negatives("session", b.items, 9, 10, generator("cpu", 1))
        losses.append(next_item_loss(y, table, b, m, *draws).item())
    assert losses[0] > 0
    assert losses[2:] == pytest.approx(losses[:2], abs=1e-12)


@pytest.mark.parametrize("context", CONTEXTS)
def test_without_anchors_the_contrastive_loss_is_exactly_0_with_zero_gradient(context):
    batch = batch_of([[1, 2, 3], [4, 5, 0]], [[H, H, H], [S, S, H]], [3, 2])
    predicted = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    config = LossConfig(context=context)
    skips = pushed_away(batch, None, config, generator("cpu", 1), 7)
    loss = contrastive_loss(predicted, table, batch, None, *skips, config)
    loss.backward()
    assert loss.item() == 0
    grads = [g for g in (predicted.grad, table.grad) if g is not None]  # "item" does not touch the output at all
    assert not any(g.any() for g in grads)


def test_a_batch_of_one_has_no_other_session():
    batch = batch_of([[1, 2, 3]], [[H, S, H]])
    assert nce_by_hand(batch, context="item") > 0
    assert nce_by_hand(batch, context="item", scope="other_session") == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_of_the_contrastive_loss_is_its_slope(scope, context, architecture):
    rng = np.random.default_rng(5)
    batch = RICH
    masked = random_masked(rng, batch) if architecture == "bidirectional" else None
    predicted, table = random_vectors(rng, batch, 9, 6 if masked is not None else 5)
    config = LossConfig(context=context, negative_scope=scope, temperature=0.5, visible_positive=True)
    skips = pushed_away(batch, masked, config, generator("cpu", 1), 9)
    assert contrastive_loss(predicted, table, batch, masked, *skips, config) > 0

    def loss(y, e):
        return contrastive_loss(y, e, batch, masked, *skips, config)

    assert gradcheck(loss, (predicted.requires_grad_(context == "session"), table.requires_grad_()))


@pytest.mark.parametrize("mode", ["session", "batch"])
def test_the_gradient_of_the_next_item_loss_is_its_slope(mode):
    rng = np.random.default_rng(6)
    batch = RICH
    predicted, table = random_vectors(rng, batch, 9, 5)
    draws = next_item_negatives(mode, batch.items, 9, 6, generator("cpu", 1))
    assert gradcheck(
        lambda y, e: plain_next_item_loss(y, e, batch, None, *draws),
        (predicted.requires_grad_(), table.requires_grad_()),
    )


def tiny_model(architecture: str, **changes) -> SequenceEncoder:
    torch.manual_seed(1)
    small = {"dim": 8, "n_layers": 1, "n_heads": 2, "feed_forward": 8, "dropout": 0.0, "init": "torch"}
    return SequenceEncoder(ModelConfig(architecture=architecture, **small, **changes), 12, 6).double()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_the_weighted_sum_of_its_parts(architecture):
    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    model = tiny_model(architecture)
    config = LossConfig(alpha=0.25, beta=2.0, n_negatives=10, visible_positive=True)
    parts = training_loss(model, batch, config, (1, 2, 3))
    assert parts.nce > 0
    assert parts.loss.item() == pytest.approx(0.25 * parts.nce.item() + 2 * parts.nll.item(), abs=1e-12)
    again = training_loss(model, batch, config, (1, 2, 3))
    assert (again.loss, again.nll, again.nce) == (parts.loss, parts.nll, parts.nce)
    other = training_loss(model, batch, config, (1, 2, 4))
    assert other.nll != parts.nll


def test_with_alpha_0_no_contrastive_work_is_done(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("contrastive work was done")

    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    model = tiny_model("unidirectional")
    with_alpha = training_loss(model, batch, LossConfig(alpha=1.0, beta=0.5, n_negatives=10), (1, 1, 1))
    for name in ("masked_info_nce", "contrastive_negatives", "contrastive_loss", "next_positive"):
        monkeypatch.setattr(skiprec.training_loss, name, refuse)
    parts = training_loss(model, batch, LossConfig(alpha=0.0, beta=0.5, n_negatives=10), (1, 1, 1))
    assert parts.nce == 0
    assert parts.loss == 0.5 * parts.nll
    assert parts.nll == with_alpha.nll  # the contrastive draws shift nothing in the others
    with pytest.raises(AssertionError, match="contrastive work was done"):
        training_loss(model, batch, LossConfig(alpha=0.1, n_negatives=10), (1, 1, 1))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_scope_shifts_nothing_in_the_next_item_loss(scope):
    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    model = tiny_model("unidirectional")
    alone = training_loss(model, batch, LossConfig(alpha=0.0, n_negatives=10), (1, 1, 1))
    beside = training_loss(model, batch, LossConfig(negative_scope=scope, n_negatives=10), (1, 1, 1))
    assert beside.nll == alone.nll
    assert beside.nce > 0


def test_each_purpose_draws_from_a_generator_of_its_own(monkeypatch):
    named = []
    monkeypatch.setattr(
        skiprec.randomness, "generator", lambda device, *parts: named.append(parts) or generator(device, *parts)
    )
    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    config = LossConfig(negative_scope="random", n_negatives=10)
    training_loss(tiny_model("bidirectional"), batch, config, (1, 2, 3))
    assert [parts[:3] for parts in named] == [(1, 2, 3)] * 4
    assert len({parts[3] for parts in named}) == 4  # dropout, what is masked, and the negatives of either loss


def test_a_causal_model_is_never_shown_the_last_item_of_a_prefix():
    model = tiny_model("unidirectional")
    shown = inputs_of(model)
    batch = batch_of([[1, 2, 3, 0], [4, 5, 6, 7]], [[H] * 4, [H] * 4], [3, 4])
    training_loss(model, batch, LossConfig(alpha=0.0, n_negatives=3), (1, 1, 1))
    # The 3 of the first session is beyond its length, and so padding.
    assert [(items.tolist(), lengths.tolist()) for items, lengths in shown] == [([[1, 2, 3], [4, 5, 6]], [2, 3])]


def inputs_of(model: SequenceEncoder) -> list:
    """What the encoder is shown from now on: the items whose embeddings these are, and the lengths."""
    shown, encode = [], model.encode

    def spy(vectors, lengths, *others):
        table = model.items.weight.detach()
        shown.append(((vectors.detach()[:, :, None] == table).all(-1).double().argmax(-1), lengths))
        return encode(vectors, lengths, *others)

    model.encode = spy
    return shown


def test_a_masked_model_is_shown_the_mask_and_is_asked_for_what_it_hides():
    model = tiny_model("bidirectional")
    shown = inputs_of(model)
    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    config = LossConfig(alpha=0.0, n_negatives=3, mask_rate=0.5)
    training_loss(model, batch, config, (1, 1, 1))
    ((inputs, _),) = shown
    is_mask = inputs == model.mask_index
    assert is_mask.any(1).all()
    assert not (is_mask & ~batch.position_mask).any()
    assert inputs[~is_mask].tolist() == batch.items[~is_mask].tolist()


def plain_loss(model: SequenceEncoder, batch: Batch, config: LossConfig, draw: tuple) -> torch.Tensor:
    """The loss of a step from the whole table, by autograd alone."""
    table, masked = model.items.weight, None
    if model.is_causal:
        predicted = model(batch.items[:, :-1], batch.lengths - 1, batch.skip_levels[:, :-1])
    else:
        width = batch.items.shape[1]
        masked = draw_masked_positions(
            batch.lengths, width, config.mask_rate, config.mask_last_only, generator("cpu", *draw, "mask")
        )
        levels = batch.skip_levels.masked_fill(masked, 4)
        predicted = model(batch.items.masked_fill(masked, model.mask_index), batch.lengths, levels)
    weight = config.skipped_target_weight
    if config.negatives == "full":
        nll = full_next_item_loss(predicted, table, batch, masked, 12, weight)
    else:
        draws = next_item_negatives(
            config.negatives, batch.items, 12, config.n_negatives, generator("cpu", *draw, "negatives")
        )
        nll = plain_next_item_loss(predicted, table, batch, masked, *draws, weight)
    loss = config.beta * nll
    if config.alpha > 0:
        skips = pushed_away(batch, masked, config, generator("cpu", *draw, "contrastive_negatives"), 12)
        loss = loss + config.alpha * contrastive_loss(predicted, table, batch, masked, *skips, config)
    return loss


def compare_gradients(architecture: str, config: LossConfig, **changes) -> None:
    """Loss, and gradient of every parameter, from touched rows as from the table itself; padding's row apart."""
    batch = random_batch(np.random.default_rng(8), 12, 5, 6)
    plain, model = tiny_model(architecture, **changes), tiny_model(architecture, **changes)
    expected = plain_loss(plain, batch, config, (1, 2, 3))
    expected.backward()
    parts = training_loss(model, batch, config, (1, 2, 3))
    parts.loss.backward()
    parts.touched.gather_leading()
    groups = group_ids(parts.touched.ids)
    gradients = [
        sparse_gradient(parts.touched, model.items.weight.shape).to_dense(),
        dense_gradient(parts.touched, groups, torch.full_like(model.items.weight, 7)),
    ]
    square = squared_norm(groups, parts.touched.gradients)
    assert parts.loss.item() == pytest.approx(expected.item(), abs=1e-12)
    table = plain.items.weight.grad
    table[0] = 0  # the targets' and the negatives' padding
    assert all(torch.allclose(gradient, table, rtol=0, atol=1e-12) for gradient in gradients)
    assert square.item() == pytest.approx(table.square().sum().item(), rel=1e-9)
    others = zip(plain.named_parameters(), model.named_parameters(), strict=True)
    for (name, p), (_, q) in others:
        if name != "items.weight":
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=0, atol=1e-12), name


EVERY_SCOPE = [(scope, "session") for scope in SCOPES]
EVERY_MODE = [("session", mode) for mode in ("batch", "full")]


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.7), (0.4, 0.0), (0.4, 0.7)])
@pytest.mark.parametrize(("scope", "mode"), EVERY_SCOPE + EVERY_MODE)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_steps_gradients_are_those_of_autograd_over_the_whole_table(architecture, context, scope, mode, alpha, beta):
    options = {"negative_scope": scope, "negatives": mode, "n_negatives": 10, "visible_positive": True}
    compare_gradients(architecture, LossConfig(alpha=alpha, beta=beta, context=context, **options))


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("mode", ["session", "batch", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_so_they_are_where_skipped_targets_weigh_another(architecture, mode, weight):
    compare_gradients(architecture, LossConfig(negatives=mode, n_negatives=10, skipped_target_weight=weight))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_so_they_are_with_skip_levels_among_the_inputs(architecture, context):
    config = LossConfig(context=context, n_negatives=10, visible_positive=True)
    compare_gradients(architecture, config, skip_input=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_level_of_what_is_to_be_guessed_is_not_shown(architecture):
    """A causal model is shown those of its inputs; a masked one none where it has to guess."""
    model, shown = tiny_model(architecture, skip_input=True), []
    model.skip_levels.register_forward_hook(lambda _, args, output: shown.append((args[0], output)))
    with torch.no_grad():
        model.skip_levels.weight[:4] += 1 + torch.arange(4.0)[:, None]
    encoded = inputs_of(model)
    batch = random_batch(np.random.default_rng(8), 12, 4, 6)
    training_loss(model, batch, LossConfig(alpha=0.0, n_negatives=3, mask_rate=0.5), (1, 1, 1))
    ((levels, added),), ((inputs, _),) = shown, encoded
    if model.is_causal:
        assert torch.equal(levels, batch.skip_levels[:, :-1].long())
    else:
        is_mask = inputs == model.mask_index
        assert is_mask.any()
        assert not added[is_mask].any()
        assert torch.equal(levels[~is_mask], batch.skip_levels[~is_mask].long())


def test_by_hand_a_skipped_target_counts_by_its_weight():
    """Two targets, 2 heard and 3 skipped, with losses log 3 and log(e^3 + 2) - 3: a weighted mean of 1 and 0.25."""
    batch = batch_of([[1, 2, 3]], [[S, H, S]])
    predicted = torch.zeros(1, 2, 8, dtype=torch.float64)
    predicted[0, 1, 3] = 1.0  # <e_3, item 3> = 3
    draws = torch.tensor([[4, 4]])
    second = log(exp(3) + 2) - 3
    for weight, expected in ((0.25, (log(3) + 0.25 * second) / 1.25), (0.0, log(3))):
        loss = next_item_loss(predicted, TABLE, batch, None, draws, None, weight)
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_where_all_targets_are_skipped_and_left_out_nothing_is_learnt():
    """The loss is exactly 0, and so are all gradients."""
    batch, model = batch_of([[1, 2, 3]], [[H, S, S]]), tiny_model("unidirectional")
    parts = training_loss(model, batch, LossConfig(alpha=0.0, n_negatives=5, skipped_target_weight=0.0), (1, 1, 1))
    parts.loss.backward()
    parts.touched.gather_leading()
    assert parts.loss == parts.nll == 0
    assert not parts.touched.gradients.any()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_whole_catalogue_takes_no_draws_and_names_every_item():
    model, batch = tiny_model("bidirectional"), random_batch(np.random.default_rng(8), 12, 4, 6)
    few, many = (
        training_loss(model, batch, LossConfig(alpha=0.0, negatives="full", n_negatives=n), (1, 2, 3)) for n in (1, 50)
    )
    assert few.loss == many.loss
    assert set(few.touched.ids.tolist()) == set(range(14))  # with padding and [MSK], which are no classes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.5}, "alpha is -0.5, expected 0 or more"),
        ({"beta": float("inf")}, "beta is inf, expected 0 or more"),
        ({"skipped_target_weight": -0.1}, "skipped_target_weight is -0.1, expected 0 or more"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0, so there is nothing to minimise"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"n_negatives": 0}, "n_negatives is 0, expected at least 1"),
        ({"mask_rate": 1.5}, "mask_rate is 1.5, expected 0 to 1"),
        ({"mask_last_only": -0.1}, "mask_last_only is -0.1, expected 0 to 1"),
    ],
)
def test_a_loss_config_out_of_range_says_so(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        LossConfig(**settings)
    assert str(caught.value) == message
