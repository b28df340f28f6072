"""Raw MSSD session logs (CSV, plain or packed) -> checked rows, block by block: the fast path of `reading`."""

import bz2
import dataclasses
import datetime
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Int32

from skiprec.errors import DatasetError
from skiprec.events import NO_FLAG, NOT_NESTED, Rows, shorten
from skiprec.numbering import Codes
from skiprec.schema import LOG_COLUMNS, READ_COLUMNS, SKIP_FLAGS

# N rows.

BLOCK_BYTES = 1 << 22
"""Text that is checked and numbered at once: some 25,000 rows. More is no faster and takes more memory."""
READ_BYTES = 1 << 18
"""Text that is read at once. Small: one large read would lose all its bytes where packed data ends early."""
LONGEST_LINE = 1 << 24
"""Bytes of a line that is read. One that never ends would take all memory."""
PARSED_AT_ONCE = 1 << 20
"""Text that a thread parses at once: as much as stays in cache."""


class ZstdFile:
    """Zstandard data, read as Python reads what it can unpack itself."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self.stream = pa.CompressedInputStream(raw, "zstd")

    def read1(self, size: int) -> bytes:
        """At most so many more bytes; none at the end."""
        return self.stream.read(size)


def gzip_file(raw: io.BufferedReader) -> gzip.GzipFile:
    """Gzip data."""
    return gzip.GzipFile(fileobj=raw)


Packed = gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | ZstdFile
PACKED: dict[str, tuple[str, bytes, Callable[[io.BufferedReader], Packed]]] = {
    ".gz": ("gzip", b"\x1f\x8b", gzip_file),
    ".bz2": ("bzip2", b"BZh", bz2.BZ2File),
    ".xz": ("xz", b"\xfd7zXZ\x00", lzma.LZMAFile),
    ".zst": ("zstd", b"\x28\xb5\x2f\xfd", ZstdFile),
}
"""By suffix: what the data is called, what it starts with, and what unpacks it."""
NAMES = {gzip.GzipFile: "gzip", bz2.BZ2File: "bzip2", lzma.LZMAFile: "xz", ZstdFile: "zstd"}
DAMAGES = (zlib.error, lzma.LZMAError, OSError, pa.ArrowException)
"""What unpacking raises where data is damaged."""

INTEGERS = ("session_position", "session_length")
TRUE_TEXTS, FALSE_TEXTS = ("True", "TRUE", "true", "1"), ("False", "FALSE", "false", "0")
MISSING = frozenset(("", "NA", "NaN", "nan", "NULL", "null", "None"))
"""What programs write where they have no value. A reader that took one for an id would make a track of it."""
PATH_IN_HEADER = f"the header's first field is a path; taken as {LOG_COLUMNS[0]}"
EPOCH = datetime.date(1970, 1, 1)

FEW = pa.dictionary(pa.int32(), pa.string())
"""Of a column of few distinct texts: each is looked at once a block."""
TYPES = {
    "session_id": pa.string(),
    "session_position": FEW,
    "session_length": FEW,
    "track_id_clean": pa.string(),
    **dict.fromkeys(SKIP_FLAGS, pa.bool_()),
    "date": FEW,
    "context_type": FEW,
}


def read_log(path: Path, contexts: Codes, *, advance: Callable[[int], object] = lambda n: None) -> Iterator[Rows]:
    """Read one file in blocks of checked rows.

    Args:
        path: A CSV file of MSSD's columns, plain or gzip, with or without a byte order mark. May have further columns.
        contexts: Numbers context types. New ones are added.
        advance: Told how many more bytes of the file are read.

    Raises:
        DatasetError: With file and row (the header is row 1), what was found and what was expected.
    """
    header: list[str] = []
    n_rows = 0
    for row, text in text_blocks(path, advance):
        if not header:
            first, _, rest = bytes(text).partition(b"\n")
            header, notes = checked_header(path, first)
            row, text = 2, memoryview(rest)
        if text:
            rows = checked_rows(path, row, header, text, contexts)
            yield rows if n_rows else dataclasses.replace(rows, notes=notes)
            n_rows += len(rows.item_id)
    if not header:
        raise DatasetError(f"{path}: is empty, expected a header and rows")
    if not n_rows:
        raise DatasetError(f"{path}: has a header and no rows, expected at least one row")


def text_blocks(path: Path, advance: Callable[[int], object]) -> Iterator[tuple[int, memoryview]]:
    """The file's unpacked text some BLOCK_BYTES at a time: the row of the first line, and whole lines.

    Each line is ended by a line feed. A byte order mark and empty lines at the file's end are dropped.

    Raises:
        DatasetError: If the file cannot be read or unpacked, or a line is longer than LONGEST_LINE.
    """
    row, rest, told = 1, b"", 0
    try:
        with open(path, "rb") as raw:
            file = unpacked(path, raw)
            while True:
                text, problem = read_on(file, rest)
                if problem is not None:
                    row += text.count(b"\n")
                    raise DatasetError(
                        f"{path}, row {row}: {problem}, expected a whole file; copy or download it again"
                    )
                if len(text) == len(rest):
                    break
                advance(raw.tell() - told)
                told = raw.tell()
                if row == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                # The last line stays behind with any line ends after it: only at the end of the file are those surplus.
                cut = text.rstrip(b"\r\n").rfind(b"\n") + 1
                # Only the first line can have begun in an earlier block, and only the last one end in a later one.
                first = text.find(b"\n")
                if max(first, len(text) - cut) > LONGEST_LINE:
                    row += 0 if first > LONGEST_LINE else text.count(b"\n", 0, cut)
                    raise DatasetError(
                        f"{path}, row {row}: a line is longer than {LONGEST_LINE:,} bytes, expected shorter ones"
                    )
                if cut:
                    lines = memoryview(text)[:cut]
                    yield row, lines
                    row += int(np.count_nonzero(np.frombuffer(lines, np.uint8) == ord("\n")))
                rest = text[cut:]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}), expected a CSV log") from error
    if rest := rest.rstrip(b"\r\n"):
        yield row, memoryview(rest + b"\n")


def unpacked(path: Path, raw: io.BufferedReader) -> io.BufferedReader | Packed:
    """The file, or what is packed in it."""
    start = raw.read(6)
    raw.seek(0)
    for suffix, (name, magic, opened) in PACKED.items():
        if start.startswith(magic):
            return opened(raw)
        if path.suffix == suffix and os.stat(path).st_size:
            raise DatasetError(f"{path}: does not start as {name} data does, expected it of a {suffix} file")
    return raw


def read_on(file: io.BufferedReader | Packed, rest: bytes) -> tuple[bytes, str | None]:
    """The rest and up to BLOCK_BYTES more (none at the end), and what is wrong with packed data after them, if any."""
    collected = [rest]
    size = 0
    problem = None
    try:
        while size < BLOCK_BYTES and (got := file.read1(min(READ_BYTES, BLOCK_BYTES))):
            collected.append(got)
            size += len(got)
    except EOFError:
        problem = f"the {NAMES[type(file)]} data ends here, before its end mark (a cut file)"
    except DAMAGES as error:
        if isinstance(file, io.BufferedReader):  # not packed: the disk's own error
            raise
        problem = f"the {NAMES[type(file)]} data is damaged here ({error})"
    return b"".join(collected), problem


def checked_header(path: Path, line: bytes) -> tuple[list[str], tuple[str, ...]]:
    """The column names, and what is odd about them; refuses a header without a column that is read."""
    try:
        names = line.rstrip(b"\r").decode("utf-8").split(",")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, row 1: is not UTF-8 text ({error.reason}), expected a CSV header") from error
    names, notes = mended(names)
    missing = [name for name in READ_COLUMNS if name not in names]
    if missing:
        found = shorten(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        raise DatasetError(
            f"{path}, row 1: no column {', '.join(missing)}; found {found}, expected MSSD's column names. Where others "
            "mean these, --columns says so; `skiprec columns LOG` guesses"
        )
    for name in READ_COLUMNS:
        if names.count(name) > 1:
            raise DatasetError(f"{path}, row 1: column {name} is there {names.count(name)} times, expected once")
    return names, notes


def mended(names: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The column names, where a path stands for MSSD's first: some of its files are passed around with that."""
    if "/" in names[0] and tuple(names[1 : len(LOG_COLUMNS)]) == LOG_COLUMNS[1:]:
        return [LOG_COLUMNS[0], *names[1:]], (PATH_IN_HEADER,)
    return names, ()


