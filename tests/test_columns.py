"""Column maps: made-up files of every form, and what becomes of their rows, by hand and by slow loops."""

import bz2
import dataclasses
import datetime
import gzip
import json
import lzma
import math
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import whole_log
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run
from test_logs import log_session, write_log
from test_prepare import real_logs  # noqa: F401  a fixture

import skiprec.formats
import skiprec.logs
from skiprec.columns import ColumnMap, SkipMap, load_map, map_from, shipped_maps
from skiprec.errors import ConfigError, DatasetError
from skiprec.events import SKIP_LEVEL
from skiprec.logs import PATH_IN_HEADER
from skiprec.mapping import amount, time_of, yes_or_no
from skiprec.prepare import Manifest, PrepareConfig, prepare_logs
from skiprec.pseudonyms import pseudonym, read_key
from skiprec.reading import Reading, find_logs
from skiprec.synthetic import synthesize_logs

START = datetime.datetime(2018, 7, 15, 23, 50, tzinfo=datetime.UTC)
PLAIN = ColumnMap(session="s", item=("i",), order="p", skip=SkipMap(true={"k": 2}))


def write(path, rows, columns):
    """Rows of dicts as a file of the map's format."""
    if columns.format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if columns.format == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        delimiter = "\t" if columns.format == "tsv" else ","
        names = list(columns.columns or rows[0])
        lines = [delimiter.join(str(row.get(name, "")) for name in names) for row in rows]
        text = "\n".join([delimiter.join(names)] * columns.header + lines) + "\n"
    path.write_text(text)
    return path


def events_of(paths, columns, **how):
    return whole_log(list(paths), Reading(columns=columns, **how))


def sessions_in(events):
    """Each session's items and skip levels, by its id."""
    ids, items = events.session_ids.to_pylist(), events.item_ids.to_pylist()
    session = np.repeat(events.runs.session, events.runs.n_rows)
    found = {name: [] for name in ids}
    for s, i, flags in zip(session.tolist(), events.item.tolist(), events.flags.tolist(), strict=True):
        found[ids[s]].append((items[i], flags & SKIP_LEVEL))
    return found


def plays(user):
    """A user's twelve plays, a minute apart: when, and a number that no other play has."""
    return [{"user": f"u{user}", "at": START + datetime.timedelta(minutes=t), "n": 12 * user + t} for t in range(12)]


