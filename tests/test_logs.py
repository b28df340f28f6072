"""Reading raw logs: what is accepted, and what each kind of bad input is told."""

import datetime
import gzip
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import whole_log

import skiprec.logs
from skiprec.errors import DatasetError
from skiprec.events import NO_FLAG, NOT_NESTED, SKIP_LEVEL
from skiprec.reading import find_logs
from skiprec.schema import LOG_COLUMNS

HEADER = ",".join(LOG_COLUMNS)
FLAGS_OF_LEVEL = {0: (0, 0, 0, 1), 1: (0, 0, 1, 0), 2: (0, 1, 1, 0), 3: (1, 1, 1, 0)}


def log_row(session="s", position=1, length=10, item="t", level=0, date="2018-07-15", context="radio", **other) -> str:
    """One line of a log; `other` sets columns by name."""
    values = dict.fromkeys(LOG_COLUMNS, "0")
    values |= {"session_id": session, "session_position": position, "session_length": length, "track_id_clean": item}
    values |= dict(zip(LOG_COLUMNS[4:8], (str(bool(flag)) for flag in FLAGS_OF_LEVEL[level]), strict=True))
    values |= {"date": date, "context_type": context, "premium": "True"} | other
    return ",".join(str(value) for value in values.values())


def log_session(session: str, items: list[str], levels: list[int] | None = None, **other) -> list[str]:
    """The lines of a whole session."""
    levels = levels or [0] * len(items)
    pairs = enumerate(zip(items, levels, strict=True), 1)
    return [log_row(session, i, len(items), item, level, **other) for i, (item, level) in pairs]


def write_log(path: Path, rows: list[str], header: str = HEADER) -> Path:
    """A log of these lines, packed if the name says so."""
    text = "".join(line + "\n" for line in [header, *rows]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(*files: Path) -> SimpleNamespace:
    return whole_log(files)


def row_by_row(events: SimpleNamespace) -> dict[str, list[int]]:
    """The columns of the table that the events' runs stand for."""
    runs, step = events.runs, [i for n in events.runs.n_rows for i in range(n)]
    names = ("session", "session_length", "date", "context")
    columns = {name: np.repeat(getattr(runs, name), runs.n_rows).tolist() for name in names}
    columns["position"] = [int(p) + i for p, i in zip(np.repeat(runs.position, runs.n_rows), step, strict=True)]
    return columns | {
        "item": events.item.tolist(),
        "skip_level": [int(flags) & SKIP_LEVEL for flags in events.flags],
        "not_nested": [bool(flags & NOT_NESTED) for flags in events.flags],
        "no_flag": [bool(flags & NO_FLAG) for flags in events.flags],
    }


def texts(events: SimpleNamespace) -> tuple[list[str], list[str], list[str]]:
    """What session, item and context number."""
    return events.session_ids.to_pylist(), events.item_ids.to_pylist(), events.context_types


def refusal(*files: Path) -> str:
    """What is said of files that cannot be read."""
    with pytest.raises(DatasetError) as caught:
        read(*files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_row_becomes_numbers_into_sorted_texts(tmp_path):
    rows = [
        log_row("b", 2, 2, "y", 2, date="1970-01-02", context="charts"),
        log_row("b", 1, 2, "x", 3, date="1970-01-01"),
        log_row("a", 1, 1, "y", 1, date="2018-07-15"),
    ]
    events = read(write_log(tmp_path / "log.csv", rows))
    assert texts(events) == (["a", "b"], ["x", "y"], ["charts", "radio"])
    assert row_by_row(events) == {
        "session": [0, 1, 1],
        "position": [1, 1, 2],
        "session_length": [1, 2, 2],
        "item": [1, 0, 1],
        "skip_level": [1, 3, 2],
        "date": [17727, 0, 1],  # 48 years with 12 leap days, and 195 days: 48 * 365 + 12 + 195
        "context": [1, 1, 0],
        "not_nested": [False] * 3,
        "no_flag": [False] * 3,
    }
    assert events.sources == [(tmp_path / "log.csv", 3)]


@pytest.mark.parametrize(
    ("flags", "level", "not_nested", "no_flag"),
    [
        ("0001", 0, False, False),
        ("0000", 0, False, True),
        ("0010", 1, False, False),
        ("0110", 2, False, False),
        ("1110", 3, False, False),
        ("0100", 2, True, False),
        ("1000", 3, True, False),
        ("1010", 3, True, False),
        ("1100", 3, True, False),
    ],
)
def test_the_level_is_that_of_the_strongest_flag_and_odd_flags_are_noted(tmp_path, flags, level, not_nested, no_flag):
    row = log_row(**dict(zip(LOG_COLUMNS[4:8], flags, strict=True)))
    rows = row_by_row(read(write_log(tmp_path / "log.csv", [row])))
    assert (rows["skip_level"], rows["not_nested"], rows["no_flag"]) == ([level], [not_nested], [no_flag])


@pytest.mark.parametrize("spelling", ["True False", "TRUE FALSE", "true false", "1 0"])
def test_flags_may_be_spelled_in_four_ways(tmp_path, spelling):
    true, false = spelling.split()
    row = log_row(skip_1=false, skip_2=true, skip_3=true, not_skipped=false)
    events = read(write_log(tmp_path / "log.csv", [row, log_row(position=2)]))
    assert row_by_row(events)["skip_level"] == [2, 0]


def same(a: SimpleNamespace, b: SimpleNamespace) -> bool:
    """Equal in all but where they came from."""
    return texts(a) == texts(b) and row_by_row(a) == row_by_row(b)


def some_rows(n_sessions: int = 30) -> list[str]:
    return [
        line
        for s in range(n_sessions)
        for line in log_session(
            f"s{s * 7 % n_sessions:02}", [f"t{(s * i) % 17}" for i in range(10)], [0, 1, 2, 3, 0] * 2
        )
    ]


@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 22])
def test_order_files_packing_and_block_size_do_not_matter(tmp_path, monkeypatch, block_bytes):
    rows = some_rows()
    plain = read(write_log(tmp_path / "all.csv", rows))
    random.Random(0).shuffle(rows)
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", block_bytes)
    parts = [write_log(tmp_path / "1.csv.gz", rows[:77]), write_log(tmp_path / "2.csv", rows[77:])]
    assert same(read(*parts), plain)
    assert same(read(*reversed(parts)), plain)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("block_bytes", [500, 1 << 22])