def checked_rows(path: Path, first_row: int, header: list[str], text: memoryview, contexts: Codes) -> Rows:
    """Parse lines that are each one row; the first of them is row `first_row` of the file."""
    check_text(path, first_row, text)
    try:
        table = parse(text, header, TYPES)
    except pa.ArrowInvalid as error:
        refuse(path, first_row, bytes(text), header, error)
    session_id, item_id = (table[name].combine_chunks() for name in ("session_id", "track_id_clean"))
    position, session_length = (numbered(table[name], whole_number) for name in INTEGERS)  # None: refused below
    date = numbered(table["date"], day_of)
    context = numbered(table["context_type"], lambda text: None if text in MISSING else contexts[text])
    if any(column is None for column in (position, session_length, date, context)):
        refuse(path, first_row, bytes(text), header)
    if has_missing(session_id) or has_missing(item_id):
        refuse(path, first_row, bytes(text), header)

    skip_1, skip_2, skip_3, not_skipped = (table[name].to_numpy().view(np.uint8) for name in SKIP_FLAGS)
    skip_level = np.maximum(np.maximum(3 * skip_1, 2 * skip_2), skip_3)
    if (both := np.flatnonzero(not_skipped & (skip_level > 0))).size:
        flag = {3: "skip_1", 2: "skip_2", 1: "skip_3"}[int(skip_level[both[0]])]
        raise DatasetError(
            f"{path}, row {first_row + both[0]}: both {flag} and not_skipped are true, expected at most one of them"
        )
    is_not_nested = (skip_1 > skip_2) | (skip_2 > skip_3)
    has_no_flag = (skip_level | not_skipped) == 0
    return Rows(
        session_id=session_id,
        item_id=item_id,
        position=position.astype(np.int64),
        session_length=session_length,
        date=date,
        context=context,
        flags=skip_level | NOT_NESTED * is_not_nested.view(np.uint8) | NO_FLAG * has_no_flag.view(np.uint8),
        row=first_row + np.arange(len(item_id), dtype=np.int64),
    )


