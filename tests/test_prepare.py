"""From logs to a dataset folder: which sessions are kept, how items are numbered, what is left after a failure."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_logs import HEADER, log_row, log_session, write_log

from skiprec.digests import columns_of, table_digests
from skiprec.errors import ConfigError, DatasetError, OutputError
from skiprec.prepare import Manifest, PrepareConfig, prepare_logs
from skiprec.schema import ITEMS, SESSIONS
from skiprec.synthetic import synthesize_logs

SMALL = PrepareConfig(min_length=4, max_length=6)


def prepare(
    tmp_path: Path, rows: list[str], config: PrepareConfig = SMALL, name: str = "out"
) -> tuple[Manifest, list, list]:
    """The manifest, sessions and items of these log lines."""
    manifest = prepare_logs([write_log(tmp_path / f"{name}.csv", rows)], tmp_path / name, config=config, progress=False)
    return manifest, *(pq.read_table(tmp_path / name / f"{t}.parquet").to_pylist() for t in ("sessions", "items"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden things too."""
    return sorted(os.listdir(folder))


def test_a_session_becomes_a_row_of_numbers_by_sorted_id(tmp_path):
    rows = log_session("s2", ["t9", "t10", "t9", "t3", "t1"], [0, 1, 2, 3, 0])
    rows += log_session("s10", ["t3", "t3", "t2", "t9"], [3, 3, 0, 0], context="charts", date="2018-07-14")
    manifest, sessions, items = prepare(tmp_path, rows)
    # As texts: s10 < s2 and t1 < t10 < t2 < t3 < t9.
    assert [(s["session_id"], str(s["date"]), s["items"], s["skip_levels"], s["contexts"]) for s in sessions] == [
        ("s10", "2018-07-14", [4, 4, 3, 5], [3, 3, 0, 0], ["charts"] * 4),
        ("s2", "2018-07-15", [5, 2, 5, 4, 1], [0, 1, 2, 3, 0], ["radio"] * 5),
    ]
    # Training prefixes are t3, t3 and t9, t10, t9: the last two plays of each session are held out.
    assert [tuple(i.values()) for i in items] == [(1, "t1", 0), (2, "t10", 1), (3, "t2", 0), (4, "t3", 2), (5, "t9", 2)]
    assert manifest.counts == {
        "rows_read": 9,
        "sessions_read": 2,
        "sessions": 2,
        "items": 5,
        "rows": 9,
        "truncated": 0,
        "skip_level_0": 4,
        "skip_level_1": 1,
        "skip_level_2": 1,
        "skip_level_3": 3,
        "skipped": 4,
        "no_flag": 0,
        "not_nested": 0,
        "sessions_over_several_dates": 0,
    }
    assert manifest.sources == [{"file": "out.csv", "rows": 9}]
    assert pq.read_schema(tmp_path / "out" / "sessions.parquet").equals(SESSIONS)
    assert pq.read_schema(tmp_path / "out" / "items.parquet").equals(ITEMS)
    assert names(tmp_path / "out") == ["items.parquet", "manifest.json", "sessions.parquet"]
    assert Manifest.read(tmp_path / "out") == manifest
    assert manifest.digest == manifest.digests["dataset"]
    assert manifest.config == SMALL


@pytest.mark.parametrize(
    "positions",
    [[2, 3, 4, 5], [1, 2, 3], [1, 2, 4, 5], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [-1, 1, 2, 3, 5]],
)
def test_a_session_without_exactly_its_positions_is_dropped_as_incomplete(tmp_path, positions):
    rows = log_session("good", list("abcde"))
    rows += [log_row("bad", position, 5, f"only_here{position}") for position in positions]
    manifest, sessions, items = prepare(tmp_path, rows)
    assert [s["session_id"] for s in sessions] == ["good"]
    assert [i["item_id"] for i in items] == list("abcde")  # items of dropped sessions are not in the catalogue
    assert manifest.dropped == {"incomplete": 1, "too_short": 0, "no_skips": 0}
    assert manifest.counts["sessions_read"] == 2