MADE = {
    "yambda": lambda p, t: {
        "uid": p["user"][1:],
        "item_id": 100 + p["n"],
        "timestamp": int(p["at"].timestamp()),
        "played_ratio_pct": [10, 30, 60, 95][t % 4],
    },
    "lastfm_1k": lambda p, t: {
        "user_id": p["user"],
        "timestamp": p["at"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "artist_id": "",
        "artist_name": 'The "Quotes"',
        "track_id": "",
        "track_name": f"Song, {p['n']}",
    },
    "kuairand": lambda p, t: {
        "user_id": p["user"],
        "video_id": p["n"],
        "time_ms": int(p["at"].timestamp() * 1000),
        "tab": t % 2,
        "is_hate": int(t == 1),
        "play_time_ms": [1000, 9000, 9500, 4000][t % 4],
        "duration_ms": 10_000,
    },
    "tenrec": lambda p, t: {"user_id": p["user"], "item_id": p["n"], "click": int(t % 2), "video_category": "a"},
    "recbole": lambda p, t: {
        "user_id:token": p["user"],
        "item_id:token": f"i{p['n']}",
        "rating:float": 5.0,
        "timestamp:float": p["at"].timestamp(),
    },
}
LEVELS = {
    "yambda": [3, 2, 1, 0] * 3,
    "lastfm_1k": [0] * 12,
    "kuairand": [3, 3, 0, 2] + [3, 0, 0, 2] * 2,
    "tenrec": [2, 0] * 6,
    "recbole": [0] * 12,
}


def made_up(folder, name, n_users=2):
    """A tiny log of a shipped map's form: twelve plays a user."""
    columns = load_map(name)
    rows = [MADE[name](p, t) for u in range(1, n_users + 1) for t, p in enumerate(plays(u))]
    return write(folder / f"log.{'inter' if name == 'recbole' else columns.format}", rows, columns)


@pytest.mark.parametrize("name", MADE)
def test_every_shipped_map_reads_its_form(tmp_path, name):
    """Levels as the map's thresholds say; the day of the first play, before midnight, where there are times."""
    columns = load_map(name)
    events = events_of([made_up(tmp_path, name)], columns)
    found = sessions_in(events)
    assert len(found) == 2
    for plays_of in found.values():
        assert [level for _, level in plays_of] == LEVELS[name]
        assert len({item for item, _ in plays_of}) == 12
    if columns.order_by == "time":
        assert events.runs.date[0] == (datetime.date(2018, 7, 15) - datetime.date(1970, 1, 1)).days
        assert all(name.endswith("/1") for name in found)


def test_the_shipped_maps_are_these_and_come_back_from_their_own_text():
    assert shipped_maps() == sorted([*MADE, "mssd"])
    for name in shipped_maps():
        assert map_from(tomllib.loads(load_map(name).to_toml()), name) == load_map(name)


@pytest.mark.parametrize("first_field", [b"session_id", b"./some/log.csv"])
def test_mssd_by_its_map_is_what_the_fast_path_reads(tmp_path, first_field):
    """The same dataset, odd flags and all; also where the header begins with a path, which is said."""
    synthesize_logs(tmp_path / "logs", sessions=60, items=80, seed=3, progress=False)
    (made,) = (tmp_path / "logs").glob("*.csv*")
    log = tmp_path / "log.csv"
    log.write_bytes(gzip.decompress(made.read_bytes()).replace(b"session_id", first_field, 1))
    fast = prepare_logs([log], tmp_path / "fast", progress=False)
    slow = prepare_logs([log], tmp_path / "slow", reading=Reading(on_bad_row="skip"), progress=False)
    assert fast.digests == slow.digests
    assert fast.counts == slow.counts
    assert slow.reading["left_out"] == {}
    assert (
        fast.reading["notes"] == slow.reading["notes"] == ({} if first_field == b"session_id" else {PATH_IN_HEADER: 1})
    )


FORMS = [(form, packed) for form in ("csv", "tsv", "jsonl") for packed in ("", ".gz", ".bz2", ".xz", ".zst")]
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACK[".zst"] = lambda data: pa.compress(data, "zstd", asbytes=True)


@pytest.mark.parametrize(("form", "packed"), [*FORMS, ("parquet", "")])
def test_one_log_in_every_form_and_packing_gives_the_same_rows(tmp_path, form, packed):
    """With texts that CSV has to quote; found in their folder by the map's format."""
    rows = [
        {"s": f"s{s}", "i": f'a "{t}", b' if t == 2 else f"t{t}", "p": t, "k": t % 3 == 0, "z": 1.5}
        for s in range(3)
        for t in range(1, 6)
    ]
    columns = dataclasses.replace(PLAIN, format=form)
    path = tmp_path / f"log.{form}"
    if form in ("csv", "tsv"):
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    else:
        write(path, rows, columns)
    if packed:
        (tmp_path / f"log.{form}{packed}").write_bytes(PACK[packed](path.read_bytes()))
        path.unlink()
    (tmp_path / "readme").write_text("no log")
    events = events_of(find_logs([tmp_path], columns), columns)
    own = [("t1", 0), ('a "2", b', 0), ("t3", 2), ("t4", 0), ("t5", 0)]
    assert sessions_in(events) == {f"s{s}": own for s in range(3)}
    first = 1 if form in ("jsonl", "parquet") else 2
    assert events.runs.row.tolist()[:3] == [first, first + 5, first + 10]  # the last line is a block of its own


def slow_sessions(rows, gap):
    """Users' plays cut where more than the gap passes, one row after the other."""
    found, last, number = {}, {}, {}
    for user, at, item in sorted(rows, key=lambda row: row[1]):
        if user not in last or at - last[user] > gap:
            number[user] = number.get(user, 0) + 1
        last[user] = at
        found.setdefault(f"{user}/{number[user]}", []).append(item)
    return found


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 9).map(float),
    st.integers(1, 4),
)
def test_sessions_are_cut_as_a_slow_loop_cuts_them(tmp_path_factory, rows, gap_minutes, n_files):
    """Users in any order, over several files, gaps at exactly the limit; of equal times no order is asked."""
    rows = [(user, 60 * minute, f"t{item}") for user, minute, item in rows]
    folder = tmp_path_factory.mktemp("gap")
    columns = ColumnMap(user="u", item=("i",), order="t", order_by="time", time_unit="s", gap_minutes=gap_minutes)
    paths = []
    for n in range(n_files):
        part = [{"u": u, "t": t, "i": i} for u, t, i in rows[n::n_files]]
        if part:
            paths.append(write(folder / f"{n}.csv", part, columns))
    found = sessions_in(events_of(paths, columns))
    expected = slow_sessions(rows, 60 * gap_minutes)
    assert {name: sorted(item for item, _ in own) for name, own in found.items()} == {
        name: sorted(own) for name, own in expected.items()
    }


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), min_size=1, max_size=40),
    st.integers(1, 3),
    st.sampled_from(["time", "rows"]),
)
def test_plays_are_in_the_order_of_times_or_rows_as_a_slow_sort_has_them(tmp_path_factory, rows, n_files, order_by):
    """Times a microsecond apart, over several files: what is between two of them in another file comes between them."""
    folder = tmp_path_factory.mktemp("order")
    order = "t" if order_by == "time" else ""
    columns = ColumnMap(user="u", item=("i",), order=order, order_by=order_by, time_unit="us")
    files = [
        [{"u": u, "t": t, "i": f"{number}-{row}"} for row, (u, t) in enumerate(rows[number::n_files])]
        for number in range(n_files)
    ]
    paths = [write(folder / f"{n}.csv", own, columns) for n, own in enumerate(files) if own]
    expected = {}
    for play in sorted((p for own in files for p in own), key=lambda play: play["t"] if order else 0):
        expected.setdefault(play["u"], []).append(play["i"])
    found = sessions_in(events_of(paths[::-1], columns))
    assert {name: [item for item, _ in own] for name, own in found.items()} == expected


