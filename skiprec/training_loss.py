"""One batch and what the model says of it -> the loss of a step: L = alpha * L_NCE + beta * L_NLL.

Which positions have targets, which are anchors, and which items are negatives is decided here; how the two losses are
computed from embeddings is in `losses.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from skiprec.batches import Batch, draw_masked_positions
from skiprec.losses import masked_info_nce, next_positive
from skiprec.model import NO_LEVEL, SequenceEncoder
from skiprec.negatives import Scope, beside_sharers, contrastive_negatives, next_item_negatives
from skiprec.randomness import Draws
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
    negative_scope: Scope = "session"
    """Whose skipped items are pushed away: see `contrastive_negatives`. All but "session" and "past" are controls."""
    anchors: Literal["all", "heard"] = "all"
    """Positions that the contrastive loss acts on: all real ones, or those whose own item was heard."""
    visible_positive: bool = False
    """Bidirectional with context "session": whether a position may be pulled to an item that it sees."""
    skipped_target_weight: float = 1.0
    """What the next-item loss counts where the target was skipped, against 1 where it was heard; 0 leaves it out."""
    negatives: Literal["session", "batch", "full"] = "session"
    """Sampled softmax: one draw a session, or one shared by the batch; or no sampling but the whole catalogue."""
    n_negatives: int = 1000
    """Items a draw; no effect with the whole catalogue."""
    mask_rate: float = 0.2
    """Bidirectional: chance of a position to be masked."""
    mask_last_only: float = 0.1
    """Bidirectional: chance of a session to have only its last position masked."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "skipped_target_weight"):
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
    loss_weights: Float[Tensor, " 2"],
    draws: Draws,
    read: Reader,
    buffers: Buffers,
    plays_up_to: Int[Tensor, " R"] | None = None,
) -> LossParts:
    """Run the model on a batch and weigh the two losses.

    Backward gives the gradients of the model's parameters but for the item table's: those are in `touched` then (call
    its `gather_leading` first).

    Args:
        model: The encoder.
        batch: Training prefixes.
        config: What to minimise. Of alpha it says whether it is 0.
        loss_weights: Alpha and beta, on the device: they may change from step to step where a step is captured.
        draws: Started for this step.
        read: Gives rows of the item table as they are now.
        buffers: Memory of the steps before.
        plays_up_to: Plays of all items up to an index, that item's included; read by negative_scope "popular" alone.
    """
    device = batch.items.device
    alpha, beta = loss_weights
    masked = None
    if not model.is_causal:
        masked = draw_masked_positions(
            batch.lengths, batch.items.shape[1], config.mask_rate, config.mask_last_only, draws("mask")
        )
    negative_items, negative_mask = next_item_negatives(
        config.negatives, batch.items, model.n_items, config.n_negatives, draws("negatives")
    )
    leading = [batch.items]
    if masked is not None:
        leading.append(torch.full((1,), model.mask_index, device=device))
    if config.alpha > 0:
        anchors = contrastive_anchors(batch, masked, config)
        skips, is_skip = contrastive_negatives(
            config.negative_scope,
            batch.items,
            batch.skipped,
            *anchors,
            n_items=model.n_items,
            generator=draws("contrastive_negatives"),
            plays_up_to=plays_up_to,
        )
        leading.append(skips)
    touched = buffers.touch(read, leading, negative_items)
    parts = touched.leading.split([items.numel() for items in leading])
    vectors = parts[0].view(*batch.items.shape, -1)  # (B, T, D)
    if masked is None:
        # The last item of a prefix is a target, never an input.
        predicted = model.encode(vectors[:, :-1], batch.lengths - 1, batch.skip_levels[:, :-1], draws("dropout"))
    else:
        shown = torch.where(masked[..., None], parts[1], vectors)
        levels = batch.skip_levels.masked_fill(masked, NO_LEVEL)
        predicted = model.encode(shown, batch.lengths, levels, draws("dropout"))
    target, target_items, weight = next_item_targets(vectors, batch, masked, config.skipped_target_weight)
    weighted, nll = SampledSoftmax.apply(
        predicted,
        target,
        touched.of_others(touched.values).view(*negative_items.shape, -1),
        touched.of_others(touched.gradients).view(*negative_items.shape, -1),
        weight,
        negative_mask,
        # Index i - 1 of the catalogue is item i; what is computed at padding has no weight.
        (target_items - 1).clamp(min=0) if config.negatives == "full" else None,
        beta,
    )
    if config.alpha == 0:
        return LossParts(weighted, nll, torch.zeros_like(nll), touched)
    negatives = parts[-1].view(*skips.shape, -1)
    nce = contrastive_loss(predicted, vectors, batch, *anchors, skips, is_skip, negatives, config)
    return LossParts(alpha * nce + weighted, nll, nce, touched)