def test_a_session_is_too_short_below_min_length_only(tmp_path):
    rows = log_session("three", list("abc")) + log_session("four", list("abcd"))
    manifest, sessions, _ = prepare(tmp_path, rows)
    assert [s["session_id"] for s in sessions] == ["four"]
    assert manifest.dropped == {"incomplete": 0, "too_short": 1, "no_skips": 0}


def test_a_longer_session_keeps_its_last_items(tmp_path):
    dates = [f"2018-07-{day}" for day in (13, 14, 15, 15, 15, 15, 15, 15)]
    rows = [log_row("long", i, 8, item, 3 * (i == 3), date=dates[i - 1]) for i, item in enumerate("abcdefgh", 1)]
    rows += log_session("six", list("cdefgh"))
    manifest, sessions, items = prepare(tmp_path, rows)
    assert sessions[0]["items"] == sessions[1]["items"] == [1, 2, 3, 4, 5, 6]
    assert sessions[0]["skip_levels"] == [3, 0, 0, 0, 0, 0]
    assert str(sessions[0]["date"]) == "2018-07-13"  # of the session's first row, whether kept or not
    assert [i["item_id"] for i in items] == list("cdefgh")
    assert [i["plays"] for i in items] == [2, 2, 2, 2, 0, 0]
    assert (manifest.counts["truncated"], manifest.counts["rows"], manifest.counts["rows_read"]) == (1, 12, 14)
    assert manifest.counts["sessions_over_several_dates"] == 0  # what is left of it has one date


@pytest.mark.parametrize(("threshold", "kept", "skipped"), [(1, "abc", 3), (2, "bc", 2), (3, "c", 1)])
def test_the_threshold_says_which_levels_are_skips(tmp_path, threshold, kept, skipped):
    config = dataclasses.replace(SMALL, skip_threshold=threshold, only_sessions_with_skips=True)
    rows = [
        line
        for name, level in zip("0abc", range(4), strict=True)
        for line in log_session(name, list("wxyz"), [0, level, 0, 0])
    ]
    manifest, sessions, _ = prepare(tmp_path, rows, config)
    assert [s["session_id"] for s in sessions] == list(kept)
    assert manifest.counts["skipped"] == skipped
    assert manifest.dropped == {"incomplete": 0, "too_short": 0, "no_skips": 4 - len(kept)}


def test_a_skip_that_is_cut_off_does_not_keep_a_session(tmp_path):
    rows = log_session("cut", list("abcdefg"), [3, 0, 0, 0, 0, 0, 0]) + log_session(
        "kept", list("abcdefg"), [0, 3] + [0] * 5
    )
    config = dataclasses.replace(SMALL, only_sessions_with_skips=True)
    assert [s["session_id"] for s in prepare(tmp_path, rows, config)[1]] == ["kept"]


def test_sessions_without_skips_are_kept_unless_told_otherwise(tmp_path):
    assert prepare(tmp_path, log_session("s", list("abcd")))[0].counts["sessions"] == 1


def test_odd_flags_and_several_dates_are_counted(tmp_path):
    rows = log_session("s", list("abcd"), [0, 1, 2, 3])
    rows += [log_row("o", 1, 4, "a", skip_2="True", not_skipped="False")]  # skip_2 without skip_3
    rows += [
        log_row("o", 2, 4, "b", not_skipped="False"),
        log_row("o", 3, 4, "b", date="2018-07-16"),
        log_row("o", 4, 4, "b"),
    ]
    rows += [log_row("dropped", 1, 4, "b", not_skipped="False")]
    counts = prepare(tmp_path, rows)[0].counts
    assert (counts["not_nested"], counts["no_flag"], counts["sessions_over_several_dates"]) == (1, 1, 1)
    assert counts["skip_level_2"] == 2


