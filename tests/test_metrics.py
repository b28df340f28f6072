"""Ranks and metrics: values by hand, the slow loop, ties, errors."""

from math import inf, log2, nan

import pytest
import slow_reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skiprec.metrics import hit_rate, mrr, ndcg, target_rank

SCORES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])  # few values: ties are frequent


def rank_of(target: float, candidates: list[float]) -> float:
    return target_rank(torch.tensor([target]), torch.tensor([candidates])).item()


def test_a_rank_counts_the_higher_and_half_of_the_equal():
    assert rank_of(2.0, [3.0, 1.0, 0.0]) == 2
    assert rank_of(2.0, [3.0, 2.0, 2.0]) == 1 + 1 + 2 / 2
    assert rank_of(2.0, [2.0]) == 1.5
    assert rank_of(2.0, []) == 1


def test_a_candidate_of_minus_infinity_is_as_if_absent():
    assert rank_of(2.0, [3.0, -inf, -inf]) == rank_of(2.0, [3.0])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(SCORES, st.lists(SCORES, min_size=7, max_size=7)), min_size=1, max_size=4))
def test_ranks_are_the_slow_ones(rows):
    ranks = target_rank(torch.tensor([t for t, _ in rows]), torch.tensor([c for _, c in rows]))
    assert ranks.tolist() == [slow_reference.rank(t, c) for t, c in rows]


@settings(max_examples=50, deadline=None)
@given(target=SCORES, candidates=st.lists(SCORES, min_size=1, max_size=8), data=st.data())
def test_neither_the_order_nor_the_scale_of_scores_matters(target, candidates, data):
    order = data.draw(st.permutations(candidates))
    assert rank_of(target, list(order)) == rank_of(target, candidates)
    assert rank_of(4 * target, [4 * c for c in candidates]) == rank_of(target, candidates)


def test_scoring_everything_alike_gets_no_hits():
    ranks = target_rank(torch.zeros(3), torch.zeros(3, 1000))
    assert ranks.tolist() == [501.0] * 3
    assert hit_rate(ranks, 20).sum() == 0


def test_a_large_rank_is_exact():
    """In float32, 2^24 + 1.5 could not be told from 2^24."""
    n = 2**24
    candidates = torch.full((1, n + 1), 2.0)
    candidates[0, -1] = 1.0
    assert target_rank(torch.ones(1), candidates).item() == n + 1.5


@pytest.mark.parametrize(("target", "candidates"), [(nan, [1.0]), (1.0, [0.0, nan])])
def test_a_nan_score_is_an_error(target, candidates):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        rank_of(target, candidates)
    assert str(caught.value) == "a score is nan, so there is no rank; the model's weights are no longer finite numbers"


@pytest.mark.parametrize("rank", [1.0, 1.5, 4.5, 5.0, 5.5, 10.0, 10.5, 500.0])
@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_metrics_are_the_slow_ones(rank, k):
    ranks = torch.tensor([rank], dtype=torch.float64)
    assert hit_rate(ranks, k).item() == slow_reference.hit_rate(rank, k)
    assert ndcg(ranks, k).item() == pytest.approx(slow_reference.ndcg(rank, k), abs=1e-12)
    assert mrr(ranks).item() == pytest.approx(slow_reference.mrr(rank), abs=1e-12)


def test_by_hand():
    ranks = torch.tensor([1.0, 3.0, 10.0, 10.5], dtype=torch.float64)
    assert hit_rate(ranks, 10).tolist() == [1, 1, 1, 0]
    assert ndcg(ranks, 10).tolist() == pytest.approx([1, 1 / 2, 1 / log2(11), 0], abs=1e-12)
    assert mrr(ranks).tolist() == pytest.approx([1, 1 / 3, 1 / 10, 2 / 21], abs=1e-12)


def test_metrics_of_no_targets_are_no_values():
    none = torch.empty(0, dtype=torch.float64)
    assert hit_rate(none, 10).shape == ndcg(none, 10).shape == mrr(none).shape == (0,)


# A target of -inf would tie with every absent candidate (-inf), and one of inf with every other inf.
@pytest.mark.parametrize("target", [inf, -inf])
def test_an_infinite_target_score_is_an_error(target):
    with pytest.raises(ValueError, match="a target's score is infinite"):
        rank_of(target, [1.0, -inf])