def test_equal_times_stay_in_the_order_of_files_and_rows(tmp_path):
    """Whatever the order in which the files are named."""
    columns = ColumnMap(user="u", item=("i",), order="t", order_by="time", time_unit="s", gap_minutes=1.0)
    one = write(tmp_path / "1.csv", [{"u": "a", "t": 5, "i": x} for x in "cab"], columns)
    two = write(tmp_path / "2.csv", [{"u": "a", "t": 5, "i": x} for x in "zy"], columns)
    for paths in ([one, two], [two, one]):
        assert [item for item, _ in sessions_in(events_of(paths, columns))["a/1"]] == list("cabzy")


@pytest.mark.parametrize(
    ("skip", "row", "level"),
    [
        ({"true": {"k": 2}}, {"k": "Yes"}, 2),
        ({"true": {"k": 2}}, {"k": "0"}, 0),
        ({"false": {"k": 3}}, {"k": "false"}, 3),
        ({"true": {"k": 1}, "false": {"m": 3}}, {"k": 1, "m": 0}, 3),
        ({"played": "k", "below": ((30.0, 2),)}, {"k": 29.9}, 2),
        ({"played": "k", "below": ((30.0, 2),)}, {"k": 30}, 0),
        ({"played": "k", "duration": "m", "below": ((0.5, 1), (0.1, 3))}, {"k": 49, "m": 100}, 1),
        ({"played": "k", "duration": "m", "below": ((0.5, 1), (0.1, 3))}, {"k": 9, "m": 100}, 3),
        ({"event": "k", "events": {"skip": 2, "like": 0}}, {"k": "skip"}, 2),
        ({"event": "k", "events": {"skip": 2, "like": 0}}, {"k": "like"}, 0),
    ],
)
def test_the_level_is_the_strongest_that_holds(tmp_path, skip, row, level):
    columns = ColumnMap(session="s", item=("i",), order="p", skip=SkipMap(**skip))
    path = write(tmp_path / "log.csv", [{"s": "a", "i": "t", "p": 1, **row}], columns)
    assert sessions_in(events_of([path], columns)) == {"a": [("t", level)]}


