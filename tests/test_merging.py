"""Logs that are larger than what is held of them: in small chunks, in small parts, by several processes, the same."""

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_logs import log_row, log_session, write_log

import skiprec.files
import skiprec.gathering
import skiprec.merging
import skiprec.reading
from skiprec.columns import ColumnMap, SkipMap
from skiprec.errors import DatasetError, OutputError
from skiprec.files import scratch_beside
from skiprec.prepare import PrepareConfig, prepare_logs
from skiprec.reading import Reading, read_logs, shares

SMALL = PrepareConfig(min_length=4, max_length=6)
BY_TIME = ColumnMap(
    format="csv",
    user="user",
    item=("item",),
    order="at",
    order_by="time",
    time_unit="s",
    gap_minutes=10.0,
    skip=SkipMap(true={"skipped": 2}),
)
# Their names sort one way as users and another way as what comes before a session's number.
USERS = ["a", "a-", "a/", "a/1", "a/1/2", "a0", "b", "a-/1", "ä", "a b"]


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Chunks of some 20 rows, which are read back by three runs; parts of the logs of the same size."""
    monkeypatch.setattr(skiprec.gathering, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(skiprec.gathering, "RUNS_AT_ONCE", 3)
    monkeypatch.setattr(skiprec.merging, "PART_BYTES", 2000)


def some_logs(folder: Path, n: int = 60) -> list[Path]:
    """Sessions in no order over four files, some incomplete, with contexts and dates of their own."""
    rng = random.Random(1)
    rows = []
    for s in range(n):
        length = rng.randint(3, 9)
        own = f"s{rng.random():.6f}-{s}"
        for position in range(1, length + 1 - (s % 11 == 0)):
            item, context = f"t{rng.randint(1, 40)}", rng.choice(["radio", "charts", "catalog"])
            date = f"2018-07-{1 + (s + (position > 4)) % 20:02}"
            rows.append(log_row(own, position, length, item, rng.randint(0, 3), date, context))
    rng.shuffle(rows)
    folder.mkdir()
    return [write_log(folder / f"{i}.csv", rows[i::4]) for i in range(4)]


def users_log(path: Path) -> Path:
    """Plays of users at times in no order, in sittings of some minutes."""
    rng = random.Random(2)
    rows = []
    for user, day, sitting in itertools.product(USERS, range(2), range(7)):
        for minute in range(rng.randint(3, 8)):
            at = day * 86_400 + sitting * 7200 + minute * 60 + rng.randint(0, 20)
            rows.append(f"{user},t{rng.randint(1, 30)},{at},{rng.randint(0, 1)}")
    rng.shuffle(rows)
    path.write_text("\n".join(["user,item,at,skipped", *rows]) + "\n")
    return path


def said(manifest) -> dict:
    """All but the sources, which say how many files there were."""
    return {name: value for name, value in dataclasses.asdict(manifest).items() if name != "sources"}


@pytest.mark.parametrize(
    "how",
    [{}, {"sample": (20, 3)}, {"config": dataclasses.replace(SMALL, only_sessions_with_skips=True)}],
    ids=["all", "sample", "with skips"],
)
@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_what_is_held_at_once_changes_nothing(tmp_path, monkeypatch, request, how, split):
    logs = some_logs(tmp_path / "logs")
    how = {"config": SMALL} | how
    how["config"] = dataclasses.replace(how["config"], split=split)
    whole = prepare_logs(logs, tmp_path / "whole", progress=False, **how)
    request.getfixturevalue("in_small_pieces")
    pieces = prepare_logs(logs[::-1], tmp_path / "pieces", progress=False, **how)
    assert said(pieces) == said(whole)
    assert pieces.counts["sessions"] >= 20
    for name in ("sessions", "items"):
        a, b = (pd.read_parquet(tmp_path / d / f"{name}.parquet") for d in ("whole", "pieces"))
        pd.testing.assert_frame_equal(a.map(str), b.map(str))


@pytest.mark.usefixtures("in_small_pieces")
def test_many_small_pieces_are_what_pandas_makes_of_the_log(tmp_path):
    """Sessions, items and plays, by another library from the files."""
    logs = some_logs(tmp_path / "logs")
    prepare_logs(logs, tmp_path / "data", config=SMALL, progress=False)
    rows = pd.concat(pd.read_csv(path) for path in logs).sort_values(["session_id", "session_position"])
    found = pd.read_parquet(tmp_path / "data" / "sessions.parquet").set_index("session_id")
    items = pd.read_parquet(tmp_path / "data" / "items.parquet")
    texts = dict(zip(items["item_index"], items["item_id"], strict=True))
    expected, plays = {}, {}
    for name, session in rows.groupby("session_id"):
        if len(session) == session["session_length"].iloc[0] and len(session) >= 4:
            kept = session["track_id_clean"].tolist()[-6:]
            expected[name] = kept, session["context_type"].tolist()[-6:], session["date"].iloc[0]
            for item in kept[:-2]:
                plays[item] = plays.get(item, 0) + 1
    assert found.index.tolist() == sorted(expected)
    for name, (kept, contexts, date) in expected.items():
        assert [texts[i] for i in found.loc[name, "items"]] == kept
        assert list(found.loc[name, "contexts"]) == contexts
        assert str(found.loc[name, "date"]) == date
    assert dict(zip(items["item_id"], items["plays"], strict=True)) == {t: plays.get(t, 0) for t in items["item_id"]}
    assert items["item_id"].tolist() == sorted({text for kept, *_ in expected.values() for text in kept})


def test_sittings_of_users_are_the_same_in_pieces_and_in_order(tmp_path, request):
    """Ids of sessions sort as texts over all parts, whatever is in the users' ids."""
    log = users_log(tmp_path / "log.csv")
    whole = prepare_logs([log], tmp_path / "whole", config=SMALL, reading=Reading(columns=BY_TIME), progress=False)
    request.getfixturevalue("in_small_pieces")
    pieces = prepare_logs([log], tmp_path / "pieces", config=SMALL, reading=Reading(columns=BY_TIME), progress=False)
    assert said(pieces) == said(whole)
    ids = pd.read_parquet(tmp_path / "pieces" / "sessions.parquet")["session_id"].tolist()
    assert ids == sorted(ids, key=str.encode)
    assert {name.rpartition("/")[0] for name in ids} == set(USERS)
    assert len(ids) > 100


