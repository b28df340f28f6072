"""Sampled softmax and its gradient in one pass, a few sessions at a time.

`losses.sampled_softmax_nll` says what is computed, and is what this is tested against. Autograd would keep the
(B, P, N) scores of the negatives for the backward pass, and read and write them from main memory some ten times; here a
few sessions' scores are made, turned into the gradient's factors and used up before the next sessions' are: on the CPU
by the loops of `softmax_kernels`, and by torch's operations on other devices, in float64, and with the whole catalogue.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skiprec.device import has_kernels
from skiprec.linear import linear

# B sessions in the batch, P positions, D embedding width, N negatives a draw.

CHUNK_BYTES = {"cpu": 2_400_000, "cuda": 1 << 28}
"""Negatives and scores at a time: on the CPU what each thread's cache holds, elsewhere what fills the device."""


class SampledSoftmax(torch.autograd.Function):
    """The loss of a batch as a function of predictions and targets; the gradient of the negatives is written aside.

    It holds for a loss that is minimised as it is: whoever scales the loss hands in the factor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Float[Tensor, "B P D"],
        target: Float[Tensor, "B P D"],
        negatives: Float[Tensor, "draws N D"],
        negatives_gradient: Float[Tensor, "draws N D"],
        position_weight: Float[Tensor, "B P"],
        negative_mask: Bool[Tensor, "B N"] | None,
        own: Int[Tensor, "B P"] | None,
        scale: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean over positions with a target, as `sampled_softmax_nll`.

        Args:
            ctx: Of autograd.
            predicted: Predicted embedding at each position.
            target: Embedding of the item that was played.
            negatives: Embeddings of items that were not: draws a session, or one draw that the batch shares.
            negatives_gradient: Filled with the gradient of the negatives. May be their own memory, which then need not
                be fetched once more to be written.
            position_weight: What a position counts for in the mean: 0 where there is no target.
            negative_mask: False where a shared draw is an item of that very session; None if all are real.
            own: Which of the negatives is the position's own target, and as if absent; None if none is.
            scale: Factor of the loss: of the first result, and of all gradients.

        Returns:
            The loss times its factor; and the loss in nats, which has no gradient.
        """
        total = position_weight.sum()
        weight = position_weight / torch.where(total > 0, total, 1)  # (B, P): the mean's
        ctx.gradients = torch.empty_like(predicted), torch.empty_like(target)
        given, into = (predicted, target, negatives, weight, negative_mask), (*ctx.gradients, negatives_gradient)
        if own is None and has_loops(negatives, negatives_gradient):
            loss = by_loops(*given, scale, into)
        else:
            loss = by_chunks(*given, own, scale, into)
        ctx.mark_non_differentiable(loss)
        return loss * scale, loss

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, ""], _: Tensor) -> tuple[Tensor | None, ...]:
        """What the forward pass has put aside."""
        by_predicted, by_target = ctx.gradients
        return by_predicted * gradient, by_target * gradient, None, None, None, None, None, None


def has_loops(negatives: Float[Tensor, "draws N D"], negatives_gradient: Float[Tensor, "draws N D"]) -> bool:
    """Whether the loops of `softmax_kernels` serve: on the CPU, in float32, where rows lie without gaps."""
    is_taken = negatives.dtype == torch.float32 and has_kernels(negatives.device)
    return is_taken and negatives.is_contiguous() and negatives_gradient.is_contiguous()


def by_loops(
    predicted: Float[Tensor, "B P D"],
    target: Float[Tensor, "B P D"],
    negatives: Float[Tensor, "draws N D"],
    weight: Float[Tensor, "B P"],
    negative_mask: Bool[Tensor, "B N"] | None,
    scale: Float[Tensor, ""],
    into: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, ""]:
    """The weighted loss of a batch, with its scores in a core's cache throughout. Arguments are those of `by_chunks`.

    The gradient of shared negatives is summed by thread, so it depends on how many there are.
    """
    from skiprec.row_kernels import over_rows
    from skiprec.softmax_kernels import session_softmax, shared_softmax

    B, (draws, N, _) = len(predicted), negatives.shape
    mask = torch.empty(0, N, dtype=torch.bool) if negative_mask is None else negative_mask.contiguous()
    losses, (by_predicted, by_target, by_negatives) = predicted.new_empty(B), into
    given = predicted.contiguous(), target.contiguous(), negatives
    rest = mask, weight, scale, losses, by_predicted, by_target
    if draws == B:
        over_rows(session_softmax, B, *given, by_negatives, *rest, worth_a_thread=1)
    else:
        parts = negatives.new_empty(torch.get_num_threads(), *negatives.shape[1:])
        over_rows(shared_softmax, len(parts), *given, parts, *rest, worth_a_thread=1)
        torch.sum(parts, 0, keepdim=True, out=by_negatives)
    return losses.sum()