def test_rows_of_other_kinds_of_events_are_left_out_and_counted(tmp_path):
    columns = ColumnMap(user="u", item=("i",), order="t", order_by="time", skip=SkipMap(event="e", events={"play": 0}))
    rows = [{"u": "a", "i": f"t{n}", "t": 1_500_000_000 + n, "e": "play" if n % 2 else "open"} for n in range(5)]
    events = events_of([write(tmp_path / "log.csv", rows, columns)], columns)
    assert [item for item, _ in sessions_in(events)["a"]] == ["t1", "t3"]
    assert events.left_out == {"of other kinds of events": 3}


BAD = [
    ("a,,2,0", "i is missing, expected a text"),
    (",t,2,0", "s is missing, expected a text"),
    ("a,t,2.5,0", "p is '2.5', expected a whole number"),
    ("a,t,2,maybe", "k is 'maybe', expected true or false, yes or no, 1 or 0"),
    ("a,t,2", "3 fields, expected 4"),
    ("a,t,2,0,9", "5 fields, expected 4"),
    ("a,t,2,0\r,", "a carriage return within the line, expected it at its end or nowhere"),
    ("a,\0,2,0", "holds a NUL byte, expected text"),
    (b"a,\xff,2,0", "byte 0xff is not UTF-8 text, expected a UTF-8 file"),
    ('a,"t,2,0', "a quote that does not end in its line, expected none or two"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_wrong_row_is_refused_with_its_place_or_left_out_and_counted(tmp_path, line, message):
    """Row 3, the header being row 1; what is around it stays, with its own row numbers in later errors."""
    good = ["a,x,1,0", line, "a,y,2,1", "a,z,3,0"]
    path = tmp_path / "log.csv"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in ["s,i,p,k", *good]))
    with pytest.raises(DatasetError) as caught:
        events_of([path], PLAIN)
    assert str(caught.value) == f"{path}, row 3: {message}"
    events = events_of([path], PLAIN, on_bad_row="skip", bad_rows_at_most=0.25)
    assert sessions_in(events) == {"a": [("x", 0), ("y", 2), ("z", 0)]}
    assert sum(events.left_out.values()) == 1
    with pytest.raises(DatasetError, match=r"1 of 4 rows are bad \(1 .*\), expected at most 24%"):
        events_of([path], PLAIN, on_bad_row="skip", bad_rows_at_most=0.24)


def test_rows_keep_the_files_numbers_where_others_are_left_out(tmp_path):
    columns = dataclasses.replace(PLAIN, skip=SkipMap(event="k", events={"play": 0}))
    rows = [{"s": "a", "i": "t", "p": p, "k": k} for p, k in ((1, "play"), (1, "open"), (2, "play"), (1, "play"))]
    with pytest.raises(DatasetError) as caught:
        events_of([write(tmp_path / "log.csv", rows, columns)], columns)
    path = tmp_path / "log.csv"
    assert str(caught.value) == (
        f"{path}, row 5: session 'a', position 1 is already in {path}, row 2, expected each position once"
    )


