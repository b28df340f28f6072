"""What is shown while workers work, and the estimate that is kept."""

import sys

import pytest
from fake_study import FakeStudy

from study import watch
from study.queue import Progress
from study.watch import Lines


class Worker:
    """A crew of one: at each look something happens to the study, until nothing is left to happen."""

    at_once = 1

    def __init__(self, *events):
        self.events = list(events)

    def is_over(self):
        """Whether it has come to an end."""
        if not self.events:
            return True
        self.events.pop(0)()
        return False


@pytest.fixture
def fake(monkeypatch):
    """Four planned cells; two done, one after the other, in 40 s each. Looked at without a pause."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(watch, "LOOK_SHARE", float("inf"))
    fake = FakeStudy(planned=4)
    fake.add(0.4, seconds=40.0)
    fake.add(0.41, at=40.0, seconds=40.0)
    return fake


def test_a_line_says_how_many_cells_the_best_and_the_time_left(fake, capsys):
    """Two of 40 s are waiting."""
    watch.watch(fake.study, Worker(), show_progress=True)
    assert capsys.readouterr().err == "2 of 4 cells, best 0.4100, about 80 s left\n"


def test_nothing_is_shown_where_nothing_is_asked_for(fake, capsys):
    """For programs; the estimate is kept all the same."""
    watch.watch(fake.study, Worker(), show_progress=False)
    assert capsys.readouterr().err == ""
    assert "first_estimate" in fake.study.user_attrs


def test_a_terminal_gets_a_bar_with_the_studys_own_estimate(fake, capsys, monkeypatch):
    """tqdm's own would stand after a <."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watch.watch(fake.study, Worker(), show_progress=True)
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert "demo-0123abcd:  50%|" in last
    assert "| 2/4 cells [00:00, best 0.4100, about 80 s left]" in last
    assert "<" not in last


def test_the_estimate_after_two_cells_is_kept_and_later_ones_are_not(fake):
    """40 + 40 s done and as much to go. The third cell takes 400 s, which changes the next estimate alone."""
    watch.watch(fake.study, Worker(lambda: None, lambda: fake.add(0.42, at=80.0, seconds=400.0)), show_progress=False)
    first = fake.study.user_attrs["first_estimate"]
    assert (first["cells"], first["seconds"]) == (2, 160.0)


def test_no_estimate_is_kept_after_one_cell(monkeypatch):
    """It is too early; and when all are done it is too late."""
    fake = FakeStudy(planned=2)
    fake.add(0.4, seconds=40.0)
    watch.watch(fake.study, Worker(), show_progress=False)
    fake.add(0.4, at=40.0, seconds=40.0)
    watch.watch(fake.study, Worker(), show_progress=False)
    assert "first_estimate" not in fake.study.user_attrs


def test_looking_takes_a_small_share_of_the_time(fake, monkeypatch):
    """Each look takes a second by this clock, each poll half of one: looks are 20 seconds apart at least."""
    clock = [0.0]
    looks = []

    def progress(*_):
        looks.append(clock[0])
        clock[0] += 1.0
        return Progress(4, 2, 0, 2, 0)

    monkeypatch.setattr(watch, "LOOK_SHARE", 0.05)
    monkeypatch.setattr(watch, "progress", progress)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watch, "pause", lambda _: clock.__setitem__(0, clock[0] + 0.5))
    watch.watch(fake.study, Worker(*[lambda: None] * 100), show_progress=False)
    assert looks[:3] == [0.0, 21.0, 42.0]
    assert len(looks) == 4  # the last one when the worker has ended


def test_lines_are_some_seconds_apart_but_the_first_and_the_last(capsys, monkeypatch):
    """At 0, 1, 6 and 7 s by this clock; a second time the same says nothing new."""
    times = iter((0.0, 1.0, 6.0, 12.0, 13.0))
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(times))
    lines = Lines()
    for complete in (0, 1, 2, 2, 3):
        lines.show(Progress(3, complete, 1, 0, 0), "")
    assert capsys.readouterr().err.splitlines() == ["0 of 3 cells", "2 of 3 cells", "3 of 3 cells"]