def test_events_are_the_rows_sorted_as_a_slow_reader_sorts_them(tmp_path, monkeypatch, shuffled, block_bytes):
    """Dates and contexts change within sessions, positions are missing, and files end within sessions."""
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", block_bytes)
    draw = random.Random(3)
    rows = []  # as (session, position, length, item, level, days, context)
    for s in draw.sample(range(100), 40):
        first_change, other = draw.randint(1, 20), draw.choice(["date", "context", "position", "nothing"])
        for i in range(1, draw.randint(2, 20)):
            changed = i >= first_change
            rows.append(
                (f"s{s}", i + (changed and other == "position"), 20, f"t{draw.randint(0, 30)}", draw.randint(0, 3),
                 17_700 + (changed and other == "date"), "charts" if changed and other == "context" else "radio")
            )  # fmt: skip
    if shuffled:
        draw.shuffle(rows)
    lines = [
        log_row(s, i, k, t, level, str(np.datetime64(days, "D")), context) for s, i, k, t, level, days, context in rows
    ]
    cut = len(lines) // 3
    events = read(write_log(tmp_path / "1.csv", lines[:cut]), write_log(tmp_path / "2.csv", lines[cut:]))
    columns = row_by_row(events)
    found = zip(
        *(columns[name] for name in ("session", "position", "session_length", "item", "skip_level", "date", "context")),
        strict=True,
    )
    session_ids, item_ids, context_types = texts(events)
    assert [(session_ids[s], i, k, item_ids[t], *mid, context_types[c]) for s, i, k, t, *mid, c in found] == sorted(
        rows
    )
    if not shuffled and block_bytes > 500:
        assert len(events.runs.session) <= 2 * 40 + 1  # each session is one or two; one is cut by the file's end


