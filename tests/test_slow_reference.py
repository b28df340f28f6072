"""The slow reference itself, on cases worked by hand. Comparing skiprec with it is another file's job."""

import subprocess
import sys
from math import exp, inf, log, log2, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from slow_reference import (
    contrastive_loss,
    evaluate_session,
    hit_rate,
    mrr,
    ndcg,
    negative_set,
    next_item_loss,
    next_positive,
    rank,
)

# Item k's embedding is k times the unit vector e_k: every cosine is 0 or 1, and inner products tell items apart.
TABLE = np.diag(np.arange(8.0))
E = np.eye(8)

H, S = False, True  # heard, skipped


def l_nce(items, skipped, *, lengths=None, predicted=None, **changes):
    """L_NCE with item context at T = 0.5, unless `changes` says otherwise."""
    lengths = lengths or [len(row) for row in items]
    predicted = np.ones((len(items), len(items[0]), 8)) if predicted is None else np.array(predicted)
    options = {
        "masked": None,
        "architecture": "unidirectional",
        "context": "item",
        "scope": "session",
        "anchors": "all",
        "visible_positive": False,
        "temperature": 0.5,
    }
    return contrastive_loss(predicted, TABLE, items, skipped, lengths, **(options | changes))


def l_nll(predicted, items, *, lengths=None, negatives, negative_is_real=None, **changes):
    """L_NLL, unidirectional with every negative real, unless `changes` says otherwise."""
    lengths = lengths or [len(row) for row in items]
    negative_is_real = negative_is_real or [[True] * len(row) for row in negatives]
    options = {"masked": None, "architecture": "unidirectional"}
    return next_item_loss(
        np.array(predicted),
        TABLE,
        items,
        lengths,
        negatives=negatives,
        negative_is_real=negative_is_real,
        **(options | changes),
    )


def test_the_reference_imports_neither_skiprec_nor_torch():
    """It would not be independent otherwise."""
    code = "import sys, slow_reference; sys.exit(bool({'skiprec', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


# Positives and negatives


def test_next_positive_is_the_first_later_heard_position():
    """Position 0 passes over two skips; a heard position is not its own positive; the last one has none."""
    assert next_positive([H, S, S, H, H], 5) == [3, 3, 3, 4, None]


def test_next_positive_stops_at_the_end_of_the_prefix():
    """Padding counts as not skipped in the row, and is still no positive."""
    assert next_positive([H, H, S, H, H], 3) == [1, None, None, None, None]


def test_own_negatives_are_a_set_without_the_positive_and_the_item_itself():
    """Skipped: 1 (position 0), 3 (positions 3 and 5), 5 (position 6, padding). Heard: 2, 1 again, 4."""
    items, skipped = [[1, 2, 1, 3, 4, 3, 5]], [[S, H, H, S, H, S, S]]
    found = [negative_set(i, 0, items, skipped, [6], "session") for i in range(6)]
    assert found == [
        [3],  # {1, 3} less positive 2 and item 1
        [3],  # less positive 1 and item 2
        [3],  # less positive 4 and item 1
        [1],  # less positive 4 and item 3
        [1, 3],  # no positive; less item 4
        [1],  # no positive; less item 3
    ]


def test_other_negatives_are_the_next_sessions_skips_and_the_last_takes_the_firsts():
    """Sessions of 2, 3 and 2 items; own items leave, skips behind the next prefix do not count."""
    items = [[1, 2, 0], [2, 3, 4], [5, 6, 7]]
    skipped = [[S, H, H], [S, S, H], [H, S, S]]
    lengths = [2, 3, 2]
    assert negative_set(0, 0, items, skipped, lengths, "other_session") == [3]  # {2, 3} less own {1, 2}
    assert negative_set(1, 1, items, skipped, lengths, "other_session") == [6]  # 7 is behind the prefix
    assert negative_set(0, 2, items, skipped, lengths, "other_session") == [1]


