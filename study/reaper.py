"""Finds trials whose worker is gone, ends them, and puts their cells into the queue again. Any process may do it."""

import os
import socket
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from study.locks import claim_lock
from study.queue import finish, is_abandoned, planned_cells, refill
from study.storage import Places, open_storage

MAX_ABANDONED = 3
"""How often a worker may die at a cell before its first epoch's end, until that counts as a failure of the cell."""


def worker_name(process: int | None = None) -> str:
    """A process of this place, this one by default, as no other is called: machine, place of its numbers, number."""
    return f"{place_of_processes()}:{os.getpid() if process is None else process}"


def place_of_processes() -> str:
    """Where a process number means something: containers of one machine have numbers of their own."""
    try:
        # Machines made from one image share their name, and the first namespace has one number everywhere.
        boot, namespace = Path("/proc/sys/kernel/random/boot_id").read_text()[:8], os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot, namespace = "", 0
    return f"{socket.gethostname()}:{boot}:{namespace}"


def is_gone(worker: str) -> bool:
    """Whether a worker is known to have ended: one of this place whose process is no more."""
    place, _, process = worker.rpartition(":")
    if place != place_of_processes():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def dead(
    trials: Collection[FrozenTrial], stale: Collection[int], *, now: datetime, grace_seconds: float
) -> list[FrozenTrial]:
    """The running trials that nobody is at work on.

    Args:
        trials: Of a study.
        stale: Ids of those whose last beat is older than the grace, by the database's clock.
        now: Local time, as Optuna's times are.
        grace_seconds: How long a worker may be silent.
    """
    found = []
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            worker = trial.user_attrs.get("worker")
            # A worker beats before it puts its name on a trial: one without has never beaten, and will never be stale.
            silent = worker is None and now - trial.datetime_start > timedelta(seconds=grace_seconds)
            if silent or trial._trial_id in stale or (worker is not None and is_gone(worker)):
                found.append(trial)
    return found


def reap(
    study: optuna.Study, storage: RDBStorage, exclusively: AbstractContextManager[object], *, now: datetime
) -> list[FrozenTrial]:
    """End the trials whose worker is gone, and queue their cells again.

    Args:
        study: Whose.
        storage: Of the study, with heartbeats.
        exclusively: Entered for it; see `locks.claim_lock`.
        now: Local time.

    Returns:
        Those that were ended.
    """
    about, ended = study.user_attrs, []
    with exclusively:
        trials = study.get_trials(deepcopy=False)
        stale = storage._get_stale_trial_ids(study._study_id)
        for trial in dead(trials, stale, now=now, grace_seconds=about["grace_seconds"]):
            if end(study, trial, trials):
                ended.append(trial)
        # Not only theirs: who died between ending a trial and queueing its cell left that to others.
        refill(study, planned_cells(study), about["recipe"]["max_attempts"])
    return ended


def end_dead(where: Places, study: optuna.Study) -> int:
    """End the trials of workers that are gone, and queue their cells again. Returns how many trials."""
    storage = open_storage(where, study.user_attrs["grace_seconds"])
    return len(reap(study, storage, claim_lock(where, study.study_name), now=datetime.now()))


def end(study: optuna.Study, trial: FrozenTrial, trials: Collection[FrozenTrial]) -> bool:
    """Have a dead trial fail. Returns whether it was still to be done."""
    # A worker's end is not its cell's fault, unless cells keep ending their workers (out of memory, say).
    same = [t for t in trials if t.user_attrs.get("cell") == trial.user_attrs.get("cell")]
    moved = trained(trial) > 0
    marks = {"abandoned": True}
    if moved or sum(is_abandoned(t) and not trained(t) for t in same) < MAX_ABANDONED:
        marks["interrupted"] = True
    try:
        for name, value in marks.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
    except UpdateFinishedTrialError:  # it came to its end after all
        return False
    return finish(study, trial._trial_id, TrialState.FAIL)


def trained(trial: FrozenTrial) -> int:
    """Epochs that an attempt came beyond those before it."""
    return len(trial.intermediate_values) - trial.user_attrs.get("resumed_from", 0)