def test_order_of_rows_and_files_changes_nothing_that_is_written(tmp_path):
    rows = [
        line
        for s in range(40)
        for line in log_session(f"s{s}", [f"t{s * i % 23}" for i in range(6)], [0, 1, 2, 3, 0, 0])
    ]
    whole = write_log(tmp_path / "x.csv", rows)
    prepare_logs([whole], tmp_path / "a", config=SMALL, progress=False)
    random.Random(1).shuffle(rows)
    (tmp_path / "logs").mkdir()
    for i in range(3):
        write_log(tmp_path / "logs" / f"{i}.csv.gz", rows[i::3])
    prepare_logs([tmp_path / "logs"], tmp_path / "b", config=SMALL, progress=False)
    prepare_logs([tmp_path / "logs" / f"{i}.csv.gz" for i in (2, 0, 1)], tmp_path / "c", config=SMALL, progress=False)
    assert tree(tmp_path / "b") == tree(tmp_path / "c")
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a["sessions.parquet"] == b["sessions.parquet"]
    assert a["items.parquet"] == b["items.parquet"]
    assert Manifest.read(tmp_path / "a").digests == Manifest.read(tmp_path / "b").digests


def test_files_that_end_within_a_session_change_nothing(tmp_path):
    """In order, each file but the first goes on where the one before it was cut: also in a dropped session."""
    rows = [row for s in range(8) for row in log_session(f"s{s}", list("abcdefgh")[s:], [2] * (8 - s))]
    whole, _, _ = prepare(tmp_path, rows, name="whole")
    (tmp_path / "parts").mkdir()
    for i in range(0, len(rows), 3):
        write_log(tmp_path / "parts" / f"{i:02}.csv", rows[i : i + 3])
    parts = prepare_logs([tmp_path / "parts"], tmp_path / "out", config=SMALL, progress=False)
    assert (parts.digests, parts.counts, parts.dropped) == (whole.digests, whole.counts, whole.dropped)
    assert whole.dropped["too_short"] > 0


