"""Where a study stands, as a few lines of text."""

import optuna
from optuna.trial import TrialState

from study.cells import attempts, is_failure
from study.run import stage_of


def describe(study: optuna.Study) -> str:
    """Cells by state, the best so far with its settings, time left, and what failed."""
    stage = stage_of(study)
    trials = study.get_trials(deepcopy=False)
    lines = [
        f"study {study.study_name}: {stage.complete} of {stage.planned} cells complete, {stage.running} running, "
        f"{stage.waiting} waiting, {stage.failed} failed"
    ]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if complete:
        best = max(complete, key=lambda t: t.value)
        settings = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in best.params.items())
        lines.append(f"best so far: val HR@10 {best.value:.4f}, {best.user_attrs['arm']}: {settings}")
    left = stage.planned - stage.complete - stage.failed
    if complete and left:
        # The time that cells took by the clock of their trials, spread over those at work now (one, if none is).
        seconds = sum((t.datetime_complete - t.datetime_start).total_seconds() for t in complete) / len(complete)
        lines.append(f"time left: about {left * seconds / max(1, stage.running) / 60:.0f} min with as many at work")
    for cell, tried in attempts(trials).items():
        failures = [t for t in tried if is_failure(t)]
        if failures and not any(t.state == TrialState.COMPLETE for t in tried):
            last = failures[-1].user_attrs
            lines.append(
                f"failed {len(failures)} times: {last['arm']} {cell[:12]}: {last.get('error', 'its worker died')}"
            )
    return "\n".join(lines)
