"""Waiting for a server: which errors go away by themselves, for how long, and what is tried again."""

import pytest
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

from study.patience import is_outage, patiently


def outage():
    """As Optuna raises it."""
    error = StorageInternalError("commit")
    error.__cause__ = sqlalchemy.exc.OperationalError("select", {}, Exception("connection refused"))
    return error


class Flaky:
    """Fails with the errors given, one a call, then returns."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


class Clock:
    """Time passes in sleep alone."""

    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_outages_are_told_from_errors_that_stay():
    """A refused connection, and a wrong statement."""
    assert is_outage(outage())
    assert is_outage(sqlalchemy.exc.InterfaceError("select", {}, Exception("closed")))
    assert is_outage(sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."))
    assert not is_outage(sqlalchemy.exc.ProgrammingError("select", {}, Exception("no such table")))
    assert not is_outage(StorageInternalError("of its own"))


def test_a_call_is_made_until_the_server_answers():
    """Pauses grow, and are never long."""
    clock, call = Clock(), Flaky(*[outage() for _ in range(20)])
    assert patiently(call, clock=clock, sleep=clock.sleep) == "done"
    assert call.calls == 21
    assert 60 < clock.now < 90


def test_patience_has_an_end():
    """After ten minutes it is an error."""
    clock, call = Clock(), Flaky(*[outage() for _ in range(1000)])
    with pytest.raises(StorageInternalError):
        patiently(call, clock=clock, sleep=clock.sleep)
    assert 600 < clock.now < 610


def test_other_errors_are_raised_at_once():
    """They would come again."""
    call = Flaky(sqlalchemy.exc.ProgrammingError("select", {}, Exception("no such table")))
    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        patiently(call)
    assert call.calls == 1


def test_after_an_outage_something_else_may_be_tried():
    """What asks first whether the effect was kept."""
    clock, call, again = Clock(), Flaky(outage()), Flaky()
    assert patiently(call, again=again, clock=clock, sleep=clock.sleep) == "done"
    assert (call.calls, again.calls) == (1, 1)