def test_byte_order_mark_line_ends_and_empty_last_lines_are_tolerated(tmp_path):
    rows = some_rows(2)
    plain = write_log(tmp_path / "plain.csv", rows)
    dos = tmp_path / "dos.csv"
    dos.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    bare = tmp_path / "bare.csv"
    bare.write_bytes(plain.read_bytes()[:-1])
    assert same(read(dos), read(plain))
    assert same(read(bare), read(plain))


def test_columns_may_stand_in_any_order_and_further_ones_are_left_alone(tmp_path):
    rows = some_rows(2)
    turned = [",".join(["", *reversed(row.split(",")), "text"]) for row in rows]
    header = ",".join(["extra", *reversed(LOG_COLUMNS), "another"])
    assert same(read(write_log(tmp_path / "a.csv", turned, header)), read(write_log(tmp_path / "b.csv", rows)))


@pytest.mark.parametrize("position", ["1", "1.", "1.0", "+1", " 1 ", "01"])
def test_a_whole_number_may_be_written_in_several_ways(tmp_path, position):
    events = read(write_log(tmp_path / "log.csv", [log_row(position=position), log_row(position=2)]))
    assert row_by_row(events)["position"] == [1, 2]


@pytest.mark.parametrize("date", ["2018-07-15", "15-07-18", "15-07-2018", "15/07/18", "15/07/2018"])
def test_a_date_may_be_written_in_several_ways(tmp_path, date):
    """The day first where the year is not, as in the excerpts that are passed around."""
    events = read(write_log(tmp_path / "log.csv", [log_row(date=date)]))
    assert events.runs.date.tolist() == [(datetime.date(2018, 7, 15) - datetime.date(1970, 1, 1)).days]


def test_a_path_in_the_place_of_the_first_columns_name_is_taken_for_it(tmp_path):
    """Where all other columns are MSSD's, in order; else it is a column that is not there."""
    path = write_log(tmp_path / "log.csv", [log_row(session="s1")])
    path.write_text(path.read_text().replace("session_id,", "home/logs/log_0.csv,", 1))
    assert read(path).session_ids.to_pylist() == ["s1"]
    path.write_text(path.read_text().replace("premium,", "paid,", 1))
    with pytest.raises(DatasetError, match="row 1: no column session_id"):
        read(path)


def test_a_line_may_be_longer_than_a_block(tmp_path):
    rows = [log_row("a", 1), log_row("a", 2, premium="x" * 5_000_000), log_row("a", 3, item="y" * 2_000_000)]
    events = read(write_log(tmp_path / "log.csv", rows))
    assert row_by_row(events)["position"] == [1, 2, 3]
    assert texts(events)[1] == ["t", "y" * 2_000_000]