def test_sessions_that_contradict_themselves_are_left_out_and_counted(tmp_path):
    """A position twice, over two files and among whole sessions; two lengths."""
    columns = dataclasses.replace(PLAIN, session_length="n")
    rows = [{"s": s, "i": f"t{p}", "p": p, "k": 0, "n": 3} for s in "abcd" for p in (1, 2, 3)]
    again = [{"s": "b", "i": "t9", "p": 2, "k": 0, "n": 3}, {"s": "d", "i": "t9", "p": 4, "k": 0, "n": 4}]
    paths = [write(tmp_path / "1.csv", rows, columns), write(tmp_path / "2.csv", again, columns)]
    with pytest.raises(DatasetError, match=r"2\.csv, row 2: session 'b', position 2 is already in .*1\.csv, row 6"):
        events_of(paths, columns)
    events = events_of(paths, columns, on_bad_row="skip", bad_rows_at_most=8 / 14)
    plays_of = [("t1", 0), ("t2", 0), ("t3", 0)]
    found = sessions_in(events)
    assert {name: found[name] for name in found if found[name]} == {"a": plays_of, "c": plays_of}
    assert events.left_out == {"bad sessions with a position twice": 4, "bad sessions of two lengths": 4}

    def refuse(match, paths, **how):
        with pytest.raises(DatasetError, match=match):
            prepare_logs(paths, tmp_path / "out", reading=Reading(columns=columns, on_bad_row="skip", **how))

    refuse(r"8 of 14 rows are bad \(4 sessions of two lengths, 4 sessions with a posi", paths, bad_rows_at_most=0.57)
    refuse(
        r"4 of 4 rows are bad \(4 sessions with a position twice\)",
        [write(tmp_path / "3.csv", rows[3:6] + again[:1], columns)],
    )


@pytest.mark.parametrize(("form", "row"), [("csv", 3), ("jsonl", 2)])
@pytest.mark.parametrize("length", [301, 3000])
def test_a_line_beyond_the_limit_is_refused_by_its_row(tmp_path, monkeypatch, form, row, length):
    """Whether it ends or not, and in whatever block; one that is shorter is read."""
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", 100)
    monkeypatch.setattr(skiprec.logs, "LONGEST_LINE", 300)
    columns = dataclasses.replace(PLAIN, format=form)
    rows = [{"s": "a", "i": "t" * n, "p": p, "k": 0} for p, n in ((1, 200), (2, length), (3, 1))]
    path = write(tmp_path / f"log.{form}", rows, columns)
    refused = f"{path}, row {row}: a line is longer than 300 bytes, expected shorter ones"
    for end in (b"", b"\n"):
        for content in (path.read_bytes(), path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[0] + end):
            (tmp_path / "cut").write_bytes(content)
            with pytest.raises(DatasetError) as caught:
                events_of([tmp_path / "cut"], columns)
            assert str(caught.value) == refused.replace(str(path), str(tmp_path / "cut"))
    monkeypatch.setattr(skiprec.logs, "LONGEST_LINE", length + 100)
    assert len(events_of([path], columns).item) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("s,i,p,k\n", "has no rows"),
        ("s,i,k\na,t,0\n", "row 1: no column p; found 's', 'i', 'k'"),
        ("s,i,p,k,k\na,t,1,0,0\n", "row 1: column k is there 2 times, expected once"),
        ("s,i,p,k\na,\0,1,0\n", "row 2: holds a NUL byte"),
        (b"s,i,p,k\na,\xff,1,0\n", "row 2: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path, content, message):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=f"log.csv(, |: ){message}"):
        events_of([path], PLAIN)


def test_a_row_group_beyond_the_limit_is_refused_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(skiprec.formats, "LARGEST_ROW_GROUP", 2000)
    columns = dataclasses.replace(PLAIN, format="parquet")
    rows = pa.Table.from_pylist([{"s": "a", "i": f"track-{p}", "p": p, "k": False} for p in range(1, 101)])
    pq.write_table(rows, tmp_path / "small.parquet", row_group_size=10)
    assert len(events_of([tmp_path / "small.parquet"], columns).item) == 100
    pq.write_table(rows, tmp_path / "large.parquet", row_group_size=100)
    with pytest.raises(
        DatasetError, match=r"large.parquet, rows from 1: a row group of [\d,]+ bytes, expected at most 2,0"
    ):
        events_of([tmp_path / "large.parquet"], columns)


def test_texts_of_parquet_that_are_no_text_are_refused_by_their_row(tmp_path):
    """Which parquet lets pass, and nothing after it would."""
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"b\xffd", b"ok"]).buffers())
    table = pa.table({"s": ["a"] * 3, "i": texts, "p": [1, 2, 3], "k": [False] * 3})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DatasetError) as caught:
        events_of([tmp_path / "log.parquet"], dataclasses.replace(PLAIN, format="parquet"))
    assert str(caught.value) == f"{tmp_path / 'log.parquet'}, row 2: i holds b'b\\xffd', expected UTF-8 text"