def test_what_lies_behind_the_own_prefix_is_not_taken_from_other_negatives():
    """Session 0 has item 3 only behind its prefix."""
    items, skipped = [[1, 2, 3], [3, 4, 5]], [[H, H, H], [S, H, H]]
    assert negative_set(0, 0, items, skipped, [2, 3], "other_session") == [3]


def test_a_batch_of_one_has_no_other_session():
    """Session (0 + 1) mod 1 is session 0 itself, which does not count as another."""
    assert negative_set(0, 0, [[1, 2, 3]], [[H, S, H]], [3], "other_session") == []


def test_past_negatives_are_those_skipped_before_the_position():
    """Item 1 is skipped at 0 and again at 2; 3 at 3. Position 4 plays 3 again."""
    items, skipped = [[1, 2, 1, 3, 3]], [[S, H, S, S, H]]
    assert [negative_set(i, 0, items, skipped, [5], "past") for i in range(5)] == [[], [1], [], [1], [1]]


def test_released_negatives_are_those_that_tile_gives():
    """Three sessions, four wide: position t of session b is number 4 b + t, and takes from session (4 b + t) mod 3."""
    items = [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0]]
    skipped = [[S, H, H, H], [S, H, H, H], [S, H, H, H]]
    found = [[negative_set(t, b, items, skipped, [3, 3, 3], "released") for t in range(3)] for b in range(3)]
    assert found == [
        [[], [4], [7]],  # numbers 0, 1, 2; item 1 is the position's own
        [[], [7], [1]],  # numbers 4, 5, 6 from sessions 1, 2, 0
        [[], [1], [4]],  # numbers 8, 9, 10 from sessions 2, 0, 1
    ]


def test_batch_positives_leave_out_the_own_positive_and_item():
    items, skipped = [[1, 2, 3]], [[H, H, H]]
    assert negative_set(0, 0, items, skipped, [3], "in_batch", batch_positives={1, 2, 3, 7}) == [3, 7]


def test_random_draws_are_used_as_they_are():
    """Each session its own, with repeats, in the order drawn."""
    items, skipped, draws = [[1, 2], [1, 2]], [[S, H], [S, H]], [[7], [6, 5, 6]]
    assert negative_set(0, 1, items, skipped, [2, 2], "random", draws) == [6, 5, 6]


# The contrastive loss


def test_item_context_of_orthogonal_items():
    """All cosines 0, so an anchor with k negatives loses log((1 + k) / 1). The last position has no positive."""
    items, skipped = [[1, 2, 3, 4]], [[H, S, S, H]]
    # Negatives: {2, 3}, {3}, {2}.
    assert l_nce(items, skipped) == pytest.approx((log(3) + log(2) + log(2)) / 3)
    assert l_nce(items, skipped, anchors="heard") == pytest.approx(log(3))


def test_session_context_by_hand():
    """The same session with predictions: 4 is the positive of all, T = 0.5, so a cosine of 1 is a logit of 2."""
    items, skipped = [[1, 2, 3, 4]], [[H, S, S, H]]
    predicted = [[9 * E[4], E[3], E[2] + E[4]]]  # one position fewer than items: the last is no input
    expected = (
        log(1 + 2 * exp(-2))  # (e^2 + 1 + 1) / e^2; a prediction's length does not matter
        + log(1 + exp(2))  # (1 + e^2) / 1
        + log(2)  # cosine 1 / sqrt(2) to both
    ) / 3
    assert l_nce(items, skipped, predicted=predicted, context="session") == pytest.approx(expected)


def test_temperature_divides_the_cosine():
    """One anchor on its positive against one negative: log(1 + exp(-1/T)); on a diagonal: 1/sqrt(2) each way."""
    items, skipped = [[1, 2, 3]], [[H, S, H]]
    options = {"context": "session", "anchors": "heard"}
    on_positive = [[E[3], E[1], E[1]]]
    assert l_nce(items, skipped, predicted=on_positive, temperature=0.1, **options) == pytest.approx(log(1 + exp(-10)))
    between = [[E[3] + E[4], E[1], E[1]]]
    loss = l_nce(items, skipped, predicted=between, temperature=0.25, **options)
    assert loss == pytest.approx(log(1 + exp(-4 / sqrt(2))))


