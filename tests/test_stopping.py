"""Ctrl-C and SIGTERM while databases are in use."""

import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
import sqlalchemy
from test_watch import Worker, fake  # noqa: F401  the fixture is used by name

from skiprec.errors import StudyError
from study import watch
from study.locks import claim_lock, make_schema
from study.patience import patiently
from study.queue import Cell, refill
from study.run import check_name
from study.stopping import pause, remembered
from study.storage import open_storage, places

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


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_is_swallowed_is_acted_on_at_the_next_pause(number, capsys):
    """Python does that where it comes while an object is cleaned up after, and shows it; also within another one."""

    class Cleaned:
        def __del__(self):
            signal.raise_signal(number)

    with remembered(raises=True):
        Cleaned()
        with remembered():
            pass
        with pytest.raises(KeyboardInterrupt):
            pause(0)
    assert capsys.readouterr().err == ""


def test_where_no_signal_can_come_nothing_is_listened_to():
    """Python has signals in its main thread alone; a notebook may call from another."""
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def elsewhere():
        with remembered(raises=True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_who_waits_for_the_lock_of_claims_can_be_told_to_stop(tmp_path):
    """A hung worker may hold it."""
    where = places(tmp_path, None, None)
    held, released = threading.Event(), threading.Event()

    def hold():
        with claim_lock(where, "s"):
            held.set()
            released.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with remembered(), pytest.raises(KeyboardInterrupt), claim_lock(where, "s"):
        pass
    released.set()
    thread.join()
    timer.join()
    with claim_lock(where, "s"):
        pass


def test_filling_the_queue_can_be_left_half_way(tmp_path):
    """Between two cells; the rest is queued the next time, and none twice."""
    study = optuna.create_study(storage=open_storage(places(tmp_path, None, None)))
    cells = [Cell(str(i), "a", 1, {}) for i in range(5)]
    with remembered():

        def check():
            if len(study.trials) == 2:
                signal.raise_signal(signal.SIGTERM)
            pause(0)

        with pytest.raises(KeyboardInterrupt):
            refill(study, cells, 1, check)
    assert len(study.trials) == 2
    refill(study, cells, 1)
    assert [t.user_attrs["cell"] for t in study.trials] == list("01234")


MADE_HALF = ["worker", "confirm", "report --out r", "export --out e", "sync", "status"]


@pytest.mark.parametrize("command", MADE_HALF)
def test_a_study_that_was_not_made_whole_is_refused_by_every_command(tmp_path, command):
    """In one line that says what to do: its making was stopped."""
    where = places(tmp_path / "mlruns", None, None)
    make_schema(where)
    optuna.create_study(study_name="half", storage=open_storage(where))
    what, *options = command.split()
    done = subprocess.run(
        [sys.executable, "-m", "study", what, "half", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "study half was not made whole; the command that made it, run again, does that" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "a\\b", "a-confirm"])
def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_written(name):
    with pytest.raises(StudyError, match="the study's name is"):
        check_name(name)
    check_name("a b-confirmed.1")
