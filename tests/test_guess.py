"""What `skiprec columns` makes of a log's first rows."""

import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import run
from test_columns import MADE, PLAIN, made_up, write
from test_logs import HEADER, log_session, write_log

from skiprec.columns import ColumnMap, load_map, map_from
from skiprec.errors import DatasetError
from skiprec.guess import guess
from skiprec.prepare import PrepareConfig, prepare_logs
from skiprec.reading import MSSD, Reading


def guessed(path):
    """The map that a guess holds."""
    return map_from(tomllib.loads(guess(path)), "guess")


@pytest.mark.parametrize("name", MADE)
def test_a_log_of_a_known_form_is_recognised(tmp_path, name):
    """Also the one without a header: by its number of columns, and its times."""
    path = made_up(tmp_path, name)
    assert f"--columns {name} would do" in guess(path)
    assert guessed(path) == load_map(name)


@pytest.mark.parametrize("header", [HEADER, HEADER.replace("session_id", "./some/log.csv")])
def test_mssd_is_recognised_by_its_columns(tmp_path, header):
    path = write_log(tmp_path / "log.csv.gz", log_session("a", list("wxyz")), header)
    assert "--columns mssd would do" in guess(path)
    assert ("the header's first field is a path" in guess(path)) == (header != HEADER)
    assert guessed(path) == MSSD


def test_six_columns_without_times_are_not_lastfm_1k(tmp_path):
    (tmp_path / "log.tsv").write_text("user_id\tsong\ta\tb\tc\td\nu\ts\t1\t2\t3\t4\n")
    assert guessed(tmp_path / "log.tsv") == ColumnMap(format="tsv", user="user_id", item=("song",), order_by="rows")


def test_a_guess_can_be_used_as_it_is(tmp_path):
    """Of a log with a session, a position, a day and a skip; of one with users, times and events."""
    one = write(
        tmp_path / "one.csv",
        [
            {"session": s, "pos": p, "song": f"t{p}", "skipped": p % 2, "date": "2018-07-15"}
            for s in "ab"
            for p in range(1, 7)
        ],
        PLAIN,
    )
    two = write(
        tmp_path / "two.jsonl",
        [
            {"user": u, "ts": 1_500_000_000 + 60 * n, "track": f"t{n}", "action": "skip" if n else "like"}
            for u in "ab"
            for n in range(6)
        ],
        ColumnMap(format="jsonl", session="s", item=("i",), order="p"),
    )
    for path, n_skipped in ((one, 6), (two, 10)):
        (tmp_path / "my.toml").write_text(guess(path))
        reading = Reading(columns=load_map(str(tmp_path / "my.toml")))
        config = PrepareConfig(min_length=4, max_length=6)
        made = prepare_logs([path], tmp_path / path.stem, config=config, reading=reading, progress=False)
        assert made.counts["sessions"] == 2
        assert made.counts["skipped"] == n_skipped
    assert guessed(one).date == "date"
    assert guessed(two).gap_minutes == 30


def test_a_position_that_is_no_whole_number_is_not_taken(tmp_path):
    rows = [{"session_id": "a", "position": p, "track_id": "t", "timestamp": 1_500_000_000} for p in ("1", "1.5")]
    path = write(tmp_path / "log.csv", rows, PLAIN)
    assert "# order: not position, which holds more than whole numbers\n" in guess(path)
    assert (guessed(path).order, guessed(path).order_by) == ("timestamp", "time")


def test_names_and_values_cannot_break_the_text(tmp_path):
    """A column's name may hold a line end; one that holds lists is left alone."""
    table = {"a\nsession = 'x'": [1], "session_id": ["\n[skip]"], "track_id": ['"""'], "step": [1], "list": [[1]]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    assert guessed(tmp_path / "log.parquet") == ColumnMap(
        format="parquet", session="session_id", item=("track_id",), order="step"
    )


def test_a_log_without_an_item_cannot_be_guessed(tmp_path):
    with pytest.raises(DatasetError, match=r"log\.csv: no column looks like the item; found a\. Write a map"):
        guess(write(tmp_path / "log.csv", [{"a": 1}], PLAIN))


def test_a_guess_is_printed_or_written_and_never_over_a_file(tmp_path):
    """By the command."""
    made_up(tmp_path, "recbole")
    printed = run(tmp_path, "skiprec", "columns", "log.inter")
    assert printed.stdout == guess(tmp_path / "log.inter")
    written = run(tmp_path, "skiprec", "columns", "log.inter", "--out", "my.toml")
    assert written.stdout == (
        "wrote my.toml\nnext: read and mend it, then skiprec prepare log.inter --columns my.toml --out DIR\n"
    )
    assert (tmp_path / "my.toml").read_text() == printed.stdout
    again = run(tmp_path, "skiprec", "columns", "log.inter", "--out", "my.toml")
    assert (again.returncode, again.stderr[:11]) == (1, "OutputError")
