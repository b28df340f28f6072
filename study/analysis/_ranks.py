"""The test ranks of an arm's confirming runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

# K seeds, S sessions.


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of every target by every run of an arm."""

    by_measure: Mapping[str, np.ndarray]
    """(K, S) each; NaN where a measure does not ask about a session."""
    sessions: pd.DataFrame
    """The sessions' groups."""

    def hits(self, measure: str = "sampled", k: int = 10) -> Bool[np.ndarray, "K S"]:
        """Whether each target is among the first k."""
        return self.by_measure[measure] <= k

    def among(self, measure: str = "sampled") -> Bool[np.ndarray, " S"]:
        """The sessions that a measure asks about."""
        return ~np.isnan(self.by_measure[measure][0])

    def rate(self, k: int, measure: str = "sampled") -> float:
        """HR@k over all runs."""
        return float(self.hits(measure, k)[:, self.among(measure)].mean())
