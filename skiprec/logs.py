"""Raw MSSD session logs (CSV, plain or gzip) -> one checked event table. Not: which sessions are kept."""

import datetime
import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int8, Int16, Int32
from tqdm import tqdm

from skiprec.errors import DatasetError
from skiprec.schema import READ_COLUMNS, SKIP_FLAGS

# N rows.

BLOCK_BYTES = 1 << 24
"""Text that is parsed at once: some 100,000 rows. More is no faster and takes more memory."""

INTEGERS = ("session_position", "session_length")
TEXTS = ("session_id", "track_id_clean", "date", "context_type")
TRUE_TEXTS, FALSE_TEXTS = ("True", "TRUE", "true", "1"), ("False", "FALSE", "false", "0")
MISSING = frozenset(("", "NA", "NaN", "nan", "NULL", "null", "None"))
"""What programs write where they have no value. A reader that took one for an id would make a track of it."""
EPOCH = datetime.date(1970, 1, 1)


class Codes(dict[str, int]):
    """Numbers texts 0, 1, 2, ... in the order in which they are first met."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


@dataclass(frozen=True)
class Rows:
    """Checked rows of one file in their order; texts are numbered by the Codes that the reader was given."""

    session: Int32[np.ndarray, " N"]
    position: Int32[np.ndarray, " N"]
    session_length: Int32[np.ndarray, " N"]
    item: Int32[np.ndarray, " N"]
    skip_level: Int8[np.ndarray, " N"]
    """3 where skip_1, else 2 where skip_2, else 1 where skip_3, else 0."""
    not_nested: Bool[np.ndarray, " N"]
    """skip_1 without skip_2, or skip_2 without skip_3."""
    no_flag: Bool[np.ndarray, " N"]
    """Neither skipped at any level nor not_skipped."""
    date: Int32[np.ndarray, " N"]
    """Days since 1970-01-01."""
    context: Int16[np.ndarray, " N"]


@dataclass(frozen=True)
class Events:
    """Every row of the logs, sorted by session id and position; session, item and context number sorted texts."""

    rows: Rows
    session_ids: list[str]
    item_ids: list[str]
    context_types: list[str]
    sources: list[tuple[Path, int]]
    """Each file with its number of rows."""


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
    sessions, items, contexts = Codes(), Codes(), Codes()
    blocks: list[Rows] = []
    sources = []
    with tqdm(
        total=sum(os.stat(file).st_size for file in files if file.exists()),
        desc="reading logs",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for file in files:
            before = len(blocks)
            blocks.extend(read_log(file, sessions, items, contexts, advance=bar.update))
            sources.append((file, sum(len(block.item) for block in blocks[before:])))
    return sort_events(blocks, sessions, items, contexts, sources)


def read_log(
    path: Path, sessions: Codes, items: Codes, contexts: Codes, *, advance: Callable[[int], object] = lambda n: None
) -> Iterator[Rows]:
    """Read one file in blocks of checked rows.

    Args:
        path: A CSV file of MSSD's columns, plain or gzip, with or without a byte order mark. May have further columns.
        sessions: Numbers session ids. New ones are added, as in items and contexts.
        items: Numbers item ids.
        contexts: Numbers context types.
        advance: Told how many more bytes of the file are read.

    Raises:
        DatasetError: With file and row (the header is row 1), what was found and what was expected.
    """
    header: list[str] = []
    row = 1
    for text in text_blocks(path, advance):
        if not header:
            first, _, text = text.partition(b"\n")
            header = checked_header(path, first)
            row = 2
            if not text:
                continue
        yield checked_rows(path, row, header, text, sessions, items, contexts)
        row += text.count(b"\n")
    if not header:
        raise DatasetError(f"{path}: is empty, expected a header and rows")
    if row == 2:
        raise DatasetError(f"{path}: has a header and no rows, expected at least one row")


def text_blocks(path: Path, advance: Callable[[int], object]) -> Iterator[bytes]:
    """Whole lines, each ended by a line feed, some BLOCK_BYTES at a time. Empty lines at the file's end are dropped."""
    rest, row = b"", 1
    for piece, problem in pieces(path, advance):
        rest += piece
        if problem is not None:
            row += rest.count(b"\n")
            raise DatasetError(f"{path}, row {row}: {problem}, expected a whole file; copy or download it again")
        # The last line stays behind with any line ends after it: only at the end of the file are those surplus.
        cut = rest.rstrip(b"\r\n").rfind(b"\n") + 1
        if cut:
            yield rest[:cut]
            row += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
    if rest := rest.rstrip(b"\r\n"):
        yield rest + b"\n"