def test_a_tiny_temperature_does_not_overflow():
    """On the negative, log(1 + exp(1/T)) is 1/T itself to the last digit."""
    predicted = [[E[2], E[1], E[1]]]
    loss = l_nce([[1, 2, 3]], [[H, S, H]], predicted=predicted, context="session", anchors="heard", temperature=1e-4)
    assert loss == pytest.approx(1e4)


def test_a_replayed_skip_is_a_negative_unless_it_is_the_positive_or_the_item():
    """Item 1 is skipped, then heard. Every prediction is e_1, T = 0.5.

    Position 0: positive 2, negatives {3}: both cosines 0, log 2.
    Position 1: positive 1, negatives {3}: log(1 + exp(-2)).
    Position 2: positive 4, negatives {3}: log 2.
    Position 3: positive 4, negatives {1}: log(1 + exp(2)).
    """
    predicted = [[E[1]] * 5]
    loss = l_nce([[1, 2, 1, 3, 4]], [[S, H, H, S, H]], predicted=predicted, context="session")
    assert loss == pytest.approx((2 * log(2) + log(1 + exp(-2)) + log(1 + exp(2))) / 4)


def test_an_item_that_is_its_own_positive_is_still_an_anchor():
    """Item 1 twice in a row, then a skip. Position 0: cosine 1 with itself, 0 with item 2."""
    assert l_nce([[1, 1, 2]], [[H, H, S]]) == pytest.approx(log(1 + exp(-2)))


@pytest.mark.parametrize(
    ("items", "skipped", "length"),
    [
        ([1, 2, 3], [H, H, H], 3),  # no negative
        ([1, 2, 3], [S, S, S], 3),  # no positive
        ([1, 2, 2], [H, S, H], 3),  # the only skip is the positive of 0 and the item of 1
        ([1, 2, 3], [H, H, S], 2),  # the only skip lies behind the prefix
    ],
)
def test_no_anchor_gives_exactly_zero(items, skipped, length):
    """Whether negatives or positives are missing."""
    assert l_nce([items], [skipped], lengths=[length]) == 0.0


def test_the_mean_is_over_the_anchors_of_the_batch_not_of_each_session():
    """Session 0 has three anchors (log 3, log 2, log 2), session 1 one (log 2), session 2 none."""
    items = [[1, 2, 3, 4], [5, 6, 7, 0], [1, 2, 0, 0]]
    skipped = [[H, S, S, H], [H, H, S, H], [H, H, H, H]]
    assert l_nce(items, skipped, lengths=[4, 3, 2]) == pytest.approx((log(3) + 3 * log(2)) / 4)


def test_other_session_and_random_in_the_loss():
    """Session 0 has no skip of its own, session 1 has two."""
    items, skipped = [[1, 2, 3], [4, 5, 6]], [[H, H, H], [S, S, H]]
    # Own: positions 0 and 1 of session 1, each with one negative.
    assert l_nce(items, skipped) == pytest.approx(log(2))
    # Other: positions 0 and 1 of session 0, with {4, 5}; session 1 gets nothing from session 0.
    assert l_nce(items, skipped, scope="other_session") == pytest.approx(log(3))
    # Random: a repeated draw counts twice, and a session without draws has no anchors.
    draws = [[], [7, 7]]
    assert l_nce(items, skipped, scope="random", random_draws=draws) == pytest.approx(log(3))


def test_the_batchs_positives_are_those_of_its_anchors():
    """Positives 3 and 3 of session 0, 5 of session 1. With heard anchors 5, which follows a skip alone, is none.

    All: 1 and 2 have 3 as their own, so {5}; 4 has {3}: log 2 each. Heard: {3} is what 1 has already.
    """
    items, skipped = [[1, 2, 3], [4, 5, 0]], [[H, S, H], [S, H, H]]
    assert l_nce(items, skipped, lengths=[3, 2], scope="in_batch") == pytest.approx(log(2))
    assert l_nce(items, skipped, lengths=[3, 2], scope="in_batch", anchors="heard") == 0.0