PEAK = """
import pathlib, sys
from skiprec.cli import main
sys.argv[:1] = ["skiprec", "prepare"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
# Not getrusage: it counts what the parent process held, too.
print("torch" in sys.modules, pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak(logs: list[Path], out: Path) -> int:
    """Bytes that `skiprec prepare` holds at most; it does without torch."""
    command = [sys.executable, "-c", PEAK, *map(str, logs), "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loads_torch, size = done.stdout.splitlines()[-1].split()
    assert loads_torch == "False"
    return int(size) * 1024


HAS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status to read memory from")


@HAS_PROC
def test_the_command_does_not_load_torch(tmp_path):
    """It would take longer to load than most logs to prepare, and as much memory."""
    assert peak([write_log(tmp_path / "log.csv", log_session("s", list("abcdefghij")))], tmp_path / "out") < 200e6


@pytest.mark.slow
@HAS_PROC
def test_memory_hardly_grows_with_the_log(tmp_path):
    """Four times the sessions of one catalogue, many chunks of them: what preparing takes more for a row.

    Peaks of one log differ by some 40 MB, as threads meet: over ten million rows that is 4 bytes a row.
    """
    logs = synthesize_logs(tmp_path / "logs", sessions=800_000, items=20_000, seed=1, progress=False)
    peaks, rows = [], []
    for n in (4, 16):
        peaks.append(peak(logs[:n], tmp_path / f"out{n}"))
        rows.append(Manifest.read(tmp_path / f"out{n}").counts["rows_read"])
    assert rows[1] - rows[0] > 10_000_000
    assert (peaks[1] - peaks[0]) / (rows[1] - rows[0]) < 12


GIGABYTES = float(os.environ.get("SKIPREC_GIGABYTES", "0.2"))


@pytest.mark.slow
@HAS_PROC
def test_large_logs_of_a_million_tracks_are_prepared_in_bounded_memory(tmp_path):
    """Two gigabytes in 600 MB, any more in 1.5 GB. In full: SKIPREC_GIGABYTES=20."""
    script = Path(__file__).parent.parent / "scripts" / "bench_prepare.py"
    spec = importlib.util.spec_from_file_location("bench_prepare", script)
    bench_prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench_prepare)
    (tmp_path / "logs").mkdir()
    logs = bench_prepare.make_logs(tmp_path / "logs", GIGABYTES, 1_000_000)
    assert sum(path.stat().st_size for path in logs) > 0.9e9 * GIGABYTES
    held = peak(logs, tmp_path / "out")
    print(f"{GIGABYTES:g} GB: {held / 1e6:.0f} MB")
    assert held < (600e6 if GIGABYTES <= 2 else 1500e6)


@pytest.mark.parametrize("row", [log_row("s", 4, 4, "d"), log_row("s", 4, "x")])
def test_arrow_allocates_as_before_when_preparing_is_over(tmp_path, row):
    default = pa.default_memory_pool()
    others = [name for name in pa.supported_memory_backends() if name != "system"]
    if not others:
        pytest.skip("this pyarrow has the system's allocator alone")
    pa.set_memory_pool(getattr(pa, f"{others[0]}_memory_pool")())
    try:
        with contextlib.suppress(DatasetError):
            prepare(tmp_path, [*log_session("s", list("abcd"))[:3], row])
        assert pa.default_memory_pool().backend_name == others[0]
    finally:
        pa.set_memory_pool(default)


def test_contexts_are_those_of_the_kept_rows_alone(tmp_path):
    rows = log_session("a", list("abc"), context="charts")  # too short
    rows += [log_row("b", i, 8, "t", context="catalog" if i <= 3 else "radio") for i in range(1, 9)]
    rows += log_session("c", list("abcd"), context="catalog")
    _, sessions, _ = prepare(tmp_path, rows)
    assert [s["contexts"] for s in sessions] == [["catalog"] + ["radio"] * 5, ["catalog"] * 4]
    contexts = pq.read_table(tmp_path / "out" / "sessions.parquet")["contexts"].combine_chunks().flatten()
    assert contexts.dictionary.to_pylist() == ["catalog", "radio"]


def test_another_setting_or_value_makes_another_digest(tmp_path):
    rows = log_session("s", list("abcd"))
    digests = [prepare(tmp_path, rows, name="a")[0].digests]
    digests.append(prepare(tmp_path, rows, dataclasses.replace(SMALL, skip_threshold=3), "b")[0].digests)
    assert digests[0]["sessions"] == digests[1]["sessions"]
    for i, other in enumerate(({"level": 1}, {"context": "charts"}, {"date": "2018-07-14"}, {"item": "e"})):
        digests.append(
            prepare(tmp_path, [log_row("s", 1, 4, **({"item": "a"} | other)), *rows[1:]], name=f"c{i}")[0].digests
        )
    assert len({d["dataset"] for d in digests}) == len(digests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_length": 3}, "min_length is 3, expected 4 or more: two items to train on and two held out"),
        ({"max_length": 9}, "max_length (9) is smaller than min_length (10): no session fits"),
        ({"skip_threshold": 0}, "skip_threshold is 0, expected 1, 2 or 3"),
        ({"skip_threshold": 4}, "skip_threshold is 4, expected 1, 2 or 3"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        PrepareConfig(**change)
    assert str(caught.value) == message


def test_defaults_are_those_of_the_semantics():
    assert dataclasses.asdict(PrepareConfig()) == {
        "min_length": 10,
        "max_length": 20,
        "skip_threshold": 2,
        "only_sessions_with_skips": False,
        "split": "leave_one_out",
    }


def test_no_usable_session_is_an_error_with_the_dropped_counts(tmp_path):
    rows = [log_row("a", 2, 3), log_row("b", 1, 2), *log_session("c", list("xyz"))]
    with pytest.raises(DatasetError) as caught:
        prepare(tmp_path, rows)
    assert str(caught.value) == (
        f"{tmp_path}/out.csv: none of 3 sessions can be used (2 incomplete, 1 too_short, 0 no_skips), "
        "expected at least one of positions 1..session_length and 4 rows or more"
    )
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (HEADER.encode(), "has a header and no rows"),
        (f"{HEADER}\n{log_row(position='x')}".encode(), "row 2: session_position is 'x'"),
        (f"{HEADER}\n{log_row()}\n{log_row()}".encode(), "row 3: session 's', position 1 is already in"),
        (f"{HEADER}\n{log_row(skip_2='1')}".encode(), "row 2: both skip_2 and not_skipped are true"),
        (HEADER.replace("date", "day").encode(), "row 1: no column date"),
        (b"\x1f\x8b\x08\x00", "row 1: the gzip data ends here"),
    ],
)
def test_bad_logs_leave_nothing_behind(tmp_path, content, message):
    log = tmp_path / "log.csv"
    log.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        prepare_logs([log], tmp_path / "out", progress=False)
    assert tree(tmp_path) == {"log.csv": content}
    assert names(tmp_path) == ["log.csv"]


@pytest.mark.parametrize("kind", ["file", "empty folder", "dataset"])
def test_an_out_that_exists_is_refused_before_anything_is_read_and_stays_as_it_was(tmp_path, kind):
    if kind == "dataset":
        prepare(tmp_path, log_session("s", list("abcd")))
    elif kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="out already exists; choose another --out, or remove it first"):
        prepare_logs([tmp_path / "no such log"], tmp_path / "out", progress=False)
    assert tree(tmp_path) == before


def test_an_out_under_a_file_is_refused(tmp_path):
    log = write_log(tmp_path / "log.csv", log_session("s", list("abcd")))
    with pytest.raises(OutputError, match=r"log\.csv/out: cannot be written"):
        prepare_logs([log], log / "out", config=SMALL, progress=False)
    assert names(tmp_path) == ["log.csv"]


FULL_DISK = """
import pathlib, resource, sys
from skiprec.errors import OutputError
from skiprec.prepare import prepare_logs
for size in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        prepare_logs([sys.argv[1]], sys.argv[2], progress=False)
        print(size, "written")
    except OutputError as error:
        print(size, error)
    print(*sorted(p.name for p in pathlib.Path(sys.argv[2]).parent.iterdir()), flush=True)
