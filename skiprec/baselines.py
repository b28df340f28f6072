"""Recommenders that learn nothing from sequences. A study that does not show them cannot say what it learnt."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.dataset import Dataset, Sessions
from skiprec.evaluation import Evaluator, Scorer
from skiprec.randomness import counter_bits

# B sessions at a time, T positions, C candidates a session, R items in the catalogue and padding.


class Random:
    """A score that says nothing, but the same for the same session's last item and candidate."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        last = inputs.items.gather(1, inputs.lengths[:, None] - 1)
        counter = (last * (self.n_items + 1) + candidates).cpu().numpy().astype(np.uint64)
        return torch.from_numpy((counter_bits(0, counter) >> np.uint64(11)).astype(np.float64)).to(candidates.device)

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        every = torch.arange(self.n_items + 1, device=inputs.items.device).expand(len(inputs.items), -1)
        return self.candidate_scores(inputs, every)


class MostPopular:
    """Plays in the training prefixes, whatever the session."""

    def __init__(self, plays: Int[Tensor, " R"]) -> None:
        self.plays = plays.double()

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        return self.plays.to(candidates.device)[candidates]

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        return self.plays.to(inputs.items.device).repeat(len(inputs.items), 1)


class SessionPopular(MostPopular):
    """The session's own tracks first, then the most popular; among each, by plays."""

    def candidate_scores(self, inputs: Sessions, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Scores of a few items for each session."""
        return self.catalogue_scores(inputs).gather(1, candidates)

    def catalogue_scores(self, inputs: Sessions) -> Float[Tensor, "B R"]:
        """Scores of every item for each session."""
        plays = super().catalogue_scores(inputs)
        first = plays.gather(1, inputs.items) + self.plays.max() + 1
        return plays.scatter(1, inputs.items, first)


def baselines(dataset: Dataset) -> dict[str, Scorer]:
    """Every baseline by its name in reports."""
    return {
        "random": Random(dataset.n_items),
        "most popular": MostPopular(dataset.plays),
        "session-popular": SessionPopular(dataset.plays),
    }


def evaluate_baselines(dataset: Dataset, evaluator: Evaluator) -> dict[str, dict[str, float]]:
    """Every baseline's metrics, on the same questions as the model's."""
    return {name: evaluator.sampled(s) | evaluator.full(s) for name, s in baselines(dataset).items()}