def test_what_a_row_does_not_say_of_its_context_is_none(tmp_path):
    """Of several columns the texts are joined."""
    rows = [{"s": "a", "i": "t", "p": p, "k": 0, "c": c, "d": d} for p, c, d in ((1, "x", 1), (2, "", 2), (3, "x", 1))]
    for names, expected in (((), ["none"]), (("c",), ["none", "x"]), (("c", "d"), ["none / 2", "x / 1"])):
        columns = dataclasses.replace(PLAIN, context=names)
        events = events_of([write(tmp_path / "log.csv", rows, columns)], columns)
        assert events.context_types == expected
        context = np.repeat(events.runs.context, events.runs.n_rows).tolist()
        assert [expected[c] for c in context] == [expected[-1], expected[0], expected[-1]]


def test_positions_without_a_length_have_to_be_whole(tmp_path):
    """From 0 or from 1 on; a session with a gap is incomplete."""
    config = PrepareConfig(min_length=4, max_length=6)
    rows = [{"s": s, "i": f"t{p}", "p": p, "k": 0} for s, of in enumerate([(0, 4), (1, 5), (2, 6)]) for p in range(*of)]
    rows += [{"s": 9, "i": f"t{p}", "p": p, "k": 0} for p in (1, 2, 4, 5)]
    path = write(tmp_path / "log.csv", rows, PLAIN)
    made = prepare_logs([path], tmp_path / "data", config=config, reading=Reading(columns=PLAIN), progress=False)
    assert made.counts["sessions"] == 2
    assert made.dropped["incomplete"] == 2


@pytest.mark.parametrize(
    ("text", "unit", "micros"),
    [
        ("1531650000", "auto", 1531650000 * 10**6),
        ("1531650000123", "auto", 1531650000123 * 1000),
        ("1531650000123456", "auto", 1531650000123456),
        ("1.5e9", "s", 15 * 10**14),
        ("-1", "ms", -1000),
        ("2018-07-15T10:20:00Z", "auto", 1531650000 * 10**6),
        ("2018-07-15 12:20:00+02:00", "text", 1531650000 * 10**6),
        ("2018-07-15", "text", 1531612800 * 10**6),
        ("yesterday", "auto", None),
        ("nan", "auto", None),
        ("1e300", "auto", None),
        ("9" * 400, "auto", None),
        ("", "s", None),
        ("2018-13-01", "text", None),
    ],
)
def test_times_in_every_unit(text, unit, micros):
    assert time_of(text, unit) == micros


