"""A thread that says, while a trial trains, that its worker lives; and that ends the worker where it must not go on."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from study.queue import is_abandoned
from study.storage import DATABASE_ERRORS

LOST = 75
"""The exit code of a worker that was ended here: EX_TEMPFAIL, try again."""


def end_process(why: str) -> None:
    """End this process at once, whatever its main thread is stuck in. What it has on disk is whole at any moment."""
    print(f"worker {os.getpid()}: {why}", file=sys.stderr, flush=True)
    os._exit(LOST)


@contextmanager
def beating(
    storage: RDBStorage,
    trial: optuna.Trial,
    *,
    seconds: float,
    limit_seconds: float,
    on_limit: Callable[[str], None],
    end: Callable[[str], None] = end_process,
) -> Iterator[None]:
    """Beat for a trial while it is trained.

    A trial that somebody else has ended, because its beats did not come through, must not be trained on: another worker
    may be at its cell. One that takes longer than it may is given up: a hung device would keep its worker for ever.

    Args:
        storage: Where beats go.
        trial: Claimed by this process.
        seconds: Between two beats.
        limit_seconds: That an attempt may take; 0 for any.
        on_limit: Called with the error when that is over; to end the trial and queue its cell.
        end: Ends the process, with a reason.
    """
    stop, started = threading.Event(), time.monotonic()
    beat(storage, trial._trial_id)  # here, so that one who has its name on a trial has beaten

    def watch() -> None:
        while not stop.wait(seconds):
            if limit_seconds and time.monotonic() - started > limit_seconds:
                error = f"took longer than the {limit_seconds:g} s that an attempt may take (max_seconds)"
                try:
                    on_limit(error)
                finally:  # whatever became of that: others find the trial by its silence
                    end(f"trial {trial.number} {error}")
                return
            if not beat(storage, trial._trial_id) and not stop.is_set():
                end(f"trial {trial.number} was taken for dead and given to another worker")
                return

    thread = threading.Thread(target=watch, name=f"heartbeat of trial {trial.number}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def beat(storage: RDBStorage, trial_id: int) -> bool:
    """Beat once. Returns whether the trial is still this worker's, as far as can be told: training outlives outages.

    A trial that this worker has ended itself is: it may still be telling the tracker.
    """
    try:
        storage.record_heartbeat(trial_id)
        trial = storage.get_trial(trial_id)
        return not (trial.state == TrialState.FAIL and is_abandoned(trial))
    except DATABASE_ERRORS:
        return True