def test_an_empty_last_field_that_is_not_read_is_a_field(tmp_path):
    row = log_row(hist_user_behavior_reason_end="")
    assert len(read(write_log(tmp_path / "log.csv", [row])).session_ids) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (log_row(position="x"), "session_position is 'x', expected a whole number"),
        (log_row(position="1.5"), "session_position is '1.5', expected a whole number"),
        (log_row(position=3_000_000_000), "session_position is '3000000000', expected a whole number"),
        (log_row(position="0x1F"), "session_position is '0x1F', expected a whole number"),
        (log_row(position="9" * 30), f"session_position is '{'9' * 30}', expected a whole number"),
        (log_row(length=""), "session_length is missing, expected a whole number"),
        (log_row(session_length="ten"), "session_length is 'ten', expected a whole number"),
        (log_row(skip_2="maybe"), "skip_2 is 'maybe', expected True, False, 1 or 0"),
        (log_row(not_skipped=""), "not_skipped is missing, expected True, False, 1 or 0"),
        (log_row(skip_1="2"), "skip_1 is '2', expected True, False, 1 or 0"),
        (log_row(session=""), "session_id is missing, expected a text"),
        (log_row(item=""), "track_id_clean is missing, expected a text"),
        (log_row(item="NaN"), "track_id_clean is 'NaN', expected a text"),
        (log_row(context=""), "context_type is missing, expected a text"),
        (log_row(date="15-07/18"), "date is '15-07/18', expected a day as YYYY-MM-DD"),
        (log_row(date="31/06/2018"), "date is '31/06/2018', expected a day as YYYY-MM-DD"),
        (log_row(date="2018-02-30"), "date is '2018-02-30', expected a day as YYYY-MM-DD"),
        (log_row(date=""), "date is missing, expected a day as YYYY-MM-DD"),
        (
            log_row(skip_1="True", skip_2="1", skip_3="1"),
            "both skip_1 and not_skipped are true, expected at most one of them",
        ),
        (log_row(skip_2="True", skip_3="1"), "both skip_2 and not_skipped are true, expected at most one of them"),
        (log_row(skip_3="True"), "both skip_3 and not_skipped are true, expected at most one of them"),
        (log_row() + ",1", "22 fields, expected 21 as in the header"),
        (log_row().rpartition(",")[0], "20 fields, expected 21 as in the header"),
        ("", "1 fields, expected 21 as in the header"),
        (log_row(premium="\0"), "holds a NUL byte, expected text"),
        (log_row(item='"t'), None),  # a quote is a character like another
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 22])
def test_a_bad_row_is_named_with_what_was_found_and_expected(tmp_path, monkeypatch, row, message, block_bytes):
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", block_bytes)
    path = write_log(tmp_path / "log.csv", [log_row("a"), row, log_row("z")])
    if message is None:
        assert len(read(path).session_ids) == 3
    else:
        assert refusal(path) == f"{path}, row 3: {message}"


def test_a_long_row_does_not_hide_behind_a_short_one(tmp_path):
    rows = [log_row("a"), log_row("b") + ",1", log_row("c").rpartition(",")[0], log_row("d")]
    path = write_log(tmp_path / "log.csv", rows)
    assert refusal(path) == f"{path}, row 3: 22 fields, expected 21 as in the header"


def test_the_first_of_several_bad_rows_is_named(tmp_path):
    path = write_log(tmp_path / "log.csv", [log_row("a"), log_row("b", position="x"), log_row("c", skip_2="?")])
    assert refusal(path) == f"{path}, row 3: session_position is 'x', expected a whole number"


def test_text_that_is_not_utf_8_is_named_by_its_row(tmp_path):
    path = write_log(tmp_path / "log.csv", [log_row("a"), log_row("b", item="@")])
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe9"))
    assert refusal(path) == f"{path}, row 3: byte 0xe9 is not UTF-8 text, expected a UTF-8 file"


def test_a_header_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER.encode("utf-16"))
    assert refusal(path).startswith(f"{path}, row 1: is not UTF-8 text")


@pytest.mark.parametrize("column", ["session_id", "skip_3", "context_type"])
def test_a_missing_column_is_named_with_what_the_header_starts_with(tmp_path, column):
    path = write_log(tmp_path / "log.csv", [log_row()], HEADER.replace(column, "other.csv"))
    first = "other.csv" if column == "session_id" else "session_id"
    assert refusal(path) == (
        f"{path}, row 1: no column {column}; found '{first}' and 20 more, expected MSSD's column names. "
        "Where others mean these, --columns says so; `skiprec columns LOG` guesses"
    )


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = write_log(tmp_path / "log.csv", [log_row()], HEADER.replace("premium", "date"))
    assert refusal(path) == f"{path}, row 1: column date is there 2 times, expected once"


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if content and path.suffix == ".gz" else content)
    assert refusal(path) == f"{path}: is empty, expected a header and rows"


def test_a_header_alone_is_refused(tmp_path):
    path = write_log(tmp_path / "log.csv", [])
    assert refusal(path) == f"{path}: has a header and no rows, expected at least one row"