def test_words_for_yes_and_no_and_amounts():
    assert [yes_or_no(text) for text in ("TRUE", " yes ", "1.0", "F", "no", "0", "2", "")] == [
        1,
        1,
        1,
        0,
        0,
        0,
        None,
        None,
    ]
    assert [amount(text, False) for text in ("0", "1.5", "-1", "inf", "x")] == [0.0, 1.5, None, None, None]
    assert amount("0", True) is None


GOOD = {"session": "s", "item": "i", "order": "p"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"sesion": "s"}, "my: unknown key 'sesion', did you mean 'session'"),
        ({"session": "s", "item": "i"}, "my: order is '' and order_by 'position', expected a column, or 'rows'"),
        ({"user": "u", **GOOD}, "my: expected one of session and user"),
        ({"session": "s", "order": "p"}, "my: item is missing"),
        ({**GOOD, "order": 3}, "my: order is 3, expected a text"),
        ({"format": "xlsx"}, "my: format is 'xlsx', expected one of csv, tsv, jsonl, parquet"),
        ({**GOOD, "gap_minutes": 3}, "my: gap_minutes is 3, expected above 0, with user"),
        ({**GOOD, "skip": {"true": {"k": 4}}}, "my: skip: expected levels from 1 to 3"),
        ({**GOOD, "skip": {"tru": {}}}, "my: skip: unknown key 'tru', did you mean 'true'"),
        ({**GOOD, "skip": {"played": "k"}}, "my: skip: played goes with below"),
        ({**GOOD, "header": False}, "my: header is false, expected columns"),
        ({**GOOD, "header": False, "columns": ["s", "i"]}, "my: p: not among columns"),
        ({**GOOD, "header": False, "columns": ["s", "i", "p", "p"]}, "my: columns has p 2 times, expected it once"),
        ({**GOOD, "item": ["i", ""]}, "my: a column's name is empty"),
        ({**GOOD, "quote": "''"}, """my: quote is "''", expected one character"""),
        ({**GOOD, "quote": ","}, "my: quote is ',', expected one character"),
        ({**GOOD, "gap_minutes": math.nan}, "my: gap_minutes and the thresholds of below are numbers"),
        ({**GOOD, "skip": {"played": "k", "below": [[math.inf, 2]]}}, "my: gap_minutes and the thresholds of below"),
    ],
)
def test_a_map_that_cannot_be_is_refused_with_its_key(told, message):
    with pytest.raises(ConfigError) as caught:
        map_from(told, "my")
    assert str(caught.value).startswith(message)


