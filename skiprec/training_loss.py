"""One batch and what the model says of it -> the loss of a step: L = alpha * L_NCE + beta * L_NLL.

Which positions have targets, which are anchors, and which items are negatives is decided here; how the two losses are
computed from embeddings is in `losses.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skiprec.batches import Batch, draw_masked_positions
from skiprec.losses import masked_info_nce, next_positive
from skiprec.model import SequenceEncoder
from skiprec.negatives import next_item_negatives, skipped_items
from skiprec.randomness import generator
from skiprec.sampled_softmax import SampledSoftmax
from skiprec.touched_rows import Buffers, Reader, TouchedRows

# B sessions in the batch, T positions, D embedding width, N negatives a session.


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What a step minimises (Seshadri & Knees 2023, arXiv:2309.11623, sections 3.2.5 to 3.4)."""

    alpha: float = 0.5
    """Weight of the contrastive loss. 0 is the S- baseline and takes no contrastive work."""
    beta: float = 0.5
    """Weight of the next-item loss."""
    context: Literal["session", "item"] = "item"
    """What is pulled to the next heard item: the model's output at a position, or the embedding of the item there."""
    temperature: float = 0.1
    """Of the contrastive loss."""
    negative_scope: Literal["session", "other_session", "random"] = "session"
    """Whose skipped items are pushed away; the others are controls."""
    anchors: Literal["all", "heard"] = "all"
    """Positions that the contrastive loss acts on: all real ones, or those whose own item was heard."""
    visible_positive: bool = False
    """Bidirectional with context "session": whether a position may be pulled to an item that it sees."""
    negatives: Literal["session", "batch"] = "session"
    """Sampled softmax: one draw a session, or one shared by the batch."""
    n_negatives: int = 1000
    """Items a draw."""
    mask_rate: float = 0.2
    """Bidirectional: chance of a position to be masked."""
    mask_last_only: float = 0.1
    """Bidirectional: chance of a session to have only its last position masked."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}, expected 0 or more")
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0, so there is nothing to minimise")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.n_negatives < 1:
            raise ValueError(f"n_negatives is {self.n_negatives}, expected at least 1")
        for name in ("mask_rate", "mask_last_only"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True, slots=True)
class LossParts:
    """The scalar to minimise and its two parts, in nats; and the rows of the item table that they were made from."""

    loss: Float[Tensor, ""]
    nll: Float[Tensor, ""]
    nce: Float[Tensor, ""]
    touched: TouchedRows


def training_loss(
    model: SequenceEncoder,
    batch: Batch,
    config: LossConfig,
    draw: tuple[int | str, ...],
    read: Reader,
    buffers: Buffers,
) -> LossParts:
    """Run the model on a batch and weigh the two losses.

    Backward gives the gradients of the model's parameters but for the item table's: those are in `touched` then (call
    its `gather_leading` first).

    Args:
        model: The encoder.
        batch: Training prefixes.
        config: What to minimise.
        draw: What this step's random draws are made from: (seed, epoch, step).
        read: Gives rows of the item table as they are now.
        buffers: Memory of the steps before.
    """
    device = batch.items.device
    masked = None
    if not model.is_causal:
        masks = generator(device, *draw, "mask")
        masked = draw_masked_positions(
            batch.lengths, batch.items.shape[1], config.mask_rate, config.mask_last_only, masks
        )
    negative_items, negative_mask = next_item_negatives(
        config.negatives, batch.items, model.n_items, config.n_negatives, generator(device, *draw, "negatives")
    )
    leading = [batch.items]
    if masked is not None:
        leading.append(torch.full((1,), model.mask_index, device=device))
    if config.alpha > 0:
        skips, is_skip = skipped_items(
            config.negative_scope,
            batch.items,
            batch.skipped,
            n_items=model.n_items,
            generator=generator(device, *draw, "contrastive_negatives"),
        )
        leading.append(skips)
    touched = buffers.touch(read, leading, negative_items)
    parts = touched.leading.split([items.numel() for items in leading])
    vectors = parts[0].view(*batch.items.shape, -1)  # (B, T, D)
    if masked is None:
        # The last item of a prefix is a target, never an input.
        predicted = model.encode(vectors[:, :-1], batch.lengths - 1)
    else:
        predicted = model.encode(torch.where(masked[..., None], parts[1], vectors), batch.lengths)
    target, has_target = next_item_targets(vectors, batch, masked)
    weighted, nll = SampledSoftmax.apply(
        predicted,
        target,
        touched.of_others(touched.values).view(*negative_items.shape, -1),
        touched.of_others(touched.gradients).view(*negative_items.shape, -1),
        has_target,
        negative_mask,
        torch.full((), config.beta, dtype=predicted.dtype, device=device),
    )
    if config.alpha == 0:
        return LossParts(weighted, nll, torch.zeros_like(nll), touched)
    negatives = parts[-1].view(*skips.shape, -1)
    nce = contrastive_loss(predicted, vectors, batch, masked, skips, is_skip, negatives, config)
    return LossParts(config.alpha * nce + weighted, nll, nce, touched)


def next_item_targets(
    vectors: Float[Tensor, "B T D"], batch: Batch, masked: Bool[Tensor, "B T"] | None
) -> tuple[Float[Tensor, "B P D"], Bool[Tensor, "B P"]]:
    """What each position of the model's output is to predict, and where there is something (semantics: section 4).

    Args:
        vectors: Embeddings of the training prefixes.
        batch: The prefixes; P is T - 1 for the unidirectional model, which is not shown the last item.
        masked: Positions that the bidirectional model was not shown; None for the unidirectional one.
    """
    if masked is None:
        return vectors[:, 1:], batch.position_mask[:, 1:]
    return vectors, masked


def contrastive_loss(
    predicted: Float[Tensor, "B P D"],
    vectors: Float[Tensor, "B T D"],
    batch: Batch,
    masked: Bool[Tensor, "B T"] | None,
    negative_items: Int[Tensor, "B N"],
    negative_mask: Bool[Tensor, "B N"],
    negatives: Float[Tensor, "B N D"],
    config: LossConfig,
) -> Float[Tensor, ""]:
    """L_NCE of a batch (semantics: section 5).

    Args:
        predicted: The model's output; P is T - 1 for the unidirectional model: its last position has nothing after it.
        vectors: Embeddings of the training prefixes.
        batch: Training prefixes.
        masked: Positions that the bidirectional model was not shown; None for the unidirectional one.
        negative_items: Items to be pushed away from, each once a session.
        negative_mask: True where one is real.
        negatives: Their embeddings.
        config: Context, anchors, temperature and visible_positive are read.
    """
    P = predicted.shape[1]
    next_heard, is_anchor = next_positive(batch.skipped, batch.position_mask)
    positive_items = batch.items.gather(1, next_heard)  # (B, T)
    if config.anchors == "heard":
        is_anchor = is_anchor & ~batch.skipped
    if masked is not None and config.context == "session" and not config.visible_positive:
        # Attention both ways: a position that sees its positive would only learn to copy it.
        is_anchor = is_anchor & masked.gather(1, next_heard)
    own_items, positive_items, is_anchor = batch.items[:, :P], positive_items[:, :P], is_anchor[:, :P]
    # A skipped item is no negative at the position that plays it, nor where it is heard next.
    n = negative_items[:, None, :]
    negative_mask_by_position = (
        negative_mask[:, None, :] & (n != own_items[:, :, None]) & (n != positive_items[:, :, None])
    )
    positive = vectors.gather(1, next_heard[:, :P, None].expand(-1, -1, vectors.shape[-1]))
    return masked_info_nce(
        predicted if config.context == "session" else vectors[:, :P],
        positive,
        negatives,
        position_mask=is_anchor,
        negative_mask=negative_mask_by_position,
        temperature=config.temperature,
    )
