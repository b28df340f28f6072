"""Runs of checked rows, in any order -> events: the runs of some sessions, sorted and checked. Reads no file."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32, Int64, Integer, UInt8

from skiprec.errors import DatasetError

# N rows, K of them kept, R runs, P pairs of neighbouring runs.

SKIP_LEVEL = 3
"""Bits of a row's flags that hold its skip level: 3 where skip_1, else 2 where skip_2, else 1 where skip_3, else 0."""
NOT_NESTED = 4
"""Flag of a row with skip_1 without skip_2, or skip_2 without skip_3."""
NO_FLAG = 8
"""Flag of a row that is neither skipped at any level nor not_skipped."""

BAD = "bad "
"""What the reasons start with for which rows are left out as wrong."""
TWICE, TWO_LENGTHS = f"{BAD}sessions with a position twice", f"{BAD}sessions of two lengths"

RUNS_AT_ONCE = 1 << 16
"""Runs whose rows are put in their place at once."""


@dataclass(frozen=True)
class Order:
    """What tells the order of a session's rows, and where a session ends."""

    by: Literal["position", "time", "rows"] = "position"
    """position: they count a session's rows, each once. time: microseconds; equal ones stay as they stand. rows: there
    are none, and rows stay as they stand, one file after the other by name."""
    gap: int | None = None
    """session_id names a user, whose rows are cut into sessions where times are further apart than this."""


@dataclass(frozen=True)
class Rows:
    """Checked rows of a file, in its order."""

    session_id: pa.StringArray
    item_id: pa.StringArray
    position: Int64[np.ndarray, " N"]
    """Or microseconds since 1970, or whatever else `Order` says."""
    session_length: Int32[np.ndarray, " N"]
    """0 where the log does not say."""
    date: Int32[np.ndarray, " N"]
    """Days since 1970-01-01."""
    context: Int32[np.ndarray, " N"]
    """Numbers from the Codes that the reader was given."""
    flags: UInt8[np.ndarray, " N"]
    """SKIP_LEVEL, NOT_NESTED, NO_FLAG."""
    row: Int64[np.ndarray, " N"]
    """Of the file, as people count: what messages name."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows near these that were left out, by reason."""
    notes: tuple[str, ...] = ()
    """What is odd about the file, and was taken all the same."""


@dataclass(frozen=True)
class Runs:
    """Rows of one session that follow each other in a file and in position, alike in all but item and flags.

    Logs are mostly in order, so there are few more runs than sessions. In a log without any order each row is one.
    """

    session: Int32[np.ndarray, " R"]
    position: Int64[np.ndarray, " R"]
    """Of the first row."""
    n_rows: Int32[np.ndarray, " R"]
    session_length: Int32[np.ndarray, " R"]
    date: Int32[np.ndarray, " R"]
    context: Int32[np.ndarray, " R"]
    file: Int32[np.ndarray, " R"]
    """Which of the files."""
    row: Int64[np.ndarray, " R"]
    """Of the first row, in the file."""


@dataclass(frozen=True)
class Events:
    """Rows of the logs, sorted by session id and position: all of some sessions. Numbers are those of sorted texts."""

    order: Order

    runs: Runs
    """What the rows say but for the following."""
    item: Int32[np.ndarray, " N"]
    flags: UInt8[np.ndarray, " N"]
    session_ids: pa.StringArray
    left_out: dict[str, int]
    """Rows of these sessions that were left out, by reason."""


def events_of(
    runs: Mapping[str, Integer[np.ndarray, " R"]],
    session_id: pa.StringArray,
    item: Int32[np.ndarray, " N"],
    flags: UInt8[np.ndarray, " N"],
    order: Order,
    sources: list[tuple[Path, int]],
    *,
    leave_bad_out: bool,
) -> Events:
    """Runs in any order as events.

    Args:
        runs: The columns of `Runs` but for the session.
        session_id: Of each run.
        item: Of the rows of all runs in turn: the number of its sorted text.
        flags: Likewise.
        order: What positions mean.
        sources: Each file with its number of rows, for messages.
        leave_bad_out: Whether sessions that contradict themselves are left out, and counted, rather than refused.

    Raises:
        DatasetError: If a session has a position twice, or says two lengths, and is not to be left out.
    """
    encoded = session_id.dictionary_encode()
    by_text = pc.array_sort_indices(encoded.dictionary)
    places = np.empty(len(by_text), dtype=np.int32)
    places[by_text.to_numpy()] = np.arange(len(by_text), dtype=np.int32)
    session_ids = encoded.dictionary.take(by_text)
    columns = {"session": places[encoded.indices.to_numpy()], **runs}
    first_row = np.cumsum(columns["n_rows"], dtype=np.int64) - columns["n_rows"]
    ordered = in_order(columns, order)
    sorted_runs = Runs(**{name: column[ordered] for name, column in columns.items()})
    first_row = first_row[ordered]
    left_out: Counter[str] = Counter()
    if order.by == "position":
        if leave_bad_out:
            keep = without_contradictions(sorted_runs, left_out)
            sorted_runs = Runs(**{f.name: getattr(sorted_runs, f.name)[keep] for f in dataclasses.fields(Runs)})
            first_row = first_row[keep]
        check_runs(sorted_runs, session_ids, sources)
    if order.gap is not None:
        sorted_runs, first_row, session_ids = cut(sorted_runs, first_row, session_ids, order.gap)
    return Events(
        order=order,
        runs=sorted_runs,
        item=in_order_of_runs(item, first_row, sorted_runs.n_rows),
        flags=in_order_of_runs(flags, first_row, sorted_runs.n_rows),
        session_ids=session_ids,
        left_out=dict(left_out),
    )