def test_a_map_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match="expected a TOML file, or one of kuairand, lastfm_1k, mssd, recbole, tenrec"):
        load_map("msd")
    (tmp_path / "my.toml").write_text("session = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_map(str(tmp_path / "my.toml"))


def test_pseudonyms_hide_ids_and_keep_sessions_together(tmp_path):
    """Two files of one session; another key gives others; nothing written names an id or the key."""
    key = tmp_path / "key"
    key.write_text("a secret of enough letters\n")
    rows = [{"s": "alice", "i": f"track-{p}", "p": p, "k": 0} for p in range(1, 7)]
    paths = [write(tmp_path / f"{n}.csv", rows[n::2], PLAIN) for n in range(2)]
    config = PrepareConfig(min_length=4, max_length=6)
    for items in (False, True):
        out = tmp_path / f"data-{items}"
        reading = Reading(columns=PLAIN, key=read_key(key), hash_items=items)
        made = prepare_logs(paths, out, config=config, reading=reading, progress=False)
        assert made.counts["sessions"] == 1
        session = pd.read_parquet(out / "sessions.parquet")["session_id"][0]
        assert session == pseudonym("alice", read_key(key), "session")
        ids = set(pd.read_parquet(out / "items.parquet")["item_id"])
        assert ids == {pseudonym(r["i"], read_key(key), "item") if items else r["i"] for r in rows}
        assert Manifest.read(out).reading["pseudonyms"] == ["sessions", "items"][: 1 + items]
        assert Manifest.read(out).sources == [{"rows": 3}, {"rows": 3}]
        for path in out.iterdir():
            assert b"alice" not in path.read_bytes()
            assert b"a secret" not in path.read_bytes()
    assert "secret" not in repr(reading)
    key.write_text("short\n")
    with pytest.raises(ConfigError, match="holds 5 bytes, expected at least 16"):
        read_key(key)


def test_a_sample_is_the_same_whatever_the_order_and_uniform(tmp_path):
    """Of 400 sessions 100 are drawn; over 40 seeds each as often as chance has it (chi-square, 399 degrees: 514)."""
    rows = [log_session(f"s{s}", ["a", "b", "c", "d"]) for s in range(400)]
    config = PrepareConfig(min_length=4, max_length=6)
    forward = write_log(tmp_path / "forward.csv", [line for session in rows for line in session])
    backward = write_log(tmp_path / "backward.csv", [line for session in rows[::-1] for line in session])
    drawn = np.zeros(400)
    for seed in range(40):
        made = prepare_logs([forward], tmp_path / f"{seed}", config=config, sample=(100, seed), progress=False)
        assert (made.counts["sessions"], made.dropped["not_sampled"]) == (100, 300)
        for name in pd.read_parquet(tmp_path / f"{seed}" / "sessions.parquet")["session_id"]:
            drawn[int(name[1:])] += 1
    assert ((drawn - 10) ** 2 / 10).sum() < 514
    again = prepare_logs([backward], tmp_path / "again", config=config, sample=(100, 39), progress=False)
    assert again.digest == made.digest
    most = prepare_logs([forward], tmp_path / "most", config=config, sample=(1000, 1), progress=False)
    assert (most.counts["sessions"], most.dropped["not_sampled"]) == (400, 0)


@pytest.mark.real_logs
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("log_first_header_field_is_a_path", {"sessions": 3, "rows": 60}),
        ("log_very_small_dates_dd-mm-yy", {"sessions": 11, "rows": 201}),
        ("log_hand_edited_bom_upper_booleans_slash_dates", "row 10: both skip_2 and not_skipped are true"),
        ("log_test_prehistory_positions_2_to_half_extra_column", "none of 169 sessions can be used .169 incomplete"),
    ],
)
def test_mssd_as_it_really_comes_is_read_right_or_refused(real_logs, tmp_path, name, outcome):  # noqa: F811
    """Excerpts with what others did to them."""
    path = real_logs.parent / "mssd_quirks" / f"{name}.csv"
    config = PrepareConfig(min_length=4)
    if isinstance(outcome, str):
        with pytest.raises(DatasetError, match=outcome):
            prepare_logs([path], tmp_path / "data", config=config, progress=False)
        return
    made = prepare_logs([path], tmp_path / "data", config=config, progress=False)
    assert {key: made.counts[key] for key in outcome} == outcome
    assert ("path" in name) == (made.reading["notes"] == {PATH_IN_HEADER: 1})
    assert pd.read_parquet(tmp_path / "data" / "sessions.parquet")["date"].astype(str).str.startswith("2018-").all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_from_every_form_to_a_trained_model(tmp_path, name):
    """By the commands, with the map's name alone."""
    made_up(tmp_path, name, n_users=40)
    log = next(tmp_path.glob("log.*")).name
    done = run(tmp_path, "skiprec", "prepare", log, "--columns", name, "--out", "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 sessions kept, 480 items, 480 plays")
    small = ["--set=dim=8", "--set=n_heads=2", "--set=n_negatives=4", "--set=max_epochs=1", "--set=patience=0"]
    trained = run(tmp_path, "skiprec", "train", "data", "--out", "run", "--device", "cpu", *small)
    assert trained.returncode == 0, trained.stderr
    asked = run(tmp_path, "skiprec", "recommend", "run", "--session", "what", "--k", 3)
    assert asked.stdout.startswith("unknown, and left out: what")
