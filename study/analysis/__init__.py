"""A study's trials -> what they show: tables, comparisons, and an answer in words. Computes, never draws.

A search's figures are validation figures of single runs; test is read by confirming runs alone (semantics: section 6).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import pandas as pd

from skiprec.errors import StudyError
from study.analysis._answer import MEASURE_NAMES, SHORT_NAMES, Answer, answer
from study.analysis._confirmed import Confirmed, ConfirmedArm, Curve, GroupEffect, TestedClaim, confirmed
from study.analysis._importance import Importance, importance
from study.analysis._table1 import Check, Observation, PaperRow, PaperTable
from study.analysis._tables import (
    PAPER_TEST,
    RATIO,
    ArmCost,
    Counts,
    DoneCell,
    Failure,
    Repeats,
    Row,
    best_of,
    costs,
    count,
    done_cells,
    failures,
    hit_rates,
    margin,
    repeats,
    table1,
    trials_table,
    use_of_skips,
    varying,
)
from study.analysis._verdict import Comparison, Verdict, judge
from study.analysis._words import (
    between,
    in_points,
    interval,
    listed,
    one_line,
    p_value,
    percent,
    points,
    rate,
    rate_interval,
    relative,
    shown,
    some,
    with_interval,
)
from study.estimate import seconds_at_work

__all__ = [
    "MEASURE_NAMES",
    "PAPER_TEST",
    "RATIO",
    "SHORT_NAMES",
    "Analysis",
    "Answer",
    "ArmCost",
    "Check",
    "Comparison",
    "Confirmed",
    "ConfirmedArm",
    "Counts",
    "Curve",
    "DoneCell",
    "Failure",
    "GroupEffect",
    "Importance",
    "Observation",
    "PaperRow",
    "PaperTable",
    "Repeats",
    "Row",
    "TestedClaim",
    "Verdict",
    "analyse",
    "answer",
    "best_of",
    "between",
    "confirmed",
    "costs",
    "count",
    "done_cells",
    "failures",
    "hit_rates",
    "importance",
    "in_points",
    "interval",
    "judge",
    "listed",
    "margin",
    "one_line",
    "p_value",
    "percent",
    "points",
    "rate",
    "rate_interval",
    "relative",
    "repeats",
    "shown",
    "some",
    "table1",
    "trials_table",
    "use_of_skips",
    "varying",
    "with_interval",
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
    """What validation alone says, of single runs."""
    seconds_taken: float | None
    """With a cell at work; None while some are to be done."""
    confirming: Counts | None
    """Where the confirming runs stand; None where their study was not made."""
    confirmed: Confirmed | None
    """What the confirming runs show; None where none of their seeds is complete."""
    answer: Answer | None
    """The same in words."""

    @property
    def baseline_values(self) -> dict[str, float]:
        """Each baseline by the study's metric."""
        return {name: metrics[self.metric] for name, metrics in self.baselines.items()}

    @property
    def arm_names(self) -> list[str]:
        """Every arm, in the recipe's order."""
        return [arm.arm for arm in self.arms]


def analyse(
    study: optuna.Study,
    confirming: optuna.Study | None = None,
    read_ranks: Callable[[DoneCell], pd.DataFrame] | None = None,
) -> Analysis:
    """Everything a report needs, from a study that is finished or under way.

    Args:
        study: The search.
        confirming: Its confirming runs, if there are any.
        read_ranks: A confirming run -> its test ranks.

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
    best = best_of(cells)
    same = repeats(cells)
    # A confirming study lists its cells last: one without them was stopped while it was made.
    is_made = confirming is not None and "cells" in confirming.user_attrs
    found = confirmed(confirming, read_ranks) if is_made else None
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
        arms=costs(cells, trials, attrs),
        baselines=baselines,
        importance=importance(cells, trials),
        repeats=same,
        failures=failures(trials, attrs),
        seconds_taken=seconds_at_work(trials, datetime.now()) if counts.is_finished else None,
        verdict=judge(
            rows,
            {name: m[metric] for name, m in baselines.items()},
            best,
            counts,
            same,
            unequal=attrs["recipe"].get("unequal", False),
        ),
        confirming=count(confirming.get_trials(deepcopy=False), confirming.user_attrs) if is_made else None,
        confirmed=found,
        answer=answer(found) if found else None,
    )