@pytest.mark.usefixtures("in_small_pieces")
def test_parts_are_small_and_have_whole_sessions(tmp_path):
    logs = some_logs(tmp_path / "logs")
    (tmp_path / "scratch").mkdir()
    log = read_logs(logs, Reading(), tmp_path / "scratch", progress=False)
    parts = list(log.parts())
    assert len(parts) > 10
    assert max(len(part.item) for part in parts) < 60  # with what several chunks have around an edge
    ids = [text for part in parts for text in part.session_ids.to_pylist()]
    assert ids == sorted(set(ids))
    assert sum(len(part.item) for part in parts) == log.n_rows


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_the_number_of_processes_changes_nothing(tmp_path, processes):
    logs = some_logs(tmp_path / "logs")
    one = prepare_logs(logs, tmp_path / "one", config=SMALL, progress=False)
    several = prepare_logs(logs, tmp_path / "several", config=SMALL, processes=processes, progress=False)
    assert dataclasses.asdict(several) == dataclasses.asdict(one)


def test_a_bad_row_in_one_of_several_processes_is_named(tmp_path):
    logs = some_logs(tmp_path / "logs")
    write_log(logs[2], [*log_session("x", list("abcd")), log_row("x", "five", 5)])
    with pytest.raises(DatasetError, match=rf"^{logs[2]}, row 6: session_position is 'five', expected"):
        prepare_logs(logs, tmp_path / "out", config=SMALL, processes=2, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


@pytest.mark.usefixtures("in_small_pieces")
def test_a_position_that_is_twice_is_named_in_whichever_chunks_it_is(tmp_path):
    logs = some_logs(tmp_path / "logs")
    first = logs[3].read_text().splitlines()[1]
    name, position = first.split(",")[:2]
    logs.append(write_log(tmp_path / "logs" / "more.csv", [first]))
    expected = rf"^{logs[4]}, row 2: session '{name}', position {position} is already in {logs[3]}, row 2, expected"
    with pytest.raises(DatasetError, match=expected):
        prepare_logs(logs, tmp_path / "out", config=SMALL, progress=False)
    skipping = Reading(on_bad_row="skip", bad_rows_at_most=0.5)
    manifest = prepare_logs(logs, tmp_path / "out", config=SMALL, reading=skipping, progress=False)
    n = sum(line.startswith(f"{name},") for path in logs for line in path.read_text().splitlines())
    assert manifest.reading["left_out"] == {"bad sessions with a position twice": n}


def test_a_disk_that_fills_while_rows_wait_leaves_nothing(tmp_path, monkeypatch):
    logs = some_logs(tmp_path / "logs")

    def full(*arguments, **others):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(skiprec.gathering.pa.ipc, "new_file", full)
    with pytest.raises(OutputError, match=r"out: cannot be written \(No space left on device\); nothing was left"):
        prepare_logs(logs, tmp_path / "out", config=SMALL, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find processes in")
def test_a_reading_process_that_is_killed_is_one_line(tmp_path):
    """A pipe for a log: whoever reads it waits, and is killed."""
    logs = some_logs(tmp_path / "logs")
    os.mkfifo(tmp_path / "logs" / "pipe.csv")
    command = [sys.executable, "-m", "skiprec", "prepare", *logs, tmp_path / "logs" / "pipe.csv"]
    command += ["--out", tmp_path / "out", "--processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        readers: list[int] = []
        while len(readers) < 2 and process.poll() is None:
            time.sleep(0.2)
            readers = children(process.pid)
        time.sleep(2)
        for pid in readers:
            os.kill(pid, signal.SIGKILL)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "of 2 processes that read the logs was ended from outside" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


def test_what_a_killed_run_left_is_removed_by_the_next_one_and_that_of_a_living_one_is_not(tmp_path):
    logs = some_logs(tmp_path / "logs")
    os.mkfifo(tmp_path / "pipe.csv")
    command = [sys.executable, "-m", "skiprec", "prepare", tmp_path / "pipe.csv", "--out", tmp_path / "out"]
    killed, living = (subprocess.Popen(command) for _ in range(2))
    try:
        deadline = time.monotonic() + 60
        while len(left := sorted(tmp_path.glob(".out.*.scratch"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(left) == 2
        killed.kill()
        killed.wait()
        assert sorted(tmp_path.glob(".out.*.scratch")) == left
        prepare_logs(logs, tmp_path / "out", config=SMALL, progress=False)
        (kept,) = tmp_path.glob(".out.*")
        assert kept in left
    finally:
        living.kill()
        living.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find processes in")
def test_readers_end_with_who_started_them(tmp_path):
    logs = some_logs(tmp_path / "logs")
    os.mkfifo(tmp_path / "logs" / "pipe.csv")
    command = [sys.executable, "-m", "skiprec", "prepare", *logs, tmp_path / "logs" / "pipe.csv"]
    process = subprocess.Popen([*command, "--out", tmp_path / "out", "--processes", "2"])
    readers: list[int] = []
    while len(readers) < 2 and process.poll() is None:
        time.sleep(0.2)
        readers = children(process.pid)
    time.sleep(2)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/task").exists() for pid in readers):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}/task").exists() for pid in readers)
    assert len(readers) == 2


def test_a_scratch_folder_without_its_mark_is_removed_and_one_on_a_disk_without_locks_is_made(tmp_path, monkeypatch):
    (tmp_path / ".out.1.scratch").mkdir()
    (tmp_path / ".out.1.scratch" / "0-0.arrow").touch()
    with scratch_beside(tmp_path / "out") as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]

    def no_locks(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(skiprec.files.fcntl, "flock", no_locks)
    (tmp_path / ".out.2.scratch").mkdir()
    (tmp_path / ".out.2.scratch" / "in-use").touch()
    with scratch_beside(tmp_path / "out"):
        assert (tmp_path / ".out.2.scratch").exists()  # it may be somebody's


def test_all_chunks_of_a_process_share_what_their_numbers_mean(tmp_path, in_small_pieces):
    """It is as large as the catalogue, and there are as many chunks as the log has parts."""
    (tmp_path / "scratch").mkdir()
    log = read_logs(some_logs(tmp_path / "logs"), Reading(), tmp_path / "scratch", progress=False)
    assert len(log.chunks) > 3
    assert len({id(source.items) for source in log.chunks}) == 1


def children(pid: int) -> list[int]:
    """The reading processes of one: those that were spawned to do work."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_shares_are_of_about_the_same_size():
    files = [Path(str(i)) for i in range(7)]
    found = shares(files, [50, 10, 10, 10, 30, 0, 0], 2)
    assert sorted(pair for share in found for pair in share) == list(enumerate(files))
    sizes = [50, 10, 10, 10, 30, 0, 0]
    assert sorted(sum(sizes[i] for i, _ in share) for share in found) == [50, 60]
