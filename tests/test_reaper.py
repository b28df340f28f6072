"""Dead workers' trials: which are found, what becomes of their cells, and that two who look at once do it once."""

import itertools
import os
import threading
import time
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState

from study.locks import claim_lock, make_schema
from study.queue import Cell, Queue, attempts, enqueue, finish
from study.reaper import dead, is_gone, place_of_processes, reap, worker_name
from study.storage import Places, open_storage

GRACE = 60.0
NOW = datetime.now()
GONE = f"{place_of_processes()}:999999999"


@pytest.fixture
def where(tmp_path) -> Places:
    """A place with a database and room for locks."""
    where = Places(tmp_path, f"sqlite:///{tmp_path / 'optuna.db'}", "")
    where.resume("s").mkdir(parents=True)
    make_schema(where)
    return where


def made(where: Places, cells: int = 1, max_attempts: int = 2) -> optuna.Study:
    """A study with that many cells waiting."""
    study = optuna.create_study(study_name="s", storage=open_storage(where), direction="maximize")
    planned = [Cell(f"cell {i}", "S-", i, {}) for i in range(cells)]
    study.set_user_attr("cells", {c.id: {"arm": c.arm, "seed": c.seed, "params": c.params} for c in planned})
    study.set_user_attr("recipe", {"max_attempts": max_attempts})
    study.set_user_attr("grace_seconds", GRACE)
    for cell in planned:
        enqueue(study, cell, attempt=1)
    return study


def claimed(where: Places, study: optuna.Study, worker: str | None, epochs: int = 0) -> optuna.Trial | None:
    """The next trial, at work; None where none waits."""
    trial = Queue(study, claim_lock(where, "s")).claim()
    if trial is None:
        return None
    if worker:
        trial.set_user_attr("worker", worker)
    for epoch in range(1, epochs + 1):
        trial.report(0.1, epoch)
    return trial


def reaped(where: Places, study: optuna.Study, now: datetime = NOW) -> list[int]:
    """The numbers of the trials that a look ends."""
    return [t.number for t in reap(study, open_storage(where, GRACE), claim_lock(where, "s"), now=now)]


def test_a_process_that_ended_is_gone_and_others_are_not_known_to_be():
    """This one lives; of another machine's nothing is known."""
    assert not is_gone(worker_name())
    assert worker_name() == f"{place_of_processes()}:{os.getpid()}"
    assert is_gone(GONE)
    assert not is_gone("elsewhere:1:999999999")


def test_what_counts_as_dead(where):
    """Its process is gone; its last beat is old; it has never beaten since long ago. Not: alive, or just claimed."""
    study = made(where, cells=5)
    for worker in (GONE, worker_name(), "elsewhere:1:2", None):
        claimed(where, study, worker)
    trials = study.get_trials()
    stale = {trials[2]._trial_id}

    def numbers(now, stale=frozenset()):
        return [t.number for t in dead(trials, stale, now=now, grace_seconds=GRACE)]

    assert numbers(NOW) == [0]
    assert numbers(NOW, stale) == [0, 2]
    assert numbers(datetime.now() + timedelta(seconds=GRACE + 1)) == [0, 3]


def test_a_beat_that_is_too_old_is_found_by_the_databases_clock(where):
    """With a grace of nothing and a second between; one that beats again is alive."""
    study = made(where, cells=2)
    silent, alive = (claimed(where, study, "elsewhere:1:2") for _ in range(2))
    storage = open_storage(where, 1)
    for trial in (silent, alive):
        storage.record_heartbeat(trial._trial_id)
    time.sleep(2.5)  # its clock counts whole seconds
    storage.record_heartbeat(alive._trial_id)
    assert [t.number for t in reap(study, storage, claim_lock(where, "s"), now=NOW)] == [silent.number]


def test_the_cell_of_a_dead_worker_waits_for_another(where):
    """Once, with its next attempt; that is no failure of the cell."""
    study = made(where)
    claimed(where, study, GONE)
    assert reaped(where, study) == [0]
    assert reaped(where, study) == []
    (tried,) = attempts(study.get_trials()).values()
    assert [t.state for t in tried] == [TrialState.FAIL, TrialState.WAITING]
    assert [t.user_attrs["attempt"] for t in tried] == [1, 2]
    assert tried[0].user_attrs["interrupted"]
    assert tried[0].user_attrs["abandoned"]


@pytest.mark.parametrize(("epochs", "most"), [(0, 5), (1, None)])
def test_a_cell_that_ends_its_workers_before_any_epoch_is_set_aside(where, epochs, most):
    """Three deaths are forgiven, two more are failures; after an epoch the machine is to blame, not the cell."""
    study = made(where)
    for n in itertools.count(1):
        trial = claimed(where, study, GONE)
        if trial is None or n > 9:
            break
        trial.set_user_attr("resumed_from", (n - 1) * epochs)
        for epoch in range(1, n * epochs + 1):
            trial.report(0.1, epoch)
        reaped(where, study)
    assert n == (most + 1 if most else 10)


def test_a_death_after_an_epoch_is_none_of_the_cells_failures_however_many_came_before_one(where):
    """Three before any epoch are forgiven; a fourth would be a failure, had it not moved on."""
    study = made(where, max_attempts=1)
    for epochs in (0, 0, 0, 1):
        claimed(where, study, GONE, epochs)
        reaped(where, study)
    assert study.get_trials()[3].user_attrs["interrupted"]
    claimed(where, study, GONE)
    reaped(where, study)
    assert "interrupted" not in study.get_trials()[4].user_attrs
    assert claimed(where, study, GONE) is None


def test_many_who_look_at_once_queue_a_cell_once(where):
    """Eight threads, each with connections of its own."""
    study = made(where, cells=3)
    for _ in range(3):
        claimed(where, study, GONE)
    found = []

    def look():
        found.extend(reaped(where, optuna.load_study(study_name="s", storage=open_storage(where))))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2]
    assert [t.state for t in study.get_trials()].count(TrialState.WAITING) == 3


def test_who_was_taken_for_dead_cannot_end_the_trial_any_more(where):
    """Its result comes too late: the cell is another one's."""
    study = made(where)
    trial = claimed(where, study, GONE)
    reaped(where, study)
    assert not finish(study, trial._trial_id, TrialState.COMPLETE, 0.4)
    assert study.get_trials()[0].value is None


def test_a_cell_that_was_queued_twice_is_claimed_once(where):
    """As a connection that breaks in the middle leaves it."""
    study = made(where)
    enqueue(study, Cell("cell 0", "S-", 0, {}), attempt=1)
    assert claimed(where, study, worker_name()) is not None
    assert claimed(where, study, worker_name()) is None
    assert [t.state for t in study.get_trials()] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_cell_whose_worker_died_before_it_queued_it_again_is_queued_by_whoever_looks(where):
    """Nothing runs, nothing waits, and yet it is not done."""
    study = made(where)
    trial = claimed(where, study, worker_name())
    trial.set_user_attr("interrupted", True)
    finish(study, trial._trial_id, TrialState.FAIL)
    assert claimed(where, study, worker_name()) is None
    assert reaped(where, study) == []
    assert claimed(where, study, worker_name()) is not None