"""


def test_a_full_disk_is_an_output_error_at_ten_sizes_and_leaves_nothing(tmp_path):
    """A file-size limit stands for the disk; the last size is enough, or the others would prove nothing."""
    items = [f"t{random.Random(i).random()}" for i in range(5000)]
    rows = [line for s in range(300) for line in log_session(f"s{s:03}", items[s * 13 : s * 13 + 12])]
    log = write_log(tmp_path / "log.csv", rows)
    prepare_logs([log], tmp_path / "out", progress=False)
    sizes = {name: len(content) for name, content in tree(tmp_path / "out").items()}
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    (tmp_path / "out").rmdir()
    most = max(sizes.values())
    limits = [0, 1, 3, 100, 700, sizes["manifest.json"], 4096, sizes["sessions.parquet"], most // 2, most - 1]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, log, tmp_path / "out", *map(str, [*limits, most])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    for size, line in zip(limits, said[:-1], strict=True):
        assert line.startswith(f"{size} {tmp_path}/out: cannot be written (")
        assert "nothing was left there" in line
    assert left[:-1] == ["log.csv"] * len(limits)
    assert (said[-1], left[-1]) == (f"{most} written", "log.csv out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"format is \[\], expected 1"),
        ('{"format": 2}', "format is 2, expected 1; prepare the logs again"),
        ('{"format": 1}', "settings is None, expected a dict"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("settings", {"min_length": 2}, "settings: min_length is 2, expected 4 or more"),
        ("settings", {"surprise": 1}, "settings: .*surprise"),
        ("digests", {"items": None}, "digests has no items"),
    ],
)
def test_a_manifest_with_a_part_changed_to_nonsense_is_refused(tmp_path, name, change, message):
    prepare(tmp_path, log_session("s", list("abcd")))
    path = tmp_path / "out" / "manifest.json"
    values = json.loads(path.read_text())
    values[name] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=message):
        Manifest.read(tmp_path / "out")


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot be read .*, expected a folder made by `skiprec prepare`"):
        Manifest.read(tmp_path)


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """The excerpt of real logs, where this machine has it."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "mssd_head100k"
    path = Path(os.environ.get("SKIPREC_REAL_LOGS", beside))
    if not path.exists():
        pytest.skip(f"no real logs at {path}; SKIPREC_REAL_LOGS can name a folder of them")
    return path