def pieces(path: Path, advance: Callable[[int], object]) -> Iterator[tuple[bytes, str | None]]:
    """The file's unpacked bytes without a byte order mark, and what is wrong with packed data after them, if any."""
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if path.suffix == ".gz" and not is_gzip and os.stat(path).st_size:
                raise DatasetError(f"{path}: does not start as gzip data does, expected it of a .gz file")
            file = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            told = 0
            piece, problem = read_piece(file)
            yield piece.removeprefix(b"\xef\xbb\xbf"), problem
            while piece:
                advance(raw.tell() - told)
                told = raw.tell()
                piece, problem = read_piece(file)
                yield piece, problem
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}), expected a CSV log") from error


def read_piece(file: io.BufferedReader | gzip.GzipFile) -> tuple[bytes, str | None]:
    """Up to BLOCK_BYTES more (none at the end), and what is wrong with packed data after them, if anything."""
    collected = []
    size = 0
    problem = None
    try:
        # Small reads: one large read would lose all its bytes where the data ends early, and with them the row.
        while size < BLOCK_BYTES and (got := file.read1(1 << 18)):
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


def checked_rows(
    path: Path, first_row: int, header: list[str], text: bytes, sessions: Codes, items: Codes, contexts: Codes
) -> Rows:
    """Parse lines that are each one row; the first of them is row `first_row` of the file."""
    check_text(path, first_row, text)
    columns = {name: header.index(name) for name in READ_COLUMNS}
    last = len(header) - 1
    try:
        table = parse(
            text,
            len(header),
            {columns[name]: "int32" for name in INTEGERS}
            | {columns[name]: "bool" for name in SKIP_FLAGS}
            | {columns[name]: "str" for name in TEXTS},
        )
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        check_field_counts(path, first_row, text, len(header))
        refuse_bad_value(path, first_row, text, header)
        last_row = first_row + text.count(b"\n") - 1
        raise DatasetError(f"{path}, rows {first_row} to {last_row}: cannot be read as a table ({error})") from error
    # pandas fills short rows and, with usecols, cuts long ones. Only where a short row would leave its trace is each
    # line counted: without one, as many commas as there should be leave no room for a long row either.
    if text.count(b",") != len(table) * last or (table[last] == "").any():
        check_field_counts(path, first_row, text, len(header))

    numbers = {}
    for name, codes in (("session_id", sessions), ("track_id_clean", items), ("context_type", contexts)):
        numbers[name] = numbered(table[columns[name]], codes.__getitem__, path, first_row, name)
    dates = numbered(table[columns["date"]], day_of, path, first_row, "date")
    skip_1, skip_2, skip_3, not_skipped = (table[columns[name]].to_numpy(dtype=bool) for name in SKIP_FLAGS)
    skip_level = np.select([skip_1, skip_2, skip_3], [3, 2, 1], 0).astype(np.int8)
    if (both := np.flatnonzero((skip_level > 0) & not_skipped)).size:
        flag = {3: "skip_1", 2: "skip_2", 1: "skip_3"}[int(skip_level[both[0]])]
        raise DatasetError(
            f"{path}, row {first_row + both[0]}: both {flag} and not_skipped are true, expected at most one of them"
        )
    return Rows(
        session=numbers["session_id"],
        position=table[columns["session_position"]].to_numpy(),
        session_length=table[columns["session_length"]].to_numpy(),
        item=numbers["track_id_clean"],
        skip_level=skip_level,
        not_nested=(skip_1 & ~skip_2) | (skip_2 & ~skip_3),
        no_flag=~(skip_1 | skip_2 | skip_3 | not_skipped),
        date=dates,
        context=numbers["context_type"].astype(np.int16),
    )


def parse(text: bytes, n_columns: int, kinds: dict[int, str]) -> pd.DataFrame:
    """The lines as a table of the wanted columns and the last one, named by their number."""
    kinds = {n_columns - 1: "str"} | kinds
    return pd.read_csv(
        io.BytesIO(text),
        header=None,
        names=list(range(n_columns)),
        usecols=sorted(kinds),
        dtype=kinds,
        true_values=["1"],
        false_values=["0"],
        na_filter=False,  # an empty text stays one, and is refused with its row
        quoting=3,  # none: a quote is a character, so that a stray one cannot swallow rows
        skip_blank_lines=False,
        index_col=False,
    )


def numbered(
    column: pd.Series, number: Callable[[str], int | None], path: Path, first_row: int, name: str
) -> Int32[np.ndarray, " N"]:
    """Each text's number, asked once a distinct text. Refuses a missing value, or one that has no number."""
    places, distinct = pd.factorize(column)
    texts = distinct.tolist()
    numbers = [None if text in MISSING else number(text) for text in texts]
    if None in numbers:
        bad = next(i for i in range(len(places)) if numbers[places[i]] is None)
        raise DatasetError(f"{path}, row {first_row + bad}: {wrong_value(name, texts[places[bad]])}")
    return np.array(numbers, dtype=np.int32)[places]


