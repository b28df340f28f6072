"""Ranks of targets; hit rate, NDCG and MRR as pure functions of ranks. No averaging: that is for who groups them."""

import torch
from jaxtyping import Float
from torch import Tensor

# B targets, C candidates each.


def target_rank(target_scores: Float[Tensor, " B"], candidate_scores: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """1-based place of each target among its candidates; candidates scored the same count half.

    So a model that scores everything alike has its targets in the middle, and gets no hits.

    Args:
        target_scores: Score of the target.
        candidate_scores: Scores of the candidates, without the target. -inf where there is none.

    Returns:
        1 + (candidates scored higher) + (candidates scored equal) / 2, as float64 so that large ranks are exact.

    Raises:
        ValueError: If a score is NaN, or a target's is not finite.
    """
    if bool(target_scores.isnan().any()) or bool(candidate_scores.isnan().any()):
        raise ValueError("a score is nan, so there is no rank; the model's weights are no longer finite numbers")
    if not bool(target_scores.isfinite().all()):
        raise ValueError("a target's score is infinite, so there is no rank; the model's weights have grown too large")
    target = target_scores[:, None]
    higher = (candidate_scores > target).sum(1)
    equal = (candidate_scores == target).sum(1)
    return 1 + higher.double() + equal.double() / 2


def hit_rate(rank: Float[Tensor, " B"], k: int) -> Float[Tensor, " B"]:
    """1 where the target is among the first k, else 0. Its mean is HR@k."""
    return (rank <= k).to(rank.dtype)


def ndcg(rank: Float[Tensor, " B"], k: int) -> Float[Tensor, " B"]:
    """Discounted gain of the one relevant item, 1 / log2(1 + rank), where it is among the first k, else 0."""
    return hit_rate(rank, k) / torch.log2(1 + rank)


def mrr(rank: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Reciprocal of the rank."""
    return 1 / rank
