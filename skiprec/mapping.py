"""Blocks of a log's own columns + what they mean -> checked rows. Wrong rows are refused, or left out and counted."""

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int64, UInt8

from skiprec.columns import ColumnMap, TimeUnit
from skiprec.errors import DatasetError
from skiprec.events import BAD, NO_FLAG, NOT_NESTED, Rows, shorten
from skiprec.formats import Block, read_blocks
from skiprec.logs import MISSING, day_of, whole_number
from skiprec.numbering import Codes

# N rows.

YES, NO = frozenset(("true", "1", "1.0", "yes", "y", "t")), frozenset(("false", "0", "0.0", "no", "n", "f"))
"""In any case of letters."""
SECOND = 1_000_000
"""In microseconds."""
DAY = 86_400 * SECOND
UNITS: dict[TimeUnit, int] = {"s": SECOND, "ms": 1000, "us": 1}
LATEST = 253_402_300_800 * SECOND
"""The end of the year 9999, in microseconds since 1970; nothing is that far before 1970 either."""
NO_CONTEXT = "none"
JOINT = " / "
"""Between the texts of several columns."""
OTHER_EVENT = "of other kinds of events"
Reason = tuple[str, str, str]
"""Of a wrong row: column, what was found, what was expected."""


def read_mapped(
    path: Path,
    columns: ColumnMap,
    contexts: Codes,
    *,
    leave_bad_out: bool,
    advance: Callable[[int], object] = lambda n: None,
) -> Iterator[Rows]:
    """Read one file in blocks of checked rows.

    Args:
        path: A file of the map's format.
        columns: What its columns mean.
        contexts: Numbers kinds of context. New ones are added.
        leave_bad_out: Whether rows that are wrong are left out, and counted, rather than refused.
        advance: Told how many more bytes of the file are read.

    Raises:
        DatasetError: With file and row, what was found and what was expected.
    """
    for block in read_blocks(path, columns, advance):
        yield rows_of(path, block, columns, contexts, leave_bad_out)


def rows_of(path: Path, block: Block, columns: ColumnMap, contexts: Codes, leave_bad_out: bool) -> Rows:
    """The rows of a block that are right.

    Raises:
        DatasetError: At the first wrong row, if these are not left out.
    """
    found = Fields(block)
    session = found.texts(columns.session or columns.user)
    item = pc.binary_join_element_wise(*[found.texts(name) for name in columns.item], JOINT)
    position, date = found.position_and_date(columns)
    length = (
        found.numbers(columns.session_length, whole_number, "a whole number")
        if columns.session_length
        else np.zeros(len(block.row), dtype=np.int64)
    )
    context = found.contexts(columns.context, contexts)
    flags, is_other = found.flags(columns)
    wrong = {int(block.row[i]): reason for i, reason in found.wrong.items()}
    wrong |= {row: ("row", "", why) for row, why in block.bad.items()}
    if wrong and not leave_bad_out:
        row = min(wrong)
        raise DatasetError(f"{path}, row {row}: {said(wrong[row])}")
    left_out = Counter(f"{BAD}{column}" for column, _, _ in wrong.values())
    keep = ~is_other
    keep[list(found.wrong)] = False
    if others := int((is_other & ~np.isin(np.arange(len(keep)), list(found.wrong))).sum()):
        left_out[OTHER_EVENT] += others
    kept = pa.array(np.flatnonzero(keep))
    return Rows(
        session_id=session.take(kept),
        item_id=item.take(kept),
        position=position[keep],
        session_length=length[keep].astype(np.int32),
        date=date[keep].astype(np.int32),
        context=context[keep].astype(np.int32),
        flags=flags[keep],
        row=block.row[keep],
        left_out=dict(left_out),
        notes=block.notes,
    )


def said(reason: Reason) -> str:
    """Found and expected, of a wrong row."""
    column, value, expected = reason
    if column == "row":
        return expected
    return f"{column} is {'missing' if value in MISSING else shorten(value)}, expected {expected}"


