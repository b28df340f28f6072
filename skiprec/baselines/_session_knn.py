"""Session-kNN: what was played in the training sessions that are most like the current one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from skiprec.baselines._evidence import Evidence
from skiprec.baselines._lists import Incidence, distinct, place_in_run, run_starts

# B sessions at a time, T positions, S training sessions, G pairs of a current and a training session.

SESSION_NEIGHBOURS = 100
SAMPLE_SIZE = 1000


@dataclass(frozen=True)
class SessionKnn:
    r"""V-SKNN (Ludewig & Jannach 2018, arXiv:1803.09587), with the defaults of its authors' session-rec.

    .. math:: s(i) = \sum_{n \in N, i \in n} \frac{w(n)}{d(n)}, \quad w(n) = \sum_{j \in c \cap n} p_j

    for a current session c of L inputs. p_j is the last position of item j, 1 to L, so weights fall linearly from the
    last item to the first. (The published similarity is over L and over the number of distinct items, which are the
    same for all neighbours; without them w is a whole number, and ties are exact.) It is the dot product of a weighted
    current session with a binary past one, not divided by the length of the past one. d(n) is how far from the end the
    last shared item stands, 1 for the last input. N are the k sessions of highest w among the sampled ones. No inverse
    document frequency.

    The sample: session-rec looks for neighbours among the `sample_size` most recent sessions that share an item. Logs
    here tell no more than a date, and nearly all have the same one: so the last ones in the dataset's order serve,
    which is that of session ids: a fixed sample that says nothing. It also breaks ties, the later first.

    Who is no neighbour: a training session all of whose items are in the current one. It speaks for nothing that was
    not played here; and the current session's own training prefix is one, that would else be nearest of all. So
    evaluation need not say which row asks, and a new session is treated alike. It does take its place in the sample.
    """

    incidence: Incidence
    k: int = SESSION_NEIGHBOURS
    sample_size: int = SAMPLE_SIZE

    def __call__(self, items: Int64[np.ndarray, "B T"], lengths: Int64[np.ndarray, " B"]) -> Evidence:
        """Sums over the neighbours that have the item."""
        rows, sessions, similarity, last_shared = self.neighbours(items)
        weights = similarity / (lengths[rows] - last_shared + 1)
        neighbour, places = self.incidence.items.places(sessions)
        n_items, n = len(self.incidence.sessions.lengths), max(1, len(neighbour))
        # Sorted as one number each, which is several times faster than finding an order.
        ordered = np.sort(
            (rows[neighbour] * n_items + self.incidence.items.values[places]) * n + np.arange(len(places))
        )
        pair, entry = np.divmod(ordered, n)
        starts = run_starts(pair)
        scores = np.add.reduceat(weights[neighbour[entry]], starts) if len(starts) else np.empty(0)
        return Evidence(*np.divmod(pair[starts], n_items), scores)

    def neighbours(
        self, items: Int64[np.ndarray, "B T"]
    ) -> tuple[Int64[np.ndarray, " G"], Int64[np.ndarray, " G"], Int64[np.ndarray, " G"], Int64[np.ndarray, " G"]]:
        """The nearest training sessions of each: row, session, similarity, last position of a shared item."""
        T, n = items.shape[1], len(self.incidence.items.lengths)
        row, later_first, position = self.sharing(items)
        # As above; positions last, so that a pair's last one is the last shared item's.
        pair, position = np.divmod(np.sort((row * n + later_first) * (T + 1) + position), T + 1)
        starts = run_starts(pair)
        n_shared = np.diff(np.append(starts, len(pair)))
        rows, later_first = np.divmod(pair[starts], n)

        is_sampled = place_in_run(rows) < self.sample_size
        is_neighbour = is_sampled & (n_shared < self.incidence.items.lengths[n - 1 - later_first])
        similarity = np.add.reduceat(position, starts) if len(starts) else starts
        last_shared = position[starts + n_shared - 1]
        most = T * (T + 1) // 2
        ranked = (rows * (most + 1) + most - similarity) * n + later_first
        ranked, last_shared = np.divmod(np.sort((ranked * (T + 1) + last_shared)[is_neighbour]), T + 1)
        ranked, later_first = np.divmod(ranked, n)
        rows, dissimilarity = np.divmod(ranked, most + 1)
        near = place_in_run(rows) < self.k
        return tuple(x[near] for x in (rows, n - 1 - later_first, most - dissimilarity, last_shared))

    def sharing(
        self, items: Int64[np.ndarray, "B T"]
    ) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Who shares an item, in no order, as far as the sample can reach: row, session from the last, position."""
        sessions = self.incidence.sessions
        n = len(self.incidence.items.lengths)
        rows, item, position = distinct(items)
        # An item that enough sessions have fills the sample: what comes before them is in no one's sample.
        full = sessions.lengths[item] >= self.sample_size
        reach = np.full(len(items), n)
        np.minimum.at(reach, rows[full], n - 1 - sessions.values[sessions.edges[item[full] + 1] - self.sample_size])
        which, places = sessions.places(item, at_most=self.sample_size)
        later_first = n - 1 - sessions.values[places]
        within_reach = later_first <= reach[rows][which]
        which = which[within_reach]
        return rows[which], later_first[within_reach], position[which]
