"""Training prefixes -> those that a run learns from -> batches, in an order fixed by a seed.

Also which positions a masked model must guess.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skiprec.dataset import Dataset, Sessions, training_prefix
from skiprec.model import position_mask
from skiprec.randomness import generator
from skiprec.seeds import counter_bits, derive_seed

# B sessions in the batch, T positions.


@dataclass(frozen=True, slots=True)
class Batch:
    """Some training prefixes, real positions first, then padding. Nothing of a held-out row is in it."""

    items: Int[Tensor, "B T"]
    skip_levels: Int[Tensor, "B T"]
    skipped: Bool[Tensor, "B T"]
    lengths: Int[Tensor, " B"]

    @property
    def position_mask(self) -> Bool[Tensor, "B T"]:
        """True where a position is real."""
        return position_mask(self.lengths, self.items.shape[1])


def training_sessions(dataset: Dataset, *, skip_threshold: int = 0, session_share: float = 1.0) -> Sessions:
    """The training prefixes that a run learns from.

    Args:
        dataset: The prepared logs.
        skip_threshold: Least skip level that counts as skipped; 0 for the dataset's own.
        session_share: Share of the sessions, one at least. Which ones depends on the dataset alone, and those of a
            smaller share are among those of a larger one.
    """
    sessions = training_prefix(dataset)
    if skip_threshold:
        sessions = dataclasses.replace(sessions, skipped=sessions.skip_levels >= skip_threshold)
    if session_share < 1:
        n_sessions = len(sessions.lengths)
        key = derive_seed(dataset.digest, "session_share")
        order = counter_bits(key, np.arange(n_sessions)).argsort(kind="stable")
        chosen = np.sort(order[: max(1, round(session_share * n_sessions))])
        sessions = sessions.of(torch.from_numpy(chosen))
    return sessions


def batches(sessions: Sessions, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
    """Every session once, in an order that depends on seed and epoch alone. The last batch may be smaller."""
    device = sessions.items.device
    # Shuffled on the CPU: the order is then the same on every device, and costs nothing beside a step.
    order = torch.randperm(len(sessions.lengths), generator=generator("cpu", seed, epoch, "order")).to(device)
    for rows in order.split(batch_size):
        yield Batch(sessions.items[rows], sessions.skip_levels[rows], sessions.skipped[rows], sessions.lengths[rows])


def draw_masked_positions(
    lengths: Int[Tensor, " B"], width: int, mask_rate: float, mask_last_only: float, generator: torch.Generator
) -> Bool[Tensor, "B {width}"]:
    """Which positions are shown as [MSK] to the bidirectional encoder (semantics: section 3).

    Args:
        lengths: Real positions of each session.
        width: Positions of the batch.
        mask_rate: Chance of each real position; where none is hit, one is chosen at random.
        mask_last_only: Chance of a session to have its last position masked and no other, as inference does.
        generator: On the device of lengths.

    Returns:
        True where a position is masked: at least one a session, never padding.
    """
    real = position_mask(lengths, width)
    u = torch.rand(real.shape, generator=generator, device=lengths.device).masked_fill(~real, torch.inf)
    least = torch.zeros_like(real).scatter_(1, u.argmin(1, keepdim=True), True)
    masked = (u < mask_rate) | least  # the least is below mask_rate already, unless none is
    last = torch.arange(width, device=lengths.device) == lengths[:, None] - 1
    only_last = torch.rand((len(lengths), 1), generator=generator, device=lengths.device) < mask_last_only
    return torch.where(only_last, last, masked)
