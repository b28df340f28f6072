"""How much each setting decides whether an S+ cell is among the best, and how sure that is."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from study.analysis._tables import RATIO, DoneCell, use_of_skips, varying

MIN_TRIALS_FOR_IMPORTANCE = 10
TOP_SHARE = 0.1
"""Of the trials: those whose settings PED-ANOVA compares with all. Optuna's default."""
REPLICATES = 100
"""Studies that are drawn from the cells, with replacement, to see how far the shares move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How much each setting decides, as shares of 1; or why that is not said."""

    shares: dict[str, float] | None
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By setting: 2.5 and 97.5% of the shares that the bootstrap over cells gives."""
    reason: str = ""
    n_trials: int


def importance(cells: Iterable[DoneCell], trials: Iterable[FrozenTrial]) -> Importance:
    """PED-ANOVA over the S+ cells: which settings tell the best tenth of them from the rest.

    An arm may fix what another varies (the context, say), so each cell is given its value of every setting that differs
    between S+ cells, whether its own trial proposed it or not.
    """
    cells = [c for c in cells if use_of_skips(c.config)[0] == "S+"]
    names = [name for name in varying(cells) if name != RATIO and all(name in c.settings for c in cells)]

    def not_said(reason: str) -> Importance:
        return Importance(shares=None, reason=reason, n_trials=len(cells))

    if len(cells) < MIN_TRIALS_FOR_IMPORTANCE:
        return not_said(
            f"the study has {len(cells)} complete S+ cells, and at least {MIN_TRIALS_FOR_IMPORTANCE} are needed"
        )
    if not names:
        return not_said("no setting differs between the S+ cells")
    if not has_best([c.value for c in cells]):
        return not_said("the best S+ cells are no better than the worst")
    by_number = {t.number: t for t in trials}
    spaces = {name: space(name, cells, by_number) for name in names}
    points = [
        create_trial(params={n: c.settings[n] for n in names}, distributions=spaces, value=c.value) for c in cells
    ]
    storage = optuna.storages.InMemoryStorage()
    name = optuna.create_study(storage=storage, direction="maximize").study_name
    among = Drawn(name, storage)
    return Importance(shares=shares_of(among, points), spread=spread(among, points, names), n_trials=len(cells))


def has_best(values: Iterable[float]) -> bool:
    """Whether the worst of the best tenth is above the worst of all."""
    values = sorted(values, reverse=True)
    return values[math.ceil(TOP_SHARE * len(values)) - 1] > values[-1]


class Drawn(optuna.Study):
    """A study whose trials are given. To put each into a storage would take longer than everything else."""

    points: Sequence[FrozenTrial] = ()

    def draw(self, points: Sequence[FrozenTrial]) -> None:
        """Take these, complete as they are, each as a trial of its own: PED-ANOVA tells them apart by their ids."""
        self.points = [copy.copy(point) for point in points]
        for i, point in enumerate(self.points):
            point._trial_id = i

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        """All of them."""
        return list(self.points)


def shares_of(study: Drawn, points: Sequence[FrozenTrial]) -> dict[str, float]:
    """PED-ANOVA's shares, of the settings that differ between the points."""
    study.draw(points)
    return optuna.importance.get_param_importances(study)


def spread(study: Drawn, points: Sequence[FrozenTrial], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """How far the shares move where the cells are drawn again, with replacement: the middle 95%."""
    draws = np.random.default_rng(0)
    found = []
    for _ in range(REPLICATES):
        drawn = [points[i] for i in draws.integers(len(points), size=len(points))]
        if has_best(point.value for point in drawn):
            shares = shares_of(study, drawn)
            found.append([shares.get(name, 0.0) for name in names])
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def space(name: str, cells: Iterable[DoneCell], trials: Mapping[int, FrozenTrial]) -> BaseDistribution:
    """What a setting was drawn from: as the trials say where they agree, else the values that occur, or their range."""
    cells = list(cells)
    said = [trials[c.trial].distributions.get(name) for c in cells]
    if said[0] is not None and all(d == said[0] for d in said):
        return said[0]
    values = list(dict.fromkeys(c.settings[name] for c in cells))
    if all(d is None or isinstance(d, CategoricalDistribution) for d in said):
        return CategoricalDistribution(values)
    return FloatDistribution(min(values), max(values), log=all(getattr(d, "log", True) for d in said))
