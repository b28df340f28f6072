"""A report's numbers for programs: summary.json and the tables as CSV."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from skiprec.evaluation import HIT_RATE_AT
from study.analysis import Analysis, Confirmed, DoneCell, PaperTable, Row, TestedClaim, margin
from study.claims import MEASURES
from study.statistics import Effect


def summary(found: Analysis) -> dict[str, Any]:
    """Everything that the report says in numbers."""
    attrs, best = found.attrs, found.best
    return {
        "study": found.name,
        "question": attrs["recipe"].get("asks", ""),
        "answer": found.answer and dataclasses.asdict(found.answer),
        "confirmed": confirmed_summary(found.confirmed) if found.confirmed else None,
        "metric": found.metric,
        "split": "val",
        "finished": found.counts.is_finished,
        "created": attrs["created"],
        "seconds_taken": found.seconds_taken,
        "first_estimate": attrs.get("first_estimate"),
        "recipe": attrs["recipe"]["name"],
        "equal_chances": not attrs["recipe"].get("unequal", False),
        "git_commit": attrs["git_commit"],
        "versions": attrs["versions"],
        "dataset": {
            "path": attrs["dataset"],
            "digest": attrs["dataset_digest"],
            "counts": attrs["dataset_counts"],
            "description": attrs.get("description"),
            "dropped": attrs["dropped"],
        },
        "cells": cell_counts(found),
        "attempts": {
            "failed": found.counts.failed_attempts,
            "interrupted": found.counts.interrupted_attempts,
            "cells_recovered": found.counts.recovered,
        },
        "best": cell_summary(best) | {"margin": best.margin, "config": best.config, "metrics": best.metrics},
        "verdict": {
            "answer": found.verdict.answer,
            "because": found.verdict.because,
            "remarks": list(found.verdict.remarks),
            "comparisons": [
                {
                    "architecture": c.architecture,
                    "of": c.ours.label,
                    "with": c.other.label,
                    "value": c.ours.best.value,
                    "other_value": c.other.best.value,
                    "difference": c.difference,
                    "margin": c.margin,
                    "outcome": c.outcome,
                    "cells": len(c.ours.cells),
                    "other_cells": len(c.other.cells),
                }
                for c in (*found.verdict.comparisons, *found.verdict.controls)
            ],
        },
        "table1": [row_summary(row) for row in found.table1],
        "arms": [
            {
                "arm": arm.arm,
                "planned": arm.planned,
                "complete": len(arm.cells),
                "best": cell_summary(max(arm.cells, key=lambda c: (c.value, -c.trial))) if arm.cells else None,
                "epochs": arm.epochs,
                "train_seconds": arm.train_seconds,
                "eval_seconds": arm.eval_seconds,
            }
            for arm in found.arms
        ],
        "baselines": found.baselines,
        "importance": {
            "shares": found.importance.shares,
            "spread": found.importance.spread,
            "not_said_because": found.importance.reason or None,
        },
        "same_experiment": found.repeats
        and {
            "groups": len(found.repeats.groups),
            "standard_deviation": found.repeats.standard_deviation,
            "largest_range": found.repeats.largest_range,
        },
        "failures": [
            {"cell": f.cell, "arm": f.arm, "status": f.status, "attempts": f.attempts, "error": f.error}
            for f in (*found.failures, *(found.confirmed.failures if found.confirmed else ()))
        ],
    }


def cell_counts(found: Analysis) -> dict[str, int]:
    """Where the search's cells stand."""
    names = ("planned", "complete", "running", "waiting", "pruned", "failed")
    return {name: getattr(found.counts, name) for name in names}


def cell_summary(cell: DoneCell) -> dict[str, Any]:
    """A cell in short."""
    names = ("id", "arm", "trial", "seed", "value", "chosen_epoch", "run_id", "weights")
    return {name: getattr(cell, name) for name in names}


def row_summary(row: Row) -> dict[str, Any]:
    """A row of the search's Table 1."""
    return {
        "architecture": row.architecture,
        "row": row.label,
        "cells": len(row.cells),
        "best": cell_summary(row.best) | {"margin": row.best.margin, "metrics": row.best.metrics} if row.best else None,
        "paper_test_hit_rates": row.paper,
    }


def confirmed_summary(found: Confirmed) -> dict[str, Any]:
    """What the confirming runs show."""
    return {
        "study": found.name,
        "seeds": list(found.seeds),
        "planned_seeds": found.planned_seeds,
        "sessions": found.n_sessions,
        "sessions_with_new_target": found.n_new,
        "worthwhile": found.worthwhile,
        "claims": [claim_summary(tested) for tested in found.claims],
        "untested_claims": [claim.table for claim in found.untested],
        "arms": [
            {
                "arm": arm.name,
                "kind": arm.kind,
                "same_as": arm.same_as,
                "validation": arm.validation,
                "rates": by_measure(arm.rates),
                "relative_gains_over": arm.over,
                "relative_gains": by_k(arm.gains) if arm.gains else None,
                "skip_gap": effect_summary(arm.skip_gap),
                "config": dict(arm.config),
                "runs": [cell_summary(run) for run in arm.runs],
            }
            for arm in found.arms
        ],
        "arms_without_runs": list(found.without_runs),
        "best_arm": found.best.name,
        "baselines": {name: dict(metrics) for name, metrics in found.baselines.items()},
        "table1": paper_summary(found.paper) if found.paper else None,
    }


