"""Session-kNN: what was played in the training sessions that are most like the current one."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from skiprec.baselines._evidence import Evidence
from skiprec.baselines._lists import Incidence

# B sessions at a time, T positions, K neighbours, R items in the catalogue and padding.

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
        from skiprec.baselines._loops import sum_of_neighbours

        neighbours, similarity, last_shared, found = self.neighbours(items)
        weights = similarity / (lengths[:, None] - last_shared + 1)
        is_real = np.arange(self.k) < found[:, None]
        own = self.incidence.items
        room = own.lengths[neighbours[is_real]].sum()
        spoken_for, scores = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.float32)
        stops = np.empty_like(found)
        sum_of_neighbours(self._sums, own.values, own.edges, neighbours, weights, found, spoken_for, scores, stops)
        return Evidence(np.concatenate([[0], stops[:-1]]), stops, spoken_for, scores)

    def neighbours(
        self, items: Int64[np.ndarray, "B T"]
    ) -> tuple[Int64[np.ndarray, "B K"], Int64[np.ndarray, "B K"], Int64[np.ndarray, "B K"], Int64[np.ndarray, " B"]]:
        """The nearest training sessions of each: session, similarity, last position of a shared item, and how many.

        What stands behind a session's last neighbour is 0. The lists of its items' sessions are walked from their ends
        all at once, so no more is read of them than the sample needs.
        """
        from skiprec.baselines._loops import nearest_sessions

        of_items = self.incidence.sessions
        neighbours, similarity, last_shared = (np.zeros((len(items), self.k), dtype=np.int64) for _ in range(3))
        answers = (neighbours, similarity, last_shared, np.empty(len(items), dtype=np.int64))
        nearest_sessions(
            items, of_items.values, of_items.edges, self.incidence.items.lengths, self.sample_size, *answers
        )
        return answers

    @functools.cached_property
    def _sums(self) -> Float64[np.ndarray, " R"]:
        """Room for sums, all 0 between calls."""
        return np.zeros(len(self.incidence.sessions.lengths))