def day_of(text: str) -> int | None:
    """Days since 1970 of a date like 2018-07-15; None for anything else."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return (datetime.date.fromisoformat(text) - EPOCH).days
    except ValueError:
        return None


def check_text(path: Path, first_row: int, text: bytes) -> None:
    """Refuse what no text file holds."""
    if (at := text.find(b"\0")) >= 0:
        row = first_row + text.count(b"\n", 0, at)
        raise DatasetError(f"{path}, row {row}: holds a NUL byte, expected text")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        row = first_row + text.count(b"\n", 0, error.start)
        raise DatasetError(
            f"{path}, row {row}: byte 0x{text[error.start]:02x} is not UTF-8 text, expected a UTF-8 file"
        ) from error


def check_field_counts(path: Path, first_row: int, text: bytes, expected: int) -> None:
    """Refuse a row that has more or fewer fields than the header."""
    for i, line in enumerate(text.split(b"\n")[:-1]):
        if (found := line.count(b",") + 1) != expected:
            raise DatasetError(f"{path}, row {first_row + i}: {found} fields, expected {expected} as in the header")


def refuse_bad_value(path: Path, first_row: int, text: bytes, header: list[str]) -> None:
    """Raise for the first row with a number or flag that is none. Slow: called when something is known to be wrong."""
    table = parse(text, len(header), {header.index(name): "str" for name in READ_COLUMNS})
    for i, values in enumerate(zip(*(table[header.index(name)] for name in READ_COLUMNS), strict=True)):
        for name, value in zip(READ_COLUMNS, values, strict=True):
            if not is_good(name, value):
                raise DatasetError(f"{path}, row {first_row + i}: {wrong_value(name, value)}")


def is_good(name: str, value: str) -> bool:
    """Whether a field is what its column holds."""
    if name in SKIP_FLAGS:
        return value in TRUE_TEXTS + FALSE_TEXTS
    if name in INTEGERS:
        return re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*", value) is not None and abs(float(value)) < 2**31
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


def shorten(text: str) -> str:
    """The text in quotes on one line, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def sort_events(
    blocks: list[Rows], sessions: Codes, items: Codes, contexts: Codes, sources: list[tuple[Path, int]]
) -> Events:
    """Put all rows in the order of session id and position, and number the sorted texts.

    Raises:
        DatasetError: If a session has a position twice, or says two lengths.
    """
    columns = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in Rows.__dataclass_fields__}
    blocks.clear()  # or every row would be held twice
    session_ids, item_ids, context_types = sorted(sessions), sorted(items), sorted(contexts)
    for name, texts, codes in (
        ("session", session_ids, sessions),
        ("item", item_ids, items),
        ("context", context_types, contexts),
    ):
        columns[name] = ranks(texts, codes)[columns[name]].astype(columns[name].dtype)
    key = (columns["session"].astype(np.int64) << 32) + columns["position"]
    order = np.argsort(key, kind="stable")
    key = key[order]
    for name, column in columns.items():
        columns[name] = column[order]
    is_same_session = columns["session"][1:] == columns["session"][:-1]

    def place(i: int) -> str:
        """File and row of the i-th row of the sorted table."""
        row = int(order[i])
        for path, rows in sources:
            if row < rows:
                return f"{path}, row {row + 2}"
            row -= rows
        raise AssertionError("a row is beyond the last file")

    if (twice := np.flatnonzero(key[1:] == key[:-1])).size:
        i = int(twice[0])
        session, position = session_ids[columns["session"][i]], int(columns["position"][i])
        raise DatasetError(
            f"{place(i + 1)}: session {shorten(session)}, position {position} is already in {place(i)}, "
            "expected each position once"
        )
    lengths = columns["session_length"]
    if (differs := np.flatnonzero(is_same_session & (lengths[1:] != lengths[:-1]))).size:
        i = int(differs[0])
        raise DatasetError(
            f"{place(i + 1)}: session_length is {lengths[i + 1]}, but {lengths[i]} in {place(i)} of the same session, "
            "expected one length a session"
        )
    return Events(Rows(**columns), session_ids, item_ids, context_types, sources)


def ranks(texts: list[str], codes: Codes) -> Int32[np.ndarray, " N"]:
    """The place of each code's text among the sorted texts."""
    places = np.empty(len(texts), dtype=np.int32)
    places[np.fromiter((codes[text] for text in texts), dtype=np.int64, count=len(texts))] = np.arange(len(texts))
    return places
