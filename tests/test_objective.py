"""What an attempt finds of earlier ones at its cell."""

from pathlib import Path

from skiprec.run import RESUME
from study.objective import take_up


def attempted(cell: Path, number: int, epochs: int | None) -> Path:
    """The folder that an attempt left, with a resume point after so many epochs."""
    folder = cell / str(number)
    folder.mkdir(parents=True)
    if epochs is not None:
        (folder / RESUME).write_text(str(epochs))
    return folder


def test_the_latest_attempt_with_a_resume_point_is_taken_up_and_the_others_go(tmp_path):
    """The one after it was killed before its first epoch; numbers are not in the order of letters."""
    for number, epochs in ((8, 2), (9, 3), (10, None)):
        attempted(tmp_path, number, epochs)
    take_up(tmp_path / "11")
    assert [path.name for path in tmp_path.iterdir()] == ["11"]
    assert (tmp_path / "11" / RESUME).read_text() == "3"


def test_a_later_attempts_folder_is_left_alone(tmp_path):
    """Whoever wakes after it was taken for dead must not take it from its successor."""
    attempted(tmp_path, 12, 5)
    take_up(tmp_path / "11")
    assert [path.name for path in tmp_path.iterdir()] == ["12"]


def test_what_a_kill_left_half_made_hinders_nobody(tmp_path):
    """A folder that was being filled beside its place has no number."""
    (tmp_path / ".9.4711.partial").mkdir()
    attempted(tmp_path, 9, 4)
    take_up(tmp_path / "11")
    assert (tmp_path / "11" / RESUME).read_text() == "4"


def test_a_first_attempt_finds_nothing(tmp_path):
    """Not even the cell's folder."""
    take_up(tmp_path / "cell" / "0")
    assert list(tmp_path.iterdir()) == []