@pytest.mark.real_logs
def test_counts_of_the_real_logs_are_those_of_pandas_alone(real_logs, tmp_path):
    manifest = prepare_logs([real_logs], tmp_path / "out", progress=False)
    assert (manifest.counts["sessions"], manifest.counts["items"]) == (5955, 34870)
    assert manifest.dropped == {"incomplete": 1, "too_short": 0, "no_skips": 0}
    assert manifest.counts["skipped"] / manifest.counts["rows"] == pytest.approx(0.517, abs=5e-4)

    log = pd.concat([pd.read_csv(path) for path in sorted(real_logs.glob("*.csv.gz"))])
    whole = log.groupby("session_id").session_position.transform("size") == log.session_length
    kept = log[whole]
    level = kept.skip_1.astype(int).where(kept.skip_1, 0) * 3
    level = level.where(kept.skip_1, 2 * kept.skip_2).where(kept.skip_1 | kept.skip_2, kept.skip_3.astype(int))
    assert manifest.counts == {
        "rows_read": len(log),
        "sessions_read": log.session_id.nunique(),
        "sessions": kept.session_id.nunique(),
        "items": kept.track_id_clean.nunique(),
        "rows": len(kept),
        "truncated": 0,
        **{f"skip_level_{n}": int((level == n).sum()) for n in range(4)},
        "skipped": int((kept.skip_1 | kept.skip_2).sum()),
        "no_flag": int((~(kept.skip_1 | kept.skip_2 | kept.skip_3 | kept.not_skipped)).sum()),
        "not_nested": int(((kept.skip_1 & ~kept.skip_2) | (kept.skip_2 & ~kept.skip_3)).sum()),
        "sessions_over_several_dates": int((kept.groupby("session_id").date.nunique() > 1).sum()),
    }
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pandas().set_index("item_id").plays
    prefix = kept[kept.session_position <= kept.session_length - 2]
    plays = prefix.track_id_clean.value_counts().reindex(sorted(kept.track_id_clean.unique()), fill_value=0)
    assert items.to_dict() == plays.to_dict()
    assert list(items.index) == list(plays.index)


def digests(lists: tuple[list, list], numbering: list[str]) -> dict[str, str]:
    """Digests of two sessions of these items, all in one context, with contexts numbered so."""
    arrays = [
        pa.array(["a", "b"]),
        pa.array([0, 0], pa.int32()).cast(pa.date32()),
        pa.array(lists, pa.list_(pa.int32())),
        pa.array([[0] * len(items) for items in lists], pa.list_(pa.int8())),
        pa.ListArray.from_arrays(
            pa.array([0, len(lists[0]), 5], pa.int32()),
            pa.DictionaryArray.from_arrays(pa.array([numbering.index("radio")] * 5, pa.int32()), pa.array(numbering)),
        ),
    ]
    items = pa.table([pa.array([1], pa.int32()), pa.array(["x"]), pa.array([5], pa.int64())], schema=ITEMS)
    return table_digests(columns_of(pa.table(arrays, schema=SESSIONS)), items, {})


def test_a_digest_sees_borders_between_sessions_and_not_how_contexts_are_numbered():
    one = digests(([1, 1], [1, 1, 1]), ["charts", "radio"])
    assert digests(([1, 1], [1, 1, 1]), ["radio", "charts"]) == one
    assert digests(([1, 1, 1], [1, 1]), ["charts", "radio"])["sessions"] != one["sessions"]
