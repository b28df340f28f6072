"""Recommenders without a model. A study that does not show them cannot say what it learnt.

They learn from training prefixes alone, and work with numpy on the CPU wherever the questions lie.
"""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from skiprec.baselines._evidence import ByEvidence, Evidence, Random
from skiprec.baselines._last_item import item_knn, markov
from skiprec.baselines._lists import Incidence, distinct
from skiprec.baselines._session_knn import SessionKnn
from skiprec.dataset import Dataset, training_prefix
from skiprec.evaluation import Evaluator, Scorer

# B sessions at a time, T positions, R items in the catalogue and padding.


def nothing(items: Int64[np.ndarray, "B T"], lengths: Int64[np.ndarray, " B"]) -> Evidence:
    """No evidence: every item by its plays."""
    none = np.zeros(len(items), dtype=np.int64)
    return Evidence(none, none, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def own_tracks(
    items: Int64[np.ndarray, "B T"], lengths: Int64[np.ndarray, " B"], *, plays: Int[Tensor, " R"]
) -> Evidence:
    """The session's own tracks, among them by plays; the last input may have none."""
    rows, own, _ = distinct(items)
    edges = np.searchsorted(rows, np.arange(len(items) + 1))
    return Evidence(edges[:-1], edges[1:], own.astype(np.int32), (plays.numpy()[own] + 1).astype(np.float32))


def baselines(dataset: Dataset) -> dict[str, Scorer]:
    """Every baseline by its name in reports."""
    seen = training_prefix(dataset)
    incidence = Incidence.of(seen, dataset.n_items)
    evidence = {
        "most popular": nothing,
        "session-popular": functools.partial(own_tracks, plays=dataset.plays),
        "Markov": markov(seen, dataset.n_items),
        "item-kNN": item_knn(incidence),
        "session-kNN": SessionKnn(incidence),
    }
    return {"random": Random(dataset.n_items)} | {
        name: ByEvidence(dataset.plays, find) for name, find in evidence.items()
    }


def evaluate_baselines(scorers: Mapping[str, Scorer], evaluator: Evaluator) -> dict[str, dict[str, float]]:
    """Every baseline's metrics, on the same questions as the model's."""
    return {name: evaluator.sampled_and_full(scorer) for name, scorer in scorers.items()}