def test_bidirectional_anchors_are_those_whose_positive_is_masked():
    """Positives: position 2 of positions 0 and 1, position 3 of 2. All predictions e_3, T = 0.5, negatives {2}.

    Position 0: positive 3: log(1 + exp(-2)). Position 1: its item is the only skip, so none. Position 2: positive 4:
    log 2.
    """
    items, skipped = [[1, 2, 3, 4]], [[H, S, H, H]]
    options = {"architecture": "bidirectional", "predicted": [[E[3]] * 4], "context": "session"}
    only_2 = [[False, False, True, False]]
    only_0 = [[True, False, False, False]]
    first, second = log(1 + exp(-2)), log(2)
    assert l_nce(items, skipped, masked=only_2, **options) == pytest.approx(first)
    assert l_nce(items, skipped, masked=only_0, **options) == 0.0
    # A visible positive is allowed on request, and with item context there is nothing to see.
    assert l_nce(items, skipped, masked=only_0, visible_positive=True, **options) == pytest.approx((first + second) / 2)
    assert l_nce(items, skipped, masked=only_0, **(options | {"context": "item"})) == pytest.approx(log(2))
    # Unidirectional attention cannot see ahead, so masks are ignored.
    one_way = options | {"architecture": "unidirectional"}
    assert l_nce(items, skipped, masked=only_0, **one_way) == pytest.approx((first + second) / 2)


# The next-item loss


def test_unidirectional_next_item_loss_by_hand():
    """Item k scores k where the prediction is e_k and 0 elsewhere.

    Session 0, targets 2 then 3, negatives 5 and 6: y_0 = e_2: (e^2 + 1 + 1) / e^2. y_1 = e_5: (1 + e^5 + 1) / 1.
    Session 1, target 4, negatives 1 and 1: y_0 = e_1: (1 + e + e) / 1. A repeated draw counts twice.
    """
    predicted = [[E[2], E[5]], [E[1], E[7]]]
    loss = l_nll(predicted, [[1, 2, 3], [3, 4, 0]], lengths=[3, 2], negatives=[[5, 6], [1, 1]])
    assert loss == pytest.approx((log(1 + 2 * exp(-2)) + log(2 + exp(5)) + log(1 + 2 * exp(1))) / 3)


def test_a_skipped_target_has_its_weight_in_the_mean():
    """Targets 2 (heard) and 3 (skipped): (e^2 + 1) / e^2, and (1 + e^5) / 1 with weight 0.5."""
    options = {"negatives": [[5]], "skipped": [[S, H, S]]}
    first, second = log(1 + exp(-2)), log(1 + exp(5))
    half = l_nll([[E[2], E[5]]], [[1, 2, 3]], skipped_target_weight=0.5, **options)
    assert half == pytest.approx((first + 0.5 * second) / 1.5)
    assert l_nll([[E[2], E[5]]], [[1, 2, 3]], skipped_target_weight=0.0, **options) == pytest.approx(first)
    assert l_nll([[E[5]]], [[1, 3]], negatives=[[5]], skipped=[[H, S]], skipped_target_weight=0.0) == 0.0


def test_bidirectional_targets_are_the_masked_items_themselves():
    """Targets 2 and 3 (the last position too), one negative; the mask at padding is no target."""
    predicted = [[E[1], E[2], E[4], E[7]]]
    loss = l_nll(
        predicted,
        [[1, 2, 3, 0]],
        lengths=[3],
        negatives=[[4]],
        architecture="bidirectional",
        masked=[[False, True, True, True]],
    )
    # Position 1: (e^2 + 1) / e^2. Position 2: (1 + e^4) / 1.
    assert loss == pytest.approx((log(1 + exp(-2)) + log(1 + exp(4))) / 2)


