"""A report's numbers for programs."""

import math
from typing import Any

from study.analysis import Analysis, DoneCell, Row


def summary(found: Analysis) -> dict[str, Any]:
    """The report's numbers for programs."""
    attrs, best = found.attrs, found.best
    return {
        "study": found.name,
        "metric": found.metric,
        "split": "val",
        "finished": found.counts.is_finished,
        "created": attrs["created"],
        "seconds_taken": found.seconds_taken,
        "first_estimate": attrs.get("first_estimate"),
        "recipe": attrs["recipe"]["name"],
        "git_commit": attrs["git_commit"],
        "versions": attrs["versions"],
        "dataset": {
            "path": attrs["dataset"],
            "digest": attrs["dataset_digest"],
            "counts": attrs["dataset_counts"],
            "dropped": attrs["dropped"],
        },
        "cells": {
            name: getattr(found.counts, name)
            for name in ("planned", "complete", "running", "waiting", "pruned", "failed")
        },
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
        "importance": {"shares": found.importance.shares, "not_said_because": found.importance.reason or None},
        "same_experiment": found.repeats
        and {
            "groups": len(found.repeats.groups),
            "standard_deviation": found.repeats.standard_deviation,
            "largest_range": found.repeats.largest_range,
        },
        "failures": [
            {"cell": f.cell, "arm": f.arm, "status": f.status, "attempts": f.attempts, "error": f.error}
            for f in found.failures
        ],
    }


def cell_summary(cell: DoneCell) -> dict[str, Any]:
    """A cell in short."""
    names = ("id", "arm", "trial", "seed", "value", "chosen_epoch", "run_id", "weights")
    return {name: getattr(cell, name) for name in names}


def row_summary(row: Row) -> dict[str, Any]:
    """A row of Table 1."""
    return {
        "architecture": row.architecture,
        "row": row.label,
        "cells": len(row.cells),
        "best": cell_summary(row.best) | {"margin": row.best.margin, "metrics": row.best.metrics} if row.best else None,
        "paper_test_hit_rates": row.paper,
    }


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