@pytest.mark.parametrize("block_bytes", [1000, 1 << 22])
def test_a_cut_gzip_is_named_by_the_row_where_it_ends(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", block_bytes)
    rows = [log_row(f"{random.Random(i).random()}") for i in range(2000)]
    path = write_log(tmp_path / "log.csv.gz", rows)
    path.write_bytes(path.read_bytes()[:-6000])
    message = refusal(path)
    assert message.startswith(f"{path}, row ")
    assert message.endswith(
        ": the gzip data ends here, before its end mark (a cut file), expected a whole file; copy or download it again"
    )
    assert 1000 < int(message.split("row ")[1].split(":")[0]) < 2000


def test_a_gzip_whose_sum_is_wrong_is_refused(tmp_path):
    path = write_log(tmp_path / "log.csv.gz", some_rows(3))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert "the gzip data is damaged here (CRC check failed" in refusal(path)


def test_plain_text_called_gz_is_refused(tmp_path):
    path = write_log(tmp_path / "log.csv", some_rows(1)).rename(tmp_path / "log.csv.gz")
    assert refusal(path) == f"{path}: does not start as gzip data does, expected it of a .gz file"


def test_a_file_that_is_gone_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    assert refusal(path) == f"{path}: cannot be read (No such file or directory), expected a CSV log"


def test_a_position_that_is_there_twice_is_named_in_both_places(tmp_path):
    one = write_log(tmp_path / "1.csv", [log_row("a", 1), log_row("a", 2)])
    two = write_log(tmp_path / "2.csv", [log_row("b", 1), log_row("b", 2), log_row("a", 2)])
    expected = f"{two}, row 4: session 'a', position 2 is already in {one}, row 3, expected each position once"
    assert refusal(one, two) == expected
    assert refusal(write_log(tmp_path / "3.csv", [log_row()] * 2)) == (
        f"{tmp_path}/3.csv, row 3: session 's', position 1 is already in {tmp_path}/3.csv, row 2, "
        "expected each position once"
    )


def test_the_first_position_that_two_stretches_of_a_session_share_is_named(tmp_path):
    one = write_log(tmp_path / "1.csv", [log_row("a", i) for i in (5, 6, 7, 8)])
    two = write_log(tmp_path / "2.csv", [log_row("b", 1), *(log_row("a", i) for i in (2, 3, 4, 5, 6))])
    expected = "session 'a', position 5 is already in"
    assert refusal(one, two) == f"{two}, row 6: {expected} {one}, row 2, expected each position once"
    assert refusal(two, one) == f"{one}, row 2: {expected} {two}, row 6, expected each position once"


def test_a_session_of_two_lengths_is_refused(tmp_path):
    rows = [log_row("a", 1, 10), log_row("a", 2, 10), log_row("a", 3, 11), log_row("b", 1), log_row("b", 2)]
    path = write_log(tmp_path / "log.csv", rows)
    assert refusal(path) == (
        f"{path}, row 4: session_length is 11, but 10 in {path}, row 3 of the same session, "
        "expected one length a session"
    )


def test_files_folders_and_globs_are_found_once_each_and_in_order(tmp_path):
    for name in ("b.csv", "a.csv.gz", "c.txt", "sub.csv/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b = tmp_path / "a.csv.gz", tmp_path / "b.csv"
    assert find_logs([tmp_path]) == [a, b]
    assert find_logs([str(tmp_path / "*.csv*")]) == [a, b]
    assert find_logs([b, tmp_path, f"{tmp_path}/?.csv"]) == [b, a]
    assert find_logs([tmp_path / "c.txt"]) == [tmp_path / "c.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "log[1].csv").touch()
    assert find_logs([tmp_path / "log[1].csv"]) == [tmp_path / "log[1].csv"]


def test_paths_that_lead_to_no_log_are_refused(tmp_path):
    with pytest.raises(
        DatasetError, match=r"/none\*\.csv: found nothing, expected a log file, a folder of them, or a pat"
    ):
        find_logs([tmp_path / "none*.csv"])
    with pytest.raises(DatasetError, match=r"found nothing, expected a \*\.csv or \*\.csv\.gz file in this folder"):
        find_logs([tmp_path])
    with pytest.raises(DatasetError, match="no log was named"):
        find_logs([])
