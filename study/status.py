"""Where a study stands, as a few lines of text."""

from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import TrialState

from study.estimate import compared, duration, seconds_at_work, seconds_left
from study.queue import attempts, is_failure, planned_cells, progress
from study.spool import waiting


def describe(study: optuna.Study) -> str:
    """Cells by state, the best so far with its settings, time left or taken, and what failed."""
    about, cells, now = study.user_attrs, planned_cells(study), datetime.now()
    trials = study.get_trials(deepcopy=False)
    stage = progress(trials, cells, about["recipe"]["max_attempts"])
    lines = [
        f"study {study.study_name}: {stage.complete} of {stage.planned} cells complete, {stage.running} running, "
        f"{stage.waiting} waiting, {stage.failed} failed" + (f", {stage.pruned} pruned" if stage.pruned else "")
    ]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if complete:
        best = max(complete, key=lambda t: t.value)
        settings = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in best.params.items())
        where = f"{best.user_attrs['arm']}: {settings}" if settings else best.user_attrs["arm"]
        lines.append(f"best so far: val HR@10 {best.value:.4f}, {where}")
    workers = max(about.get("workers", 1), stage.running)
    left = seconds_left(about, cells, trials, workers=workers, now=now)
    if left:
        lines.append(f"time left: about {duration(left)} with {workers} at work")
    if "first_estimate" in about and left is not None:
        total = compared(about["first_estimate"], seconds_at_work(trials, now) + left)
        lines.append(f"{'time in all: about' if left else 'time taken:'} {total}")
    for cell, tried in attempts(trials).items():
        failures = [t for t in tried if is_failure(t)]
        if failures and not any(t.state == TrialState.COMPLETE for t in tried):
            last = failures[-1].user_attrs
            lines.append(
                f"failed {len(failures)} times: {last['arm']} {cell[:12]}: {last.get('error', 'its worker died')}"
            )
    return "\n".join(lines)


def untold(study: Path) -> str:
    """`tracking: 124 records of 6 runs wait for the tracker; study sync sends them`, or nothing.

    Args:
        study: The folder of the study's spools.
    """
    records, runs = waiting(study)
    said = f"tracking: {number(records, 'record')} of {number(runs, 'run')}"
    return f"{said} {'wait' if records > 1 else 'waits'} for the tracker; study sync sends them" if records else ""


def number(n: int, what: str) -> str:
    """`1 record`, `6 runs`."""
    return f"{n} {what}{'' if n == 1 else 's'}"