def parse(text: bytes | memoryview, header: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    """The lines as a table of the wanted columns.

    Raises:
        pyarrow.ArrowInvalid: If a row has more or fewer fields than the header, or a field is not of its type. A line
            without anything in it is a row of empty texts.
    """

    def parsed(bytes_at_once: int) -> pa.Table:
        return pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(
                # Other columns may have any names, also the same one.
                column_names=[name if name in types else f"column {i}" for i, name in enumerate(header)],
                block_size=bytes_at_once,
            ),
            # No quoting: a quote is a character, so that a stray one cannot swallow rows.
            pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(
                include_columns=list(types),
                column_types=types,
                null_values=[],  # an empty text stays one, and is refused with its row
                strings_can_be_null=False,
                true_values=TRUE_TEXTS,
                false_values=FALSE_TEXTS,
            ),
        )

    try:
        return parsed(PARSED_AT_ONCE)
    except pa.ArrowInvalid:
        return parsed(len(text))  # a line may be longer than what is parsed at once


def numbered(column: pa.ChunkedArray, number: Callable[[str], int | None]) -> Int32[np.ndarray, " N"] | None:
    """Each text's number, asked once a distinct text. None where a text has none."""
    parts = column.unify_dictionaries().chunks  # all parts have the same dictionary then
    numbers = [number(text) for text in parts[0].dictionary.to_pylist()]
    if None in numbers:
        return None
    return np.array(numbers, dtype=np.int32)[np.concatenate([part.indices.to_numpy() for part in parts])]


