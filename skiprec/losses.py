"""Losses: pure functions from tensors to one scalar, in nats. No model, no data, no device code."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# B sessions in the batch, T positions, D embedding width, N negatives a session.


def masked_info_nce(
    query: Float[Tensor, "B T D"],
    positive: Float[Tensor, "B T D"],
    negatives: Float[Tensor, "B N D"],
    *,
    position_mask: Bool[Tensor, "B T"],
    negative_mask: Bool[Tensor, "B N"] | Bool[Tensor, "B T N"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Pull each query to its positive and away from the negatives of its own session.

    .. math:: -\log \frac{e^{s^+/\tau}}{e^{s^+/\tau} + \sum_n m_n e^{s^-_n/\tau}}

    with s the cosine similarity and m the negative mask. InfoNCE (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 4) in the cosine form of Chen et al. 2020 (arXiv:2002.05709, eq. 1).
    Seshadri & Knees 2023 (arXiv:2309.11623), section 3.4.

    Args:
        query: What the model says at each position. Any scale; normalised here.
        positive: Embedding of the item that position should be near.
        negatives: Embeddings to be far from, shared by all positions of the session.
        position_mask: True where a position is trained on (False at padding).
        negative_mask: True where a negative is real, for the session (B, N) or for each of its positions
            (B, T, N). A False one is as if absent.
        temperature: tau, dimensionless, usually 0.05 to 0.5.

    Returns:
        Mean over trained positions that have a real negative, in nats.
        Exactly 0, with zero gradient, when the batch has none.

    Raises:
        ValueError: If temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if negative_mask.ndim == 2:
        negative_mask = negative_mask[:, None, :]
    query, positive, negatives = (F.normalize(x, dim=-1) for x in (query, positive, negatives))
    s_pos = (query * positive).sum(-1, keepdim=True)  # (B, T, 1)
    s_neg = torch.einsum("btd,bnd->btn", query, negatives)
    # -inf, not 0: a similarity of 0 would still add e^0 to the denominator.
    s_neg = s_neg.masked_fill(~negative_mask, -torch.inf)
    logits = torch.cat([s_pos, s_neg], dim=-1) / temperature  # (B, T, 1 + N)
    loss = logits.logsumexp(-1) - logits[..., 0]  # (B, T)
    trained = position_mask & negative_mask.any(-1)  # (B, T)
    # Multiply, not torch.where: a nan at a masked position must show. Masks hide data, not bugs.
    return (loss * trained).sum() / trained.sum().clamp(min=1)


def sampled_softmax_nll(
    predicted: Float[Tensor, "B T D"],
    target: Float[Tensor, "B T D"],
    negatives: Float[Tensor, "B N D"],
    *,
    position_mask: Bool[Tensor, "B T"],
    negative_mask: Bool[Tensor, "B N"] | None = None,
    position_weight: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the target against itself and the session's sampled negatives.

    Scores are inner products. Sampling is uniform, so no logQ correction is needed: it would add the same
    constant to every score. Seshadri & Knees 2023 (arXiv:2309.11623), section 3.2.5.

    Args:
        predicted: Predicted embedding at each position.
        target: Embedding of the item that was played.
        negatives: Embeddings of items that were not, shared by the session's positions.
        position_mask: True where there is a target.
        negative_mask: False where a draw that a batch shares is an item of that very session; None if all are real.
        position_weight: What a position with a target counts for in the mean, 0 or more; None if all count alike.

    Returns:
        Weighted mean over positions with a target, in nats. Exactly 0, with zero gradient, when none has any weight.
    """
    s_pos = (predicted * target).sum(-1, keepdim=True)  # (B, T, 1)
    s_neg = torch.einsum("btd,bnd->btn", predicted, negatives)
    if negative_mask is not None:
        s_neg = s_neg.masked_fill(~negative_mask[:, None, :], -torch.inf)
    # log(e^p + sum e^n) - p, without a copy of the (B, T, N) scores beside the positive.
    loss = torch.logaddexp(s_pos, s_neg.logsumexp(-1, keepdim=True)).squeeze(-1) - s_pos.squeeze(-1)  # (B, T)
    weight = position_mask.to(loss.dtype) if position_weight is None else position_mask * position_weight
    total = weight.sum()
    return (loss * weight).sum() / torch.where(total > 0, total, 1)


def next_positive(
    skipped: Bool[Tensor, "B T"], position_mask: Bool[Tensor, "B T"]
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """For each position, where the first later item that was heard (not skipped) stands.

    Seshadri & Knees 2023 (arXiv:2309.11623), section 3.4: p_m.

    Args:
        skipped: True where the item was skipped.
        position_mask: True where a position is real.

    Returns:
        index: Position of the next heard item; 0 where there is none.
        valid: True where there is one and the position itself is real.
    """
    T = skipped.shape[1]
    positions = torch.arange(T, device=skipped.device)
    # A heard position counts as itself, any other as T ("never"); the least from the right is the next heard one.
    heard_at = torch.where(~skipped & position_mask, positions, T)  # (B, T)
    at_or_after = heard_at.flip(1).cummin(1).values.flip(1)
    after = torch.cat([at_or_after[:, 1:], at_or_after.new_full((len(skipped), 1), T)], dim=1)
    valid = (after < T) & position_mask
    return torch.where(valid, after, 0), valid
