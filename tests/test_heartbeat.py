"""Beats while a trial trains, and the two reasons to end a worker from outside its main thread."""

import threading

import optuna
import pytest
import sqlalchemy.exc

from study.heartbeat import beating
from study.queue import finish


class Storage:
    """Counts beats; a trial that is not running any more, or a database that does not answer, as told."""

    def __init__(self, study, error=None):
        self.study, self.error, self.beats = study, error, 0
        self.third = threading.Event()

    def record_heartbeat(self, trial_id):
        self.beats += 1
        if self.beats >= 3:
            self.third.set()
        if self.error and self.beats > 1:
            raise self.error

    def get_trial(self, trial_id):
        return self.study._storage.get_trial(trial_id)


@pytest.fixture
def study():
    return optuna.create_study()


def settings(**changes):
    return {"seconds": 0.01, "limit_seconds": 0.0, "on_limit": lambda error: None} | changes


def test_a_trial_has_beaten_before_it_is_worked_on_and_goes_on_beating(study):
    """And stops with it."""
    storage = Storage(study)
    with beating(storage, study.ask(), **settings(seconds=60)):
        assert storage.beats == 1
    with beating(storage, study.ask(), **settings()):
        assert storage.third.wait(10)
    assert not [t for t in threading.enumerate() if t.name.startswith("heartbeat")]


def test_an_outage_ends_nothing(study):
    """Training goes on while the database is away."""
    storage, ended = Storage(study, sqlalchemy.exc.OperationalError("select", {}, Exception("gone"))), []
    with beating(storage, study.ask(), **settings(end=ended.append)):
        assert storage.third.wait(10)
    assert ended == []


def test_a_worker_whose_trial_was_given_away_is_ended(study):
    """Two must not train one cell."""
    ended, event = [], threading.Event()
    trial = study.ask()

    def end(why):
        ended.append(why)
        event.set()

    with beating(Storage(study), trial, **settings(end=end)):
        trial.set_user_attr("abandoned", True)
        finish(study, trial._trial_id, optuna.trial.TrialState.FAIL)
        assert event.wait(10)
    assert ended == ["trial 0 was taken for dead and given to another worker"]


@pytest.mark.parametrize("state", ["COMPLETE", "FAIL", "PRUNED"])
def test_a_worker_that_has_ended_its_trial_itself_may_go_on_with_what_follows(study, state):
    """It tells the tracker, and queues the cell again, after that."""
    ended, trial = [], study.ask()
    storage = Storage(study)
    with beating(storage, trial, **settings(end=ended.append)):
        finish(study, trial._trial_id, optuna.trial.TrialState[state], 0.4 if state == "COMPLETE" else None)
        storage.beats = 0
        storage.third.clear()
        assert storage.third.wait(10)
    assert ended == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_cannot_give_its_trial_up_is_ended_all_the_same(study):
    """Its silence tells the others."""
    ended, event = [], threading.Event()

    def broken(error):
        raise OSError("disk full")

    def end(why):
        ended.append(why)
        event.set()

    with beating(Storage(study), study.ask(), **settings(limit_seconds=0.05, on_limit=broken, end=end)):
        assert event.wait(10)
    assert len(ended) == 1


def test_a_worker_that_takes_too_long_gives_the_trial_up_and_is_ended(study):
    """In this order, from the thread: the main one may hang for ever."""
    said, event = [], threading.Event()

    def end(why):
        said.append(("end", why))
        event.set()

    with beating(
        Storage(study), study.ask(), **settings(limit_seconds=0.05, on_limit=lambda e: said.append(e), end=end)
    ):
        assert event.wait(10)
    error = "took longer than the 0.05 s that an attempt may take (max_seconds)"
    assert said == [error, ("end", f"trial 0 {error}")]