def has_missing(texts: pa.StringArray) -> bool:
    """Whether one of the texts stands for no value."""
    lengths = pc.binary_length(texts)
    if pc.min(lengths).as_py() > max(map(len, MISSING)):
        return False
    return pc.any(pc.is_in(texts, pa.array(sorted(MISSING)))).as_py()


def whole_number(text: str) -> int | None:
    """The number in a text like 12 or 12.0; None for anything else, or what 32 bits cannot hold."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*", text):
        return None
    number = int(text.partition(".")[0])
    return number if abs(number) < 2**31 else None


def day_of(text: str) -> int | None:
    """Days since 1970 of a date like 2018-07-15, 15-07-18 or 15/07/2018 (the day first); None for anything else."""
    if day_first := re.fullmatch(r"([0-9]{2})([-/])([0-9]{2})\2((?:20)?)([0-9]{2})", text):
        day, _, month, _, year = day_first.groups()
        text = f"20{year}-{month}-{day}"
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return (datetime.date.fromisoformat(text) - EPOCH).days
    except ValueError:
        return None


def check_text(path: Path, first_row: int, text: memoryview) -> None:
    """Refuse what no text file holds."""
    if (found := no_text(text)) is not None:
        at, why = found
        row = first_row + bytes(text[:at]).count(b"\n")
        raise DatasetError(f"{path}, row {row}: {why}")


def no_text(data: bytes | memoryview) -> tuple[int, str] | None:
    """The first byte that no text file holds, and what is said of it."""
    values = np.frombuffer(data, np.uint8)
    if values.min(initial=0xFF) == 0:
        return int(values.argmin()), "holds a NUL byte, expected text"
    if values.max(initial=0) >= 0x80:
        try:
            bytes(data).decode("utf-8")
        except UnicodeDecodeError as error:
            at = error.start
            return at, f"byte 0x{data[at]:02x} is not UTF-8 text, expected a UTF-8 file"
    return None


def refuse(
    path: Path, first_row: int, text: bytes, header: list[str], error: pa.ArrowInvalid | None = None
) -> NoReturn:
    """Raise for the first row that is not as it should be. Slow: called when something is known to be wrong."""
    check_field_counts(path, first_row, text, len(header))
    check_values(path, first_row, text, header)
    last_row = first_row + text.count(b"\n") - 1
    raise DatasetError(f"{path}, rows {first_row} to {last_row}: cannot be read as a table ({error})") from error


def check_field_counts(path: Path, first_row: int, text: bytes, expected: int) -> None:
    """Refuse a row that has more or fewer fields than the header."""
    for i, line in enumerate(text.split(b"\n")[:-1]):
        if (found := line.count(b",") + 1) != expected:
            raise DatasetError(f"{path}, row {first_row + i}: {found} fields, expected {expected} as in the header")


def check_values(path: Path, first_row: int, text: bytes, header: list[str]) -> None:
    """Refuse a field that is not what its column holds."""
    try:
        table = parse(text, header, dict.fromkeys(READ_COLUMNS, pa.string()))
    except pa.ArrowInvalid:
        return
    for i, values in enumerate(zip(*(table[name].to_pylist() for name in READ_COLUMNS), strict=True)):
        for name, value in zip(READ_COLUMNS, values, strict=True):
            if not is_good(name, value):
                raise DatasetError(f"{path}, row {first_row + i}: {wrong_value(name, value)}")


def is_good(name: str, value: str) -> bool:
    """Whether a field is what its column holds."""
    if name in SKIP_FLAGS:
        return value in TRUE_TEXTS + FALSE_TEXTS
    if name in INTEGERS:
        return whole_number(value) is not None
    return value not in MISSING and (name != "date" or day_of(value) is not None)


def wrong_value(name: str, value: str) -> str:
    """What to say of a field: found and expected."""
    expected = "a text"
    if name == "date":
        expected = "a day as YYYY-MM-DD"
    elif name in INTEGERS:
        expected = "a whole number"
    elif name in SKIP_FLAGS:
        expected = "True, False, 1 or 0"
    return f"{name} is {'missing' if not value.strip() else shorten(value)}, expected {expected}"