def claim_summary(tested: TestedClaim) -> dict[str, Any]:
    """A claim, and what became of it."""
    return tested.claim.table | {
        "verdict": tested.verdict.text,
        "effect": effect_summary(tested.effect),
        "adjusted_p": tested.adjusted_p[tested.claim.measure],
        "by_measure": {
            m: {
                "effect": effect_summary(tested.effects[m][tested.claim.k]),
                "adjusted_p": tested.adjusted_p[m],
                "verdict": tested.verdicts[m].text,
            }
            for m in MEASURES
        },
        "effects": by_measure(tested.effects),
        "skip_gap": effect_summary(tested.skip_gap),
        "groups": [
            {
                "grouping": g.grouping,
                "group": g.group,
                "sessions": g.n_sessions,
                "rate": g.ours,
                "other_rate": g.other,
                "effect": effect_summary(g.effect),
            }
            for g in tested.groups
        ],
    }


def paper_summary(table: PaperTable) -> dict[str, Any]:
    """The paper's Table 1 here; rates are those of the arms."""
    return {
        "columns": [
            {
                "architecture": row.architecture,
                "row": row.label,
                "arm": row.arm,
                "paper": row.paper,
                "relative_gains": by_k(row.gains) if row.gains else None,
                "paper_relative_gains": row.paper_gains,
            }
            for row in table.rows
        ],
        "observations": [
            {
                "text": observation.text,
                "verdict": observation.verdict,
                "checks": [
                    {"name": c.name, "outcome": c.outcome, "effect": effect_summary(c.effect), "paper": c.paper}
                    for c in observation.checks
                ],
            }
            for observation in table.observations
        ],
        "misaligned_negatives": table.is_misaligned,
    }


def effect_summary(effect: Effect | None) -> dict[str, Any] | None:
    """An effect as a table."""
    return effect and dataclasses.asdict(effect)


def by_k(effects: Any) -> dict[str, Any]:
    """Effects by K."""
    return {f"hr_at_{k}": effect_summary(effect) for k, effect in effects.items()}


def by_measure(rates: Any) -> dict[str, Any]:
    """Effects by measure and K."""
    return {m: by_k(effects) for m, effects in rates.items()}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Tables as CSV


def tables(found: Confirmed) -> dict[str, pd.DataFrame]:
    """claims.csv, arms.csv and groups.csv: every effect, not only those that the pages show."""
    return {
        "claims.csv": pd.DataFrame(claim_rows(found)),
        "arms.csv": pd.DataFrame(arm_rows(found)),
        "groups.csv": pd.DataFrame(group_rows(found)),
    }


def ends(effect: Effect) -> dict[str, float]:
    """An estimate and its interval."""
    return {"estimate": effect.estimate, "low": effect.low, "high": effect.high}


def claim_rows(found: Confirmed) -> Iterable[dict[str, Any]]:
    """A row for each claim, measure and K; p and verdict where K is that of the claim."""
    for tested in found.claims:
        claim = tested.claim
        for measure in MEASURES:
            for k in HIT_RATE_AT:
                effect = tested.effects[measure][k]
                asked = k == claim.k
                yield {"arm": claim.arm, "than": claim.than, "beyond": " less ".join(claim.beyond or ())} | {
                    "measure": measure,
                    "k": k,
                    "declared": asked and measure == claim.measure,
                    **ends(effect),
                    "p": effect.p,
                    "adjusted_p": tested.adjusted_p[measure] if asked else None,
                    "verdict": tested.verdicts[measure].text if asked else None,
                    "standard_error": effect.standard_error,
                    "degrees_of_freedom": effect.degrees_of_freedom,
                    "seed_sd": effect.seed_sd,
                    "n_seeds": effect.n_seeds,
                    "n_sessions": effect.n_sessions,
                }


def arm_rows(found: Confirmed) -> Iterable[dict[str, Any]]:
    """A row for each arm or baseline, measure and K."""
    for arm in found.arms:
        for measure in MEASURES:
            for k in HIT_RATE_AT:
                effect = arm.rates[measure][k]
                yield {"arm": arm.name, "kind": arm.kind, "measure": measure, "k": k} | {
                    **ends(effect),
                    "interval": "seeds and sessions",
                    "seed_sd": effect.seed_sd,
                    "n_seeds": effect.n_seeds,
                    "n_sessions": effect.n_sessions,
                }
    for name, metrics in found.baselines.items():
        for measure, prefix in MEASURES.items():
            n = found.n_new if measure == "full_new" else found.n_sessions
            for k in HIT_RATE_AT:
                value = metrics.get(f"test/{prefix}hr_at_{k}")
                if value is not None and n:
                    half = margin([value], n)
                    yield {"arm": name, "kind": "baseline", "measure": measure, "k": k} | {
                        "estimate": value,
                        "low": value - half,
                        "high": value + half,
                        "interval": "sessions alone",
                        "n_sessions": n,
                    }


def group_rows(found: Confirmed) -> Iterable[dict[str, Any]]:
    """A row for each claim and group, and one for each claim's difference of skip gaps."""
    for tested in found.claims:
        about = {"arm": tested.claim.arm, "than": tested.claim.than, "metric": tested.claim.metric}
        for g in tested.groups:
            yield (
                about
                | {"grouping": g.grouping, "group": g.group, "sessions": g.n_sessions}
                | {
                    "rate": g.ours,
                    "other_rate": g.other,
                    **ends(g.effect),
                }
            )
        if tested.skip_gap:
            yield (
                about
                | {"grouping": "skip gap", "group": "heard less skipped"}
                | {
                    "sessions": tested.skip_gap.n_sessions,
                    "rate": None,
                    "other_rate": None,
                    **ends(tested.skip_gap),
                }
            )
