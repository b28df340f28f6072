"""Ctrl-C and SIGTERM while databases are in use."""

import signal
import threading
import time

import pytest
import sqlalchemy
from test_watch import Worker, fake  # noqa: F401  the fixture is used by name

from study import watch
from study.patience import patiently
from study.stopping import pause, remembered

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_the_watch_but_not_what_is_being_read(fake, monkeypatch, number):  # noqa: F811
    """An exception there would keep a SQLite database locked. Handlers are then what they were."""
    before = signal.getsignal(number)
    read = fake.study.get_trials
    reads = []

    def told_meanwhile(**options):
        signal.raise_signal(number)
        reads.append(read(**options))
        return reads[-1]

    monkeypatch.setattr(fake.study, "get_trials", told_meanwhile)
    worker = Worker(*[lambda: None] * 100)
    with pytest.raises(KeyboardInterrupt), remembered():
        watch.watch(fake.study, worker, show_progress=False)
    assert len(reads) == 1
    assert len(worker.events) == 99
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_the_wait_for_a_server_that_is_away(number):
    """Long before its patience does."""

    def away():
        raise sqlalchemy.exc.OperationalError("select", {}, Exception("no connection"))

    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident, number))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), remembered():
        patiently(away, patience=60.0)
    timer.join()
    assert 0.4 < time.monotonic() - start < 30


def test_a_pause_is_as_long_as_it_was_asked_for(monkeypatch):
    """Of a clock that stands still but for sleeps; also after signals that another `remembered` was told of."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with remembered():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            pause(10.0)
    assert clock[0] == 0.0
    with remembered():
        pause(0.7)
    assert clock[0] == pytest.approx(0.7)
