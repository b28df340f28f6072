"""Tables of `study.analysis` -> figures. Draws, never computes what a figure says.

Figures are made without pyplot, so that nothing global changes and no display is needed.
"""

from study.plots._curves import learning_curves, seed_curves
from study.plots._data import data
from study.plots._effects import Strip, claims, groups, noise
from study.plots._search import cost, importance, parallel_coordinates, slices, table1
from study.plots._style import NARROW, WIDE, metric_label, plain, spread

__all__ = [
    "NARROW",
    "WIDE",
    "Strip",
    "claims",
    "cost",
    "data",
    "groups",
    "importance",
    "learning_curves",
    "metric_label",
    "noise",
    "parallel_coordinates",
    "plain",
    "seed_curves",
    "slices",
    "spread",
    "table1",
]