def test_a_negative_that_is_not_real_is_as_if_absent():
    """A score of 0 would still add e^0; without any real negative the target has the whole share."""
    predicted, items = [[E[2]]], [[1, 2]]
    loss = l_nll(predicted, items, negatives=[[5, 1]], negative_is_real=[[True, False]])
    assert loss == pytest.approx(log(1 + exp(-2)))
    assert l_nll(predicted, items, negatives=[[5, 1]], negative_is_real=[[False, False]]) == 0.0


def test_a_batch_without_a_target_loses_nothing():
    """A prefix of one item has no next item."""
    assert l_nll([[E[1]]], [[1]], negatives=[[5]]) == 0.0


# Ranks and metrics


def test_rank_counts_higher_candidates_whole_and_equal_ones_half():
    """Two higher, three equal, one lower: 1 + 2 + 3/2."""
    assert rank(0.5, [0.9, 0.5, 0.5, 0.7, 0.5, 0.1]) == 4.5
    assert rank(0.5, [0.1, 0.2]) == 1
    assert rank(0.5, []) == 1
    assert rank(-inf, [-inf, 0.0]) == 2.5


def test_a_model_that_scores_everything_alike_gets_no_hits():
    """1000 ties: rank 501."""
    assert rank(0.0, [0.0] * 1000) == 501
    assert hit_rate(501, 20) == 0


def test_metrics_by_hand():
    """At rank 1, at rank 3 inside and outside k, and at a half rank just outside."""
    assert (hit_rate(1, 1), ndcg(1, 1), mrr(1)) == (1, 1, 1)
    assert (hit_rate(3, 3), ndcg(3, 3), mrr(3)) == (1, 0.5, pytest.approx(1 / 3))  # log2(4) = 2
    assert (hit_rate(3, 2), ndcg(3, 2), mrr(3)) == (0, 0, pytest.approx(1 / 3))
    assert (hit_rate(2.5, 2), ndcg(2.5, 2), mrr(2.5)) == (0, 0, 0.4)
    assert ndcg(2.5, 3) == pytest.approx(1 / log2(3.5))


@pytest.mark.parametrize(
    "call",
    [
        lambda: rank(nan, [1.0]),
        lambda: rank(1.0, [2.0, nan]),
        lambda: hit_rate(nan, 10),
        lambda: ndcg(nan, 10),
        lambda: mrr(nan),
        lambda: evaluate_session([0.0, 1.0, nan], [1], 2, [1]),
        lambda: evaluate_session([0.0, 1.0, 1.0, nan], [1], 2, [1]),
    ],
)
def test_nan_is_an_error_never_a_rank(call):
    """The last case has it outside the candidates, where the full ranking meets it."""
    with pytest.raises(ValueError, match=r"NaN|nan"):
        call()


def test_the_three_ranks_of_a_new_target():
    """Items 1 to 6 score 9, 5, 7, 5, 6, 1; input 1 and 2, target 4 (score 5). Padding's score is never read."""
    scores = [nan, 9.0, 5.0, 7.0, 5.0, 6.0, 1.0]
    assert evaluate_session(scores, [1, 2], 4, [3, 6]) == {
        "sampled": 2,  # behind 3
        "full": 1 + 3 + 0.5,  # behind 1, 3, 5, level with 2
        "full_new": 1 + 2,  # behind 3, 5; 1 and 2 are in the input
    }
    assert evaluate_session(scores, [1, 2, 0], 4, [3, 6, 0]) == evaluate_session(scores, [1, 2], 4, [3, 6])


def test_a_repeated_target_has_no_full_new_rank():
    """The target 1 is in the input, and still ranks against the other input item in full."""
    assert evaluate_session([0.0, 1.0, 2.0, 0.5], [1, 2], 1, [3]) == {"sampled": 1, "full": 2, "full_new": None}


def test_a_target_among_its_own_candidates_is_an_error():
    """It would tie with itself and lose half a rank."""
    with pytest.raises(ValueError, match="the target 2 is among its own candidates"):
        evaluate_session([0.0, 1.0, 2.0], [1], 2, [2])