class Fields:
    """The columns of a block as numbers, and the rows in which one of them is wrong.

    Args:
        block: As text.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.wrong: dict[int, Reason] = {}
        """By the row's place in the block: the first thing that is wrong with it."""

    def texts(self, name: str) -> pa.StringArray:
        """A column of ids: none may be missing."""
        texts = self.block.columns[name]
        if len(texts):
            self._note(name, pc.is_in(texts, pa.array(sorted(MISSING))).to_numpy(zero_copy_only=False), "a text")
        return texts

    def numbers(self, name: str, number: Callable[[str], float | None], expected: str) -> Int64[np.ndarray, " N"]:
        """Each text's whole number, asked once a distinct text; 0 where it has none."""
        return self._asked(name, number, expected).astype(np.int64)

    def position_and_date(self, columns: ColumnMap) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Where a row stands in its session (or when, in microseconds), and its day since 1970."""
        day = None
        if columns.date:
            unit = columns.time_unit
            day = self.numbers(columns.date, lambda text: day_in(text, unit), "a day such as 2018-07-15")
        if columns.order_by == "rows":
            position = self.block.row.astype(np.int64)
        elif columns.order_by == "position":
            position = self.numbers(columns.order, whole_number, "a whole number")
        else:
            unit = columns.time_unit
            expected = f"a number of {unit} since 1970" if unit in UNITS else "a time such as 2018-07-15T12:30:00"
            position = self.numbers(columns.order, lambda text: time_of(text, unit), expected)
            day = position // DAY if day is None else day
        return position, np.zeros(len(position), dtype=np.int64) if day is None else day

    def contexts(self, names: Sequence[str], contexts: Codes) -> Int64[np.ndarray, " N"]:
        """Each row's number; what a row does not say is NO_CONTEXT."""
        if not names:
            return np.full(len(self.block.row), contexts[NO_CONTEXT])
        columns = [self.block.columns[name] for name in names]
        texts = [pc.if_else(pc.equal(column, ""), NO_CONTEXT, column) for column in columns]
        encoded = pc.binary_join_element_wise(*texts, JOINT).dictionary_encode()
        table = np.array([contexts[text] for text in encoded.dictionary.to_pylist()], dtype=np.int64)
        return table.take(encoded.indices.to_numpy()) if len(table) else table

    def flags(self, columns: ColumnMap) -> tuple[UInt8[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Skip levels with what is odd about them; and where a row is of a kind of event that is left out."""
        skip, n = columns.skip, len(self.block.row)
        level, is_other = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
        true = {name: self._yes(name) for name in skip.true}
        for name, own in skip.true.items():
            level = np.maximum(level, own * true[name])
        for name, own in skip.false.items():
            level = np.maximum(level, own * ~self._yes(name))
        if skip.played:
            share = self._amounts(skip.played, "a number from 0 on")
            if skip.duration:
                duration = self._amounts(skip.duration, "a number above 0", above=True)
                share = share / np.where(duration > 0, duration, 1)
            for less_than, own in skip.below:
                level = np.maximum(level, own * (share < less_than))
        if skip.event:
            kinds = self._asked(skip.event, lambda text: skip.events.get(text, -1), "a kind of event")
            is_other = kinds < 0
            level = np.maximum(level, kinds.astype(np.int64))
        odd = np.zeros(n, dtype=np.int64)
        nested = sorted(skip.true, key=skip.true.get, reverse=True)
        for stronger, weaker in itertools.pairwise(nested):
            odd |= NOT_NESTED * (true[stronger] & ~true[weaker])
        if skip.heard:
            is_heard = self._yes(skip.heard)
            odd |= NO_FLAG * ((level == 0) & ~is_heard)
            self._note(skip.heard, is_heard & (level > 0), "no yes beside a skip")
        return (level | odd).astype(np.uint8), is_other

    def _yes(self, name: str) -> Bool[np.ndarray, " N"]:
        return self._asked(name, yes_or_no, "true or false, yes or no, 1 or 0") > 0

    def _amounts(self, name: str, expected: str, *, above: bool = False) -> Float[np.ndarray, " N"]:
        return self._asked(name, lambda text: amount(text, above), expected).astype(np.float64)

    def _asked(self, name: str, number: Callable[[str], float | None], expected: str) -> np.ndarray:
        """Numbers of texts, asked once a distinct text. Whole ones are exact up to 64 bits."""
        encoded = self.block.columns[name].dictionary_encode()
        numbers = [number(text) for text in encoded.dictionary.to_pylist()]
        is_whole = all(value is None or isinstance(value, int) for value in numbers)
        table = np.array([value or 0 for value in numbers], dtype=np.int64 if is_whole else np.float64)
        places = encoded.indices.to_numpy()
        is_wrong = np.array([value is None for value in numbers], dtype=bool)
        self._note(name, is_wrong.take(places) if len(table) else np.zeros(0, dtype=bool), expected)
        return table.take(places) if len(table) else np.zeros(0, dtype=np.int64)

    def _note(self, name: str, is_wrong: Bool[np.ndarray, " N"], expected: str) -> None:
        for i in np.flatnonzero(is_wrong).tolist():
            self.wrong.setdefault(i, (name, self.block.columns[name][i].as_py(), expected))


def yes_or_no(text: str) -> int | None:
    """1, 0, or None for anything else."""
    lower = text.strip().lower()
    return 1 if lower in YES else 0 if lower in NO else None


def amount(text: str, above: bool) -> float | None:
    """A number from 0 on, or above 0; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and (value > 0 or (value == 0 and not above)) else None


def time_of(text: str, unit: TimeUnit) -> int | None:
    """Microseconds since 1970 of a time; None for anything else.

    A time in text without an offset is UTC. With "auto", a number is of seconds, milliseconds or microseconds by its
    size: seconds until the year 5138, milliseconds from 1973 on.
    """
    if unit in ("auto", "text"):
        try:
            moment = datetime.datetime.fromisoformat(text.strip())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            if unit == "text" or not text.strip().isdigit():  # 20180715 is a day in text, and a number of seconds
                return round(moment.timestamp() * SECOND)
        except (ValueError, OverflowError):
            if unit == "text":
                return None
    try:
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if unit == "auto":
        size = abs(value)
        unit = "s" if size < 1e11 else "ms" if size < 1e14 else "us"
    micros = value * UNITS[unit] if isinstance(value, int) else round(value * UNITS[unit])
    return micros if abs(micros) < LATEST else None


def day_in(text: str, unit: TimeUnit) -> int | None:
    """Days since 1970 of a date, or of a time; None for anything else."""
    day = day_of(text)
    if day is not None:
        return day
    micros = time_of(text, unit)
    return None if micros is None else micros // DAY
