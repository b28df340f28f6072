"""Scorers that have something to say of a few items of each session, and order the rest by plays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64
from torch import Tensor

from skiprec.baselines._lists import distinct
from skiprec.dataset import Sessions
from skiprec.seeds import counter_bits

# B sessions at a time, T positions, C candidates a session, A of these and of the inputs, R items in the catalogue and
# padding, N places of evidence.


@dataclass(frozen=True)
class Evidence:
    """What speaks for items: session b of the block has places starts[b] to stops[b], each item at most once."""

    starts: Int64[np.ndarray, " B"]
    stops: Int64[np.ndarray, " B"]
    items: Int32[np.ndarray, " N"]
    """Sessions may share places, and some may be no one's: a table that is only looked up is not copied."""
    scores: Float32[np.ndarray, " N"]
    """More than 0. Sums that differ by the order of their terms alone are equal as float32."""


FindEvidence = Callable[[Int64[np.ndarray, "B T"], Int64[np.ndarray, " B"]], Evidence]
"""From a block of inputs: items, 0 where padding, and lengths."""


class ByEvidence:
    """Items that the session speaks for, by their evidence; below them all others, by plays in training prefixes.

    Without the plays nearly all candidates would tie at nothing wherever sessions share little, and the baseline would
    rank below "most popular" for want of an answer rather than for a wrong one.

    Args:
        plays: Of each item index.
        find: What speaks for which items.
    """

    def __init__(self, plays: Int[Tensor, " R"], find: FindEvidence) -> None:
        counts = plays.cpu().numpy()
        self.find = find
        # Whole numbers up to 0: no evidence is so weak that plays outweigh it, and none of them is rounded.
        self.by_plays: Float32[np.ndarray, " R"] = (counts - counts.max()).astype(np.float32)
        self.in_order: Float32[np.ndarray, " n"] = np.sort(self.by_plays[1:])
        self.scratch = self.by_plays.copy()

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        scores, _ = self._look_up(self._evidence(inputs), candidates.long().cpu().numpy())
        return torch.from_numpy(scores).to(inputs.items.device)

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        found = self._evidence(inputs)
        scores = np.tile(self.by_plays, (len(inputs.lengths), 1))
        for b, (start, stop) in enumerate(zip(found.starts, found.stops, strict=True)):
            scores[b, found.items[start:stop]] = found.scores[start:stop]
        return torch.from_numpy(scores).to(inputs.items.device)

    def scores_and_ranks(
        self, inputs: Sessions, asked: Int[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of a few items, targets first, and the targets' ranks in the catalogue and without the inputs.

        At the cost of the evidence alone, which is found once.
        """
        scores, moved = self._look_up(self._evidence(inputs), with_inputs(asked, inputs))
        return scores_and_ranks(above_or_equal(self.in_order, scores[:, 0]) + moved, scores, inputs)

    def _evidence(self, inputs: Sessions) -> Evidence:
        return self.find(inputs.items.cpu().numpy(), inputs.lengths.cpu().numpy())

    def _look_up(
        self, found: Evidence, asked: Int64[np.ndarray, "B A"]
    ) -> tuple[Float32[np.ndarray, "B A"], Float64[np.ndarray, " B"]]:
        """Scores of the items that are asked for, and by how much evidence moves the rank of each session's first.

        The rank as if there were no evidence; then each item that has some is taken from its place and put where it
        belongs. One session after another: a table of all scores would be (B, R).
        """
        from skiprec.baselines._loops import look_up_evidence

        scores, moved = np.empty(asked.shape, dtype=np.float32), np.empty(len(asked))
        evidence = (found.starts, found.stops, found.items, found.scores)
        look_up_evidence(self.scratch, self.by_plays, *evidence, asked, scores, moved)
        return scores, moved


class Random:
    """A score that says nothing, but the same for the same last item and candidate.

    One random order of the catalogue, entered at a place that the session's last item decides: so every session has an
    order of its own, and a target's place in it is found without the scores of the whole catalogue.
    """

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items
        noise = (counter_bits(0, np.arange(n_items)) >> np.uint64(11)).astype(np.float64)
        self.noise = np.concatenate([noise, noise])  # twice, so that no place needs to be wrapped
        self.in_order = np.sort(noise)

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        scores = self._scores(self._last(inputs), candidates.cpu().numpy())
        return torch.from_numpy(scores).to(inputs.items.device)

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        every = torch.arange(self.n_items + 1, device=inputs.items.device).expand(len(inputs.lengths), -1)
        return self.candidate_scores(inputs, every)

    def scores_and_ranks(
        self, inputs: Sessions, asked: Int[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of a few items, targets first, and the targets' ranks in the catalogue and without the inputs."""
        scores = self._scores(self._last(inputs), with_inputs(asked, inputs))
        return scores_and_ranks(above_or_equal(self.in_order, scores[:, 0]), scores, inputs)

    def _last(self, inputs: Sessions) -> Int64[np.ndarray, "B 1"]:
        return inputs.items.gather(1, inputs.lengths[:, None] - 1).cpu().numpy()

    def _scores(self, last: Int64[np.ndarray, "B 1"], asked: Int[np.ndarray, "B C"]) -> Float64[np.ndarray, "B C"]:
        enter_at = (counter_bits(1, last) % np.uint64(self.n_items)).astype(np.int64)
        return self.noise[enter_at + asked]


def beats(scores: Float[np.ndarray, "..."], target: Float[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """1 where a score is higher than the target's, 1/2 where it is equal, else 0: what it adds to the target's rank."""
    return (scores > target) + (scores == target) / 2


def above_or_equal(in_order: Float[np.ndarray, " n"], target: Float[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
    """The sum of `beats` over ascending scores."""
    not_above = np.searchsorted(in_order, target, side="right")
    return len(in_order) - (np.searchsorted(in_order, target, side="left") + not_above) / 2


def with_inputs(asked: Int[Tensor, "B C"], inputs: Sessions) -> Int64[np.ndarray, "B A"]:
    """What is asked for, and beside it the items of the inputs."""
    return torch.cat([asked.long(), inputs.items], dim=1).cpu().numpy()


def scores_and_ranks(
    above: Float64[np.ndarray, " B"], scores: Float[np.ndarray, "B A"], inputs: Sessions
) -> tuple[Float[Tensor, "B C"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Scores of what was asked for; ranks of the targets among all items, and among those not in the inputs.

    Args:
        above: Sum of `beats` over the whole catalogue, the target's tie with itself among it.
        scores: Of the target, of others that are asked for, then of the inputs.
        inputs: The sessions.
    """
    device, C = inputs.items.device, scores.shape[1] - inputs.items.shape[1]
    ranks = above + 0.5  # 1, less the tie with itself
    rows, _, positions = distinct(inputs.items.cpu().numpy())
    taken = np.bincount(rows, weights=beats(scores[rows, C - 1 + positions], scores[rows, 0]), minlength=len(scores))
    return tuple(torch.from_numpy(x).to(device) for x in (scores[:, :C], ranks, ranks - taken))