def next_item_targets(
    vectors: Float[Tensor, "B T D"], batch: Batch, masked: Bool[Tensor, "B T"] | None, skipped_target_weight: float
) -> tuple[Float[Tensor, "B P D"], Int[Tensor, "B P"], Float[Tensor, "B P"]]:
    """What each position of the model's output is to predict (semantics: section 4), and what that counts for.

    Args:
        vectors: Embeddings of the training prefixes.
        batch: The prefixes; P is T - 1 for the unidirectional model, which is not shown the last item.
        masked: Positions that the bidirectional model was not shown; None for the unidirectional one.
        skipped_target_weight: Of targets that were skipped; others weigh 1.

    Returns:
        Embeddings and indices of the targets, and their weights: 0 where there is nothing to predict.
    """
    of = slice(1, None) if masked is None else slice(None)
    has_target = (batch.position_mask if masked is None else masked)[:, of]
    weight = has_target.to(vectors.dtype)
    if skipped_target_weight != 1:
        weight = torch.where(batch.skipped[:, of], skipped_target_weight * weight, weight)
    return vectors[:, of], batch.items[:, of], weight


def contrastive_anchors(
    batch: Batch, masked: Bool[Tensor, "B T"] | None, config: LossConfig
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Which positions are pulled to which later one, wherever there are negatives (semantics: section 5).

    Args:
        batch: Training prefixes.
        masked: Positions that the bidirectional model was not shown; None for the unidirectional one.
        config: Context, anchors and visible_positive are read.

    Returns:
        Where p_m of each position stands, and True where it may be pulled there.
    """
    next_heard, is_anchor = next_positive(batch.skipped, batch.position_mask)
    if config.anchors == "heard":
        is_anchor = is_anchor & ~batch.skipped
    if masked is not None and config.context == "session" and not config.visible_positive:
        # Attention both ways: a position that sees its positive would only learn to copy it.
        is_anchor = is_anchor & masked.gather(1, next_heard)
    return next_heard, is_anchor


def contrastive_loss(
    predicted: Float[Tensor, "B P D"],
    vectors: Float[Tensor, "B T D"],
    batch: Batch,
    positive_at: Int[Tensor, "B T"],
    is_anchor: Bool[Tensor, "B T"],
    negative_items: Int[Tensor, "G N"],
    negative_mask: Bool[Tensor, "G N"] | Bool[Tensor, "B T N"],
    negatives: Float[Tensor, "G N D"],
    config: LossConfig,
) -> Float[Tensor, ""]:
    """L_NCE of a batch (semantics: section 5).

    Args:
        predicted: The model's output; P is T - 1 for the unidirectional model: its last position has nothing after it.
        vectors: Embeddings of the training prefixes.
        batch: Training prefixes.
        positive_at: Where p_m of each position stands.
        is_anchor: True where a position may be pulled to it.
        negative_items: Items to be pushed away from, each once a group of positions.
        negative_mask: True where one is real, for the group or for each position of it.
        negatives: Their embeddings.
        config: Context, negative_scope and temperature are read.
    """
    (_, T, D), P = vectors.shape, predicted.shape[1]
    positive_at = positive_at[:, :P]
    positive = vectors.gather(1, positive_at[..., None].expand(-1, -1, D))

    def shared(x: Shaped[Tensor, "B P *rest"]) -> Shaped[Tensor, "G Q *rest"]:
        return beside_sharers(x, config.negative_scope, T)

    by_position = negative_mask[:, None, :] if negative_mask.ndim == 2 else negative_mask[:, :P]
    # A skipped item is no negative at the position that plays it, nor where it is heard next.
    n = negative_items[:, None, :]
    own_items, positive_items = batch.items[:, :P], batch.items.gather(1, positive_at)
    return masked_info_nce(
        shared(predicted if config.context == "session" else vectors[:, :P]),
        shared(positive),
        negatives,
        position_mask=shared(is_anchor[:, :P]),
        negative_mask=by_position & (n != shared(own_items)[..., None]) & (n != shared(positive_items)[..., None]),
        temperature=config.temperature,
    )
