"""Tables of `study.analysis` -> figures. Draws, never computes what a figure says.

Figures are made without pyplot, so that nothing global changes and no display is needed.
"""

from study.plots._confirmed import forest, groups, learning_bands
from study.plots._search import cost, importance, learning_curves, parallel_coordinates, slices, table1
from study.plots._style import metric_label

__all__ = [
    "cost",
    "forest",
    "groups",
    "importance",
    "learning_bands",
    "learning_curves",
    "metric_label",
    "parallel_coordinates",
    "slices",
    "table1",
]
