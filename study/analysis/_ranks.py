"""Test ranks of an arm's confirming runs, and the ways to divide sessions by their targets."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skiprec.features import FEATURE, FEATURE_THIRDS
from study.analysis._tables import DoneCell
from study.claims import MEASURES

# K seeds, S sessions.

THIRDS = ("most played third", "second third", "least played third")
MOST_CONTEXTS = 10
"""Context types with a group of their own; the rarer ones are one group."""
MOST_FEATURES = 3
"""Features of the tracks whose thirds are groups: those that tell skipped plays most from heard ones."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The test ranks of an arm: by measure (K, S), and the sessions' groups."""

    by_measure: Mapping[str, np.ndarray]
    sessions: pd.DataFrame

    def hits(self, measure: str, k: int) -> Bool[np.ndarray, "K S"]:
        """Whether each target is among the first k."""
        return self.by_measure[measure] <= k

    def among(self, measure: str) -> Bool[np.ndarray, " S"]:
        """The sessions that a measure asks about."""
        return ~np.isnan(self.by_measure[measure][0])


def ranks_of(runs: Sequence[DoneCell], read_ranks: Callable[[DoneCell], pd.DataFrame]) -> Ranks:
    """The ranks of some runs, in their order."""
    tables = [read_ranks(run) for run in runs]
    by_measure = {m: np.stack([table[m].to_numpy(dtype=np.float32) for table in tables]) for m in MEASURES}
    return Ranks(by_measure, tables[0].drop(columns=list(MEASURES)))


def groups(sessions: pd.DataFrame) -> Iterable[tuple[str, str, Bool[np.ndarray, " S"]]]:
    """Every way to divide the sessions by their targets: grouping, group, members (semantics: section 6)."""
    skipped, repeated = sessions["skipped"].to_numpy(), sessions["repeated"].to_numpy()
    yield "target", "heard", ~skipped
    yield "target", "skipped", skipped
    yield "target's track", "new in the session", ~repeated
    yield "target's track", "a repeat", repeated
    contexts = sessions["context"].astype(str)
    by_count = contexts.value_counts().index
    for name in by_count[:MOST_CONTEXTS]:
        yield "context type", name or "(none)", (contexts == name).to_numpy()
    if len(by_count) > MOST_CONTEXTS:
        yield "context type", "(all others)", contexts.isin(by_count[MOST_CONTEXTS:]).to_numpy()
    for i, name in enumerate(THIRDS):
        yield "popularity", name, (sessions["popularity"] == i).to_numpy()
    length = sessions["length"].to_numpy()
    edges = np.linspace(length.min(), length.max() + 1, 4).round().astype(int)
    for low, after in itertools.pairwise(edges.tolist()):
        if low < after:
            name = f"{low} to {after - 1} tracks" if after - 1 > low else f"{low} tracks"
            yield "session length", name, (length >= low) & (length < after)
    for column in [name for name in sessions.columns if name.startswith(FEATURE)][:MOST_FEATURES]:
        third = sessions[column].to_numpy()
        for i, name in enumerate(FEATURE_THIRDS):
            yield f"track's {column.removeprefix(FEATURE)}", f"{name} third", third == i
