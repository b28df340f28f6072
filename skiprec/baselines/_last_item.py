"""What followed the session's last item elsewhere, or was played in the same sessions: Markov and item-kNN."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from skiprec.baselines._evidence import Evidence
from skiprec.baselines._lists import Incidence, Lists, place_in_run
from skiprec.dataset import Sessions
from skiprec.schema import PADDING

# B sessions at a time, T positions, P pairs of items.

ITEM_NEIGHBOURS = 100
SUPPORT_DAMPING = 20
"""Added to how many sessions have an item, so that items that met once in rare sessions are not taken for twins."""
PAIRS_AT_A_TIME = 8_000_000


@dataclass(frozen=True)
class OfLastItem:
    """Evidence that is looked up by the session's last item, whatever came before."""

    items: Lists
    """For each last item index those that it speaks for."""
    scores: Float[np.ndarray, " N"]
    """Beside the lists' values."""

    def __call__(self, items: Int64[np.ndarray, "B T"], lengths: Int64[np.ndarray, " B"]) -> Evidence:
        """The list of each session's last item."""
        rows, places = self.items.places(items[np.arange(len(items)), lengths - 1])
        return Evidence(rows, self.items.values[places], self.scores[places])


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
    return OfLastItem(Lists.of_owners(*np.divmod(pairs, n_items + 1), n_items + 1), counts.astype(np.float64))


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
    n = len(incidence.sessions.lengths)
    support = incidence.sessions.lengths + SUPPORT_DAMPING
    owners, neighbours, scores = [], [], []
    for first, stop in blocks_of_items(incidence):
        one, other, together = count_pairs(incidence, first, stop)
        similarity = (together / np.sqrt(support[one] * support[other])).astype(np.float32)
        keep = nearest(one, similarity, k)
        owners.append(one[keep])
        neighbours.append(other[keep])
        scores.append(similarity[keep])
    lists = Lists.of_owners(np.concatenate(owners), np.concatenate(neighbours), n)
    return OfLastItem(lists, np.concatenate(scores))


def blocks_of_items(incidence: Incidence) -> list[tuple[int, int]]:
    """Ranges of item indices of which no more than PAIRS_AT_A_TIME pairs are counted at once, or that are one item."""
    sessions = incidence.sessions
    pairs = np.concatenate([[0], np.cumsum(incidence.items.lengths[sessions.values])])[sessions.edges[1:]]
    blocks, first = [], 0
    while first < len(pairs):
        done = pairs[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(pairs, done + PAIRS_AT_A_TIME, side="right")))
        blocks.append((first, stop))
        first = stop
    return blocks


def count_pairs(
    incidence: Incidence, first: int, stop: int
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Pairs of different items, the first one in a range: both, ascending, and how many sessions have both."""
    n = len(incidence.sessions.lengths)
    item, at_session = incidence.sessions.places(np.arange(first, stop))
    entry, at_item = incidence.items.places(incidence.sessions.values[at_session])
    one, other = item[entry] + first, incidence.items.values[at_item]
    differ = one != other
    pairs, together = np.unique(one[differ] * n + other[differ], return_counts=True)
    return *np.divmod(pairs, n), together


def nearest(
    owners: Int64[np.ndarray, " P"], similarity: Float32[np.ndarray, " P"], k: int
) -> Int64[np.ndarray, " kept"]:
    """Which pairs to keep: the k most similar of each owner, the first of equals. Owners ascend, and still do after."""
    # Bits of positive floats are in the floats' order, so one number holds owner and similarity, the highest first.
    highest_first = np.int64(2**32 - 1) - similarity.view(np.uint32)
    order = np.argsort((owners << 32) | highest_first, kind="stable")
    return order[place_in_run(owners) < k]
