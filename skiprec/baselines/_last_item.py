"""What followed the session's last item elsewhere, or was played in the same sessions: Markov and item-kNN."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from skiprec.baselines._evidence import Evidence
from skiprec.baselines._lists import Incidence, Lists
from skiprec.dataset import Sessions
from skiprec.schema import PADDING

# B sessions at a time, T positions, N places of evidence, R items in the catalogue and padding.

ITEM_NEIGHBOURS = 100
SUPPORT_DAMPING = 20
"""Added to how many sessions have an item, so that items that met once in rare sessions are not taken for twins."""


@dataclass(frozen=True)
class OfLastItem:
    """Evidence that is looked up by the session's last item, whatever came before."""

    items: Lists
    """For each last item index those that it speaks for."""
    scores: Float32[np.ndarray, " N"]
    """Beside the lists' values."""

    def __call__(self, items: Int64[np.ndarray, "B T"], lengths: Int64[np.ndarray, " B"]) -> Evidence:
        """The list of each session's last item."""
        last = items[np.arange(len(items)), lengths - 1]
        return Evidence(self.items.edges[last], self.items.edges[last + 1], self.items.values, self.scores)


def markov(seen: Sessions, n_items: int) -> OfLastItem:
    """First-order Markov chain: an item's evidence is how often it came right after the last one.

    Counts stand for transition probabilities: they differ by a factor that is the same for all items of a session. The
    session's own prefix is counted as any other.

    Args:
        seen: Training prefixes.
        n_items: Size of the catalogue.
    """
    items = seen.items.numpy()
    before, after = items[:, :-1], items[:, 1:]
    is_real = after != PADDING
    pairs, counts = np.unique(before[is_real] * (n_items + 1) + after[is_real], return_counts=True)
    return OfLastItem(Lists.of_owners(*np.divmod(pairs, n_items + 1), n_items + 1), counts.astype(np.float32))


def item_knn(incidence: Incidence, k: int = ITEM_NEIGHBOURS) -> OfLastItem:
    r"""Item-kNN: the items most similar to the last one, by the sessions in which they were played.

    .. math:: s_{ij} = \frac{|S_i \cap S_j|}{\sqrt{(|S_i| + \lambda)(|S_j| + \lambda)}}

    with S_i the training sessions that have item i (once, however often it was played there): cosine similarity, damped
    for rare items. The last item alone speaks, its k most similar are kept, lambda is 20: the field's item-kNN for
    sessions (Hidasi et al. 2016, arXiv:1511.06939, section 4; Ludewig & Jannach 2018, arXiv:1803.09587, and the
    defaults of their session-rec), not that of long-lived users, where all items of a profile are summed. An item is no
    neighbour of itself. The session's own prefix is counted as any other.

    Args:
        incidence: Of the training prefixes.
        k: Neighbours of an item; of equal ones at the end those with the lower index stay.
    """
    from skiprec.baselines._loops import nearest_items

    of_sessions, of_items = incidence.items, incidence.sessions
    room = int(np.minimum(most_neighbours(incidence), k).sum())  # what is not written takes no memory
    neighbours, similarity = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.float32)
    edges = np.zeros_like(of_items.edges)
    nearest_items(
        of_sessions.values,
        of_sessions.edges,
        of_items.values,
        of_items.edges,
        of_items.lengths + SUPPORT_DAMPING,
        k,
        neighbours,
        similarity,
        edges,
    )
    return OfLastItem(Lists(neighbours[: edges[-1]], edges), similarity[: edges[-1]])


def most_neighbours(incidence: Incidence) -> Int64[np.ndarray, " R"]:
    """Of each item index the other items of its sessions, those of two sessions counted twice."""
    others = incidence.items.lengths[incidence.sessions.values] - 1
    return np.diff(np.concatenate([[0], np.cumsum(others)])[incidence.sessions.edges])