def without_contradictions(runs: Runs, left_out: Counter[str]) -> Bool[np.ndarray, " R"]:
    """The runs of sessions in which no position is twice, and that say one length. Counts the others' rows."""
    has_twice, has_two_lengths = contradictions(runs)
    keep = np.ones(len(runs.session), dtype=bool)
    for reason, where in ((TWICE, has_twice), (TWO_LENGTHS, has_two_lengths)):
        is_bad = keep & np.isin(runs.session, runs.session[1:][where])
        if is_bad.any():
            left_out[reason] += int(runs.n_rows[is_bad].sum())
        keep &= ~is_bad
    return keep


def in_order(columns: Mapping[str, np.ndarray], order: Order) -> Int64[np.ndarray, " R"]:
    """The runs' places, by session and position or time; equal ones by where they stand."""
    session, position = columns["session"].astype(np.int64), columns["position"]
    if order.by == "rows":
        return np.lexsort((columns["row"], columns["file"], session))
    if order.by == "position":
        return np.argsort((session << 32) + position, kind="stable")
    return np.lexsort((columns["row"], columns["file"], position, session))


def cut(
    runs: Runs, first_row: Int64[np.ndarray, " R"], user_ids: pa.StringArray, gap: int
) -> tuple[Runs, Int64[np.ndarray, " R"], pa.StringArray]:
    """Sessions in place of users: the n-th of user U has the id U/n, n from 1."""
    is_new_user = np.diff(runs.session, prepend=-1) != 0
    is_start = is_new_user.copy()
    is_start[1:] |= runs.position[1:] - (runs.position + runs.n_rows - 1)[:-1] > gap
    of_session = np.flatnonzero(is_start)
    session = np.cumsum(is_start) - 1  # (R,)
    first_of_user = np.maximum.accumulate(np.where(is_new_user, session, 0))
    numbers = (session - first_of_user + 1)[of_session]
    users = user_ids.take(pa.array(runs.session[of_session]))
    names = pc.binary_join_element_wise(users, pa.array(numbers).cast(pa.string()), "/")
    by_name = pc.array_sort_indices(names).to_numpy()
    places = np.empty(len(names), dtype=np.int32)
    places[by_name] = np.arange(len(names), dtype=np.int32)
    order = np.argsort(places[session], kind="stable")
    cut_runs = dataclasses.replace(runs, session=places[session])
    moved = Runs(**{f.name: getattr(cut_runs, f.name)[order] for f in dataclasses.fields(Runs)})
    return moved, first_row[order], names.take(pa.array(by_name))


def in_order_of_runs(
    values: Integer[np.ndarray, " N"], first_row: Int64[np.ndarray, " R"], n_rows: Int32[np.ndarray, " R"]
) -> Integer[np.ndarray, " K"]:
    """The values of all runs in turn, each of them at `n_rows` places from `first_row` on."""
    ends = np.cumsum(n_rows, dtype=np.int64)
    n = int(ends[-1]) if len(ends) else 0
    if np.array_equal(first_row, ends - n_rows):
        return values[:n]
    ordered = np.empty(n, dtype=values.dtype)
    for i in range(0, len(n_rows), RUNS_AT_ONCE):
        some = slice(i, i + RUNS_AT_ONCE)
        start, end = ends[i] - n_rows[i], ends[some][-1]
        offset = first_row[some] - (ends[some] - n_rows[some])  # from a row's new place to its old one
        ordered[start:end] = values[np.repeat(offset, n_rows[some]) + np.arange(start, end)]
    return ordered


def check_runs(runs: Runs, session_ids: pa.StringArray, sources: list[tuple[Path, int]]) -> None:
    """Refuse a session that has a position twice, or two lengths."""
    has_twice, has_two_lengths = contradictions(runs)
    if (i := first_true(has_twice)) is not None:
        position = int(runs.position[i + 1])
        offset = position - int(runs.position[i])
        one, other = sorted(
            ((int(runs.file[j]), int(runs.row[j]) + extra) for j, extra in ((i, offset), (i + 1, 0))),
        )
        raise DatasetError(
            f"{place(sources, *other)}: session {shorten(session_ids[int(runs.session[i])].as_py())}, position "
            f"{position} is already in {place(sources, *one)}, expected each position once"
        )
    if (i := first_true(has_two_lengths)) is not None:
        lengths = runs.session_length
        last_row = int(runs.row[i]) + int(runs.n_rows[i]) - 1
        raise DatasetError(
            f"{place(sources, int(runs.file[i + 1]), int(runs.row[i + 1]))}: session_length is {lengths[i + 1]}, but "
            f"{lengths[i]} in {place(sources, int(runs.file[i]), last_row)} of the same session, expected one length a "
            "session"
        )


def contradictions(runs: Runs) -> tuple[Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Of pairs of neighbouring runs: which are of one session and share a position, and which say other lengths."""
    is_same_session = runs.session[1:] == runs.session[:-1]
    # Sorted by first position, runs that overlap include two neighbours, and the first such two start to overlap at
    # the first position that is there twice.
    gap = runs.position[1:] - runs.position[:-1] - runs.n_rows[:-1]
    return is_same_session & (gap < 0), is_same_session & (np.diff(runs.session_length) != 0)


def first_true(flags: Bool[np.ndarray, " N"]) -> int | None:
    """Index of the first true one."""
    return int(flags.argmax()) if flags.any() else None


def place(sources: list[tuple[Path, int]], file: int, row: int) -> str:
    """File and row, as messages name them."""
    return f"{sources[file][0]}, row {row}"


def shorten(text: str) -> str:
    """The text in quotes on one line, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
