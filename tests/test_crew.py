"""Local workers: who is replaced, who is not, and when replacing ends."""

import itertools
import subprocess
import time

import pytest

from skiprec.errors import StudyError
from study.crew import MOST_DEATHS_IN_VAIN, Crew
from study.heartbeat import LOST
from study.storage import Places


class Scripted(Crew):
    """Runs shell lines in place of workers, in turn; the last one again and again."""

    def __init__(self, tmp_path, lines, on_death=lambda process: False, size=1):
        self.lines = list(lines)
        super().__init__(Places(tmp_path, "", ""), "mine", "cpu", size, on_death)

    def _start(self):
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        return subprocess.Popen(["sh", "-c", line], start_new_session=True)


def until_over(crew):
    """Look until everyone has come to an end."""
    until = time.monotonic() + 30
    while not crew.is_over():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["kill -9 $$", f"exit {LOST}"])
def test_a_worker_that_was_killed_or_ended_itself_is_replaced(tmp_path, end, capfd):
    """After what it left open was seen to."""
    deaths = []
    crew = Scripted(tmp_path, [end, "exit 0"], on_death=deaths.append)
    first = crew.processes[0].pid
    until_over(crew)
    assert deaths == [first]
    assert crew.failed == 0
    assert "another takes its place" in capfd.readouterr().err


def test_one_that_ended_with_an_error_is_not_replaced(tmp_path):
    """It has said why; the others go on."""
    crew = Scripted(tmp_path, ["exit 1", "exit 0"], size=2)
    until_over(crew)
    assert crew.failed == 1


def test_workers_that_die_before_they_begin_anything_are_not_replaced_for_ever(tmp_path):
    """Unless something was begun in between."""
    crew = Scripted(tmp_path, ["kill -9 $$"])
    with pytest.raises(StudyError, match=rf"{MOST_DEATHS_IN_VAIN + 1} workers in a row were ended by signal 9"):
        until_over(crew)
    begun = itertools.cycle([False, False, True])
    crew = Scripted(tmp_path, ["kill -9 $$"] * 10 + ["exit 0"], on_death=lambda process: next(begun))
    until_over(crew)
    # However many die at once, each at its cell.
    crew = Scripted(tmp_path, ["kill -9 $$"] * 8 + ["exit 0"], on_death=lambda process: True, size=8)
    until_over(crew)


def test_all_are_told_to_stop_and_seen_to_end(tmp_path):
    """SIGTERM; each takes the time that it needs."""
    done = tmp_path / "done"
    crew = Scripted(tmp_path, [f"trap 'sleep 0.3; echo x >>{done}; exit 0' TERM; while :; do sleep 0.05; done"], size=2)
    time.sleep(0.5)
    crew.stop()
    assert done.read_text() == "x\nx\n"