def by_chunks(
    predicted: Float[Tensor, "B P D"],
    target: Float[Tensor, "B P D"],
    negatives: Float[Tensor, "draws N D"],
    weight: Float[Tensor, "B P"],
    negative_mask: Bool[Tensor, "B N"] | None,
    own: Int[Tensor, "B P"] | None,
    scale: Float[Tensor, ""],
    into: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, ""]:
    """The weighted loss of a batch, a few sessions after the other.

    Args:
        predicted: As of `SampledSoftmax`; likewise what is not said.
        target: Embeddings of the items that were played.
        negatives: A draw a session, or a single one.
        weight: Of each position in the loss.
        negative_mask: False where a draw is as if absent.
        own: Which negative is as if absent at each position.
        scale: Factor of the gradients.
        into: Filled with the gradients of predicted, target and negatives.
    """
    is_shared = len(negatives) == 1 < len(predicted)
    by_predicted, by_target, by_negatives = into
    loss = predicted.new_zeros(())
    total = torch.zeros_like(negatives) if is_shared else by_negatives
    for rows in chunks(predicted, negatives):
        of = slice(0, 1) if is_shared else rows
        loss += chunk_loss(
            predicted[rows],
            target[rows],
            negatives[of],
            weight[rows],
            None if negative_mask is None else negative_mask[rows],
            None if own is None else own[rows],
            scale,
            is_shared=is_shared,
            into=(by_predicted[rows], by_target[rows], total[of]),
        )
    if is_shared:
        by_negatives.copy_(total)
    return loss


def chunks(predicted: Float[Tensor, "B P D"], negatives: Float[Tensor, "draws N D"]) -> list[slice]:
    """Slices of the batch that are worked on at once."""
    B, P, D = predicted.shape
    draws, N, _ = negatives.shape
    # A session brings its scores, and negatives of its own unless they are shared.
    floats = N * P + (N * D if draws == B else 0)
    # Where a single draw is more than that, as the whole catalogue is: to read it for fewer scores than it has numbers
    # costs more than the products.
    room = max(CHUNK_BYTES[predicted.device.type], negatives.nbytes if draws < B else 0)
    threads = torch.get_num_threads() if predicted.device.type == "cpu" else 1
    size = max(1, room // (floats * predicted.element_size())) * threads
    return [slice(start, start + size) for start in range(0, B, size)]


def chunk_loss(
    predicted: Float[Tensor, "b P D"],
    target: Float[Tensor, "b P D"],
    negatives: Float[Tensor, "draws N D"],
    weight: Float[Tensor, "b P"],
    negative_mask: Bool[Tensor, "b N"] | None,
    own: Int[Tensor, "b P"] | None,
    scale: Float[Tensor, ""],
    *,
    is_shared: bool,
    into: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, ""]:
    """The weighted loss of a few sessions.

    Args:
        predicted: As above, of these sessions; likewise the next ones.
        target: Embeddings of the items that were played.
        negatives: A draw a session, or a single one.
        weight: Of each position in the loss.
        negative_mask: False where a draw is as if absent.
        own: Which negative is as if absent at each position.
        scale: Factor of the gradients.
        is_shared: Whether the whole batch has a single draw.
        into: Filled with the gradients of predicted and target; that of negatives is filled too, or added to if shared.
    """
    scores = linear(predicted, negatives[0]) if is_shared else torch.bmm(predicted, negatives.transpose(1, 2))
    if negative_mask is not None:
        scores.masked_fill_(~negative_mask[:, None, :], -torch.inf)
    if own is not None:
        scores.scatter_(2, own[..., None], -torch.inf)
    positive = (predicted * target).sum(-1)  # (b, P)
    # Softmax over negatives and target, with the largest score taken off first.
    top = torch.maximum(scores.amax(-1), positive)
    shares = scores.sub_(top[..., None]).exp_()
    positive_share = (positive - top).exp()
    total = shares.sum(-1) + positive_share
    loss = (weight * (top + total.log() - positive)).sum()
    factor = weight * scale / total
    shares = shares.mul_(factor[..., None])  # d loss / d score
    of_positive = (factor * positive_share - weight * scale)[..., None]
    by_predicted, by_target, by_negatives = into
    torch.mul(of_positive, predicted, out=by_target)
    if is_shared:
        by_scores = linear(shares, negatives[0].t())
        by_negatives[0].addmm_(shares.flatten(0, 1).t(), predicted.flatten(0, 1))
    else:
        by_scores = torch.bmm(shares, negatives)
        torch.bmm(shares.transpose(1, 2), predicted, out=by_negatives)
    torch.addcmul(by_scores, of_positive, target, out=by_predicted)
    return loss
