"""A study's trials -> what they show: tables, comparisons, and an answer in words. Computes, never draws.

Figures of the search are validation figures of single runs; test is for confirming runs (semantics: section 6).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import pandas as pd

from skiprec.errors import StudyError
from study.analysis._answer import WHY_MEASURES_DIFFER, Answer, answer, p_value
from study.analysis._confirmed import Confirmed, ConfirmedArm, GroupEffect, TestedClaim, confirmed
from study.analysis._table1 import Observation, PaperRow, Table1
from study.analysis._tables import (
    PAPER_TEST,
    RATIO,
    ArmCost,
    Counts,
    DoneCell,
    Failure,
    Importance,
    Repeats,
    Row,
    best_of,
    costs,
    count,
    done_cells,
    failures,
    hit_rates,
    importance,
    margin,
    points,
    rate,
    repeats,
    table1,
    trials_table,
    varying,
)
from study.analysis._verdict import Comparison, Verdict, judge
from study.estimate import seconds_at_work
from study.statistics import Effect

__all__ = [
    "PAPER_TEST",
    "RATIO",
    "WHY_MEASURES_DIFFER",
    "Analysis",
    "Answer",
    "ArmCost",
    "Comparison",
    "Confirmed",
    "ConfirmedArm",
    "Counts",
    "DoneCell",
    "Effect",
    "Failure",
    "GroupEffect",
    "Importance",
    "Observation",
    "PaperRow",
    "Repeats",
    "Row",
    "Table1",
    "TestedClaim",
    "Verdict",
    "analyse",
    "answer",
    "best_of",
    "confirmed",
    "costs",
    "count",
    "done_cells",
    "failures",
    "hit_rates",
    "importance",
    "judge",
    "margin",
    "p_value",
    "points",
    "rate",
    "repeats",
    "table1",
    "trials_table",
    "varying",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All that a report says."""

    name: str
    metric: str
    attrs: dict[str, Any]
    """What the study says of itself: recipe, dataset, versions."""
    counts: Counts
    trials: pd.DataFrame
    cells: tuple[DoneCell, ...]
    best: DoneCell
    varying: tuple[str, ...]
    """Settings that differ between cells, alpha/beta among them where both do."""
    table1: tuple[Row, ...]
    arms: tuple[ArmCost, ...]
    baselines: dict[str, dict[str, float]]
    importance: Importance
    repeats: Repeats | None
    failures: tuple[Failure, ...]
    verdict: Verdict
    seconds_taken: float | None
    """With a cell at work; None while some are to be done."""
    confirmed: Confirmed | None
    """What the confirming runs show; None where there are none yet."""
    answer: Answer | None
    """Likewise, in words."""

    @property
    def baseline_values(self) -> dict[str, float]:
        """Each baseline by the study's metric."""
        return {name: metrics[self.metric] for name, metrics in self.baselines.items()}


def analyse(
    study: optuna.Study,
    confirming: optuna.Study | None = None,
    read_ranks: Callable[[str], pd.DataFrame] | None = None,
) -> Analysis:
    """Everything a report needs, from a study that is finished or under way.

    Args:
        study: The search.
        confirming: Its confirming runs, if they were begun.
        read_ranks: MLflow run id -> the test ranks of a confirming run.

    Raises:
        StudyError: If no trial is complete.
    """
    attrs = study.user_attrs
    trials = study.get_trials(deepcopy=False)
    metric = attrs["recipe"]["metric"]
    cells = done_cells(trials)
    counts = count(trials, attrs)
    if not cells:
        raise StudyError(
            f"study '{study.study_name}': none of its {counts.planned} cells is complete "
            f"({counts.running} running, {counts.waiting} waiting, {counts.failed} failed), so there is nothing to "
            "report; continue it with `study run`, or see `study status` for the errors"
        )
    rows = table1(cells)
    baselines = attrs.get("baselines", {})
    found = confirmed(confirming, read_ranks) if confirming is not None else None
    best = best_of(cells)
    same = repeats(cells)
    return Analysis(
        name=study.study_name,
        metric=metric,
        attrs=attrs,
        counts=counts,
        trials=trials_table(trials),
        cells=cells,
        best=best,
        varying=varying(cells),
        table1=rows,
        arms=costs(cells, attrs),
        baselines=baselines,
        importance=importance(cells, trials),
        repeats=same,
        failures=failures(trials, attrs),
        seconds_taken=seconds_at_work(trials, datetime.now()) if counts.is_finished else None,
        confirmed=found,
        answer=answer(found) if found else None,
        verdict=judge(rows, {name: m[metric] for name, m in baselines.items()}, best, counts, same),
    )
