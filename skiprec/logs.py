"""Raw MSSD session logs (CSV, plain or gzip) -> checked rows, block by block. Not: which sessions are kept."""

import datetime
import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Int32
from tqdm import tqdm

from skiprec.errors import DatasetError
from skiprec.events import NO_FLAG, NOT_NESTED, Events, Gatherer, Rows, shorten
from skiprec.numbering import Codes
from skiprec.schema import READ_COLUMNS, SKIP_FLAGS

# N rows.

BLOCK_BYTES = 1 << 22
"""Text that is checked and numbered at once: some 25,000 rows. More is no faster and takes more memory."""
READ_BYTES = 1 << 18
"""Text that is read at once. Small: one large read would lose all its bytes where packed data ends early."""
PARSED_AT_ONCE = 1 << 20
"""Text that a thread parses at once: as much as stays in cache."""

INTEGERS = ("session_position", "session_length")
TRUE_TEXTS, FALSE_TEXTS = ("True", "TRUE", "true", "1"), ("False", "FALSE", "false", "0")
MISSING = frozenset(("", "NA", "NaN", "nan", "NULL", "null", "None"))
"""What programs write where they have no value. A reader that took one for an id would make a track of it."""
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


def find_logs(paths: Sequence[str | Path]) -> list[Path]:
    """The log files that are meant: files, globs, and the *.csv and *.csv.gz in folders. Each file once.

    Raises:
        DatasetError: If one of the paths leads to no file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if os.path.isdir(path):
            names = sorted(p for p in Path(path).iterdir() if p.name.endswith((".csv", ".csv.gz")) and p.is_file())
            expected = "a *.csv or *.csv.gz file in this folder"
        elif os.path.exists(path):
            names, expected = [Path(path)], ""
        else:
            names = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
            expected = "a log file, a folder of them, or a pattern such as 'logs/*.csv.gz'"
        if not names:
            raise DatasetError(f"{path}: found nothing, expected {expected}")
        found |= {name.resolve(): name for name in names if name.resolve() not in found}
    if not found:
        raise DatasetError("no log was named, expected at least one file, folder or pattern")
    return list(found.values())


def read_logs(files: Sequence[Path], *, progress: bool = True) -> Events:
    """Read all files into one table, in any order of files and rows.

    Args:
        files: As find_logs gives them.
        progress: Show a bar of bytes, where there is a terminal.

    Raises:
        DatasetError: At the first thing that is not as it should be, with file and row.
    """
    gatherer = Gatherer()
    with tqdm(
        total=sum(os.stat(file).st_size for file in files if file.exists()),
        desc="reading logs",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for file in files:
            for rows in made_ahead(read_log(file, gatherer.contexts, advance=bar.update)):
                gatherer.add(rows)
            gatherer.end_file(file)
    return gatherer.finish()


def made_ahead(blocks: Iterator[Rows]) -> Iterator[Rows]:
    """The same blocks; while one is used, the next one is made on another thread."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


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
            header = checked_header(path, first)
            row, text = 2, memoryview(rest)
        if text:
            rows = checked_rows(path, row, header, text, contexts)
            n_rows += len(rows.item_id)
            yield rows
    if not header:
        raise DatasetError(f"{path}: is empty, expected a header and rows")
    if not n_rows:
        raise DatasetError(f"{path}: has a header and no rows, expected at least one row")


def text_blocks(path: Path, advance: Callable[[int], object]) -> Iterator[tuple[int, memoryview]]:
    """The file's unpacked text some BLOCK_BYTES at a time: the row of the first line, and whole lines.

    Each line is ended by a line feed. A byte order mark and empty lines at the file's end are dropped.
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
                if cut:
                    lines = memoryview(text)[:cut]
                    yield row, lines
                    row += int(np.count_nonzero(np.frombuffer(lines, np.uint8) == ord("\n")))
                rest = text[cut:]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}), expected a CSV log") from error
    if rest := rest.rstrip(b"\r\n"):
        yield row, memoryview(rest + b"\n")


def unpacked(path: Path, raw: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
    """The file, or what is packed in it."""
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if path.suffix == ".gz" and not is_gzip and os.stat(path).st_size:
        raise DatasetError(f"{path}: does not start as gzip data does, expected it of a .gz file")
    return gzip.GzipFile(fileobj=raw) if is_gzip else raw


def read_on(file: io.BufferedReader | gzip.GzipFile, rest: bytes) -> tuple[bytes, str | None]:
    """The rest and up to BLOCK_BYTES more (none at the end), and what is wrong with packed data after them, if any."""
    collected = [rest]
    size = 0
    problem = None
    try:
        while size < BLOCK_BYTES and (got := file.read1(min(READ_BYTES, BLOCK_BYTES))):
            collected.append(got)
            size += len(got)
    except EOFError:
        problem = "the gzip data ends here, before its end mark (a cut file)"
    except (zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip data is damaged here ({error})"
    return b"".join(collected), problem


def checked_header(path: Path, line: bytes) -> list[str]:
    """The column names; refuses a header without a column that is read."""
    try:
        names = line.rstrip(b"\r").decode("utf-8").split(",")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, row 1: is not UTF-8 text ({error.reason}), expected a CSV header") from error
    missing = [name for name in READ_COLUMNS if name not in names]
    if missing:
        found = shorten(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        raise DatasetError(
            f"{path}, row 1: no column {', '.join(missing)}; found {found}, expected MSSD's column names"
        )
    for name in READ_COLUMNS:
        if names.count(name) > 1:
            raise DatasetError(f"{path}, row 1: column {name} is there {names.count(name)} times, expected once")
    return names


def checked_rows(path: Path, first_row: int, header: list[str], text: memoryview, contexts: Codes) -> Rows:
    """Parse lines that are each one row; the first of them is row `first_row` of the file."""
    check_text(path, first_row, text)
    try:
        table = parse(text, header, TYPES)
    except pa.ArrowInvalid as error:
        refuse(path, first_row, bytes(text), header, error)
    session_id, item_id = (table[name].combine_chunks() for name in ("session_id", "track_id_clean"))
    position, session_length = (numbered(table[name], whole_number) for name in INTEGERS)
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
        position=position,
        session_length=session_length,
        date=date,
        context=context,
        flags=skip_level | NOT_NESTED * is_not_nested.view(np.uint8) | NO_FLAG * has_no_flag.view(np.uint8),
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
    """Days since 1970 of a date like 2018-07-15; None for anything else."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return (datetime.date.fromisoformat(text) - EPOCH).days
    except ValueError:
        return None


def check_text(path: Path, first_row: int, text: memoryview) -> None:
    """Refuse what no text file holds."""
    values = np.frombuffer(text, np.uint8)
    if values.min() == 0:
        raise DatasetError(
            f"{path}, row {first_row + lines_before(text, int(values.argmin()))}: holds a NUL byte, expected text"
        )
    if values.max() < 0x80:
        return
    try:
        bytes(text).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}, row {first_row + lines_before(text, error.start)}: byte 0x{text[error.start]:02x} is not UTF-8 "
            "text, expected a UTF-8 file"
        ) from error


def lines_before(text: memoryview, at: int) -> int:
    """How many lines end before this byte."""
    return bytes(text[:at]).count(b"\n")


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
