"""Log files of any format -> blocks of text columns with the rows that they stand in. Knows no meaning of a column."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Int64

from skiprec.columns import ColumnMap
from skiprec.errors import DatasetError
from skiprec.logs import LONGEST_LINE, check_text, mended, no_text, text_blocks

# N rows.

ROWS_AT_ONCE = 1 << 16
"""Of a parquet file."""
LARGEST_ROW_GROUP = 1 << 30
"""Bytes of one, unpacked, that are read: parquet cannot be read in smaller parts."""


@dataclass(frozen=True)
class Block:
    """Rows that follow each other in a file, as text. What has no value is an empty text."""

    columns: dict[str, pa.StringArray]
    row: Int64[np.ndarray, " N"]
    """Of the file, as people count: lines from 1, the header's included; rows from 1 where there are no lines."""
    bad: dict[int, str] = field(default_factory=dict)
    """Rows that could not be taken apart, and why: they are in no column."""
    notes: tuple[str, ...] = ()
    """What is odd about the file, and was taken all the same."""


def read_blocks(path: Path, columns: ColumnMap, advance: Callable[[int], object]) -> Iterator[Block]:
    """A file's blocks, with the columns that the map names.

    Raises:
        DatasetError: If the file cannot be read, or lacks a column.
    """
    readers = {"csv": lines_of_fields, "tsv": lines_of_fields, "jsonl": lines_of_json, "parquet": row_groups}
    empty = True
    for block in readers[columns.format](path, columns, advance):
        empty = empty and not len(block.row) and not block.bad
        yield block
    if empty:
        raise DatasetError(f"{path}: has no rows, expected at least one")


def missing_columns(path: Path, row: str, missing: Sequence[str], found: Sequence[str]) -> DatasetError:
    """The error for columns that the map names and the file lacks."""
    shown = ", ".join(repr(name)[:40] for name in found[:12]) + (", ..." if len(found) > 12 else "")
    return DatasetError(f"{path}{row}: no column {', '.join(missing)}; found {shown or 'none'}")


def lines_of_fields(path: Path, columns: ColumnMap, advance: Callable[[int], object]) -> Iterator[Block]:
    """CSV and TSV. A quoted field may hold the delimiter, but no line end."""
    delimiter = "\t" if columns.format == "tsv" else ","
    names, notes = list(columns.columns), ()
    for row, text in text_blocks(path, advance):
        if not names:
            head, _, rest = bytes(text).partition(b"\n")
            check_text(path, row, memoryview(head + b"\n"))
            names, notes = mended(split(head.decode("utf-8").rstrip("\r"), delimiter, columns.quote) or [""])
            if missing := [name for name in columns.named if name not in names]:
                raise missing_columns(path, ", row 1", missing, names)
            if twice := [name for name in columns.named if names.count(name) > 1]:
                raise DatasetError(
                    f"{path}, row 1: column {twice[0]} is there {names.count(twice[0])} times, expected once"
                )
            row, text = row + 1, memoryview(rest)
        if text:
            block = block_of_fields(path, row, text, names, columns, delimiter)
            yield dataclasses.replace(block, notes=notes)
            notes = ()


def block_of_fields(
    path: Path, row: int, text: memoryview, names: list[str], columns: ColumnMap, delimiter: str
) -> Block:
    """Lines, the first of which is this row; those with another number of fields are bad."""
    n_lines = bytes(text).count(b"\n")
    rows, bad = row + np.arange(n_lines), {}
    is_whole = no_text(text) is None
    if is_whole:
        try:
            table = parsed(text, names, columns, delimiter)
            is_whole = len(table) == n_lines
        except pa.ArrowInvalid:
            is_whole = False
    if not is_whole:
        good: list[bytes] = []
        for number, line in enumerate(bytes(text).split(b"\n")[:-1], start=row):
            if (found := no_text(line)) is not None:
                bad[number] = found[1]
                continue
            fields = split(line.decode("utf-8").rstrip("\r"), delimiter, columns.quote)
            if b"\r" in line.removesuffix(b"\r"):
                bad[number] = "a carriage return within the line, expected it at its end or nowhere"
            elif fields is None:
                bad[number] = "a quote that does not end in its line, expected none or two"
            elif len(fields) != len(names):
                bad[number] = f"{len(fields)} fields, expected {len(names)}"
            else:
                good.append(line + b"\n")
        rows = np.array([r for r in rows.tolist() if r not in bad], dtype=np.int64)
        if not good:
            return Block({name: pa.array([], pa.string()) for name in columns.named}, rows, bad)
        try:
            table = parsed(memoryview(b"".join(good)), names, columns, delimiter)
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path}, rows {row} to {row + n_lines - 1}: cannot be read ({error})") from error
    return Block({name: table[name].combine_chunks() for name in columns.named}, rows, bad)


def parsed(text: memoryview, names: list[str], columns: ColumnMap, delimiter: str) -> pa.Table:
    """Lines as a table of the wanted columns.

    Raises:
        pyarrow.ArrowInvalid: If a line has more or fewer fields than there are names.
    """
    wanted = columns.named
    return pyarrow.csv.read_csv(
        pa.BufferReader(text),
        pyarrow.csv.ReadOptions(
            column_names=[name if name in wanted else f"column {i}" for i, name in enumerate(names)],
            block_size=max(1 << 20, len(text)),
        ),
        pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char=columns.quote or False, ignore_empty_lines=False, newlines_in_values=False
        ),
        pyarrow.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            null_values=[],
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )


def split(line: str, delimiter: str, quote: str) -> list[str] | None:
    """A line's fields; None where a quote does not end."""
    if not quote:
        return line.split(delimiter)
    try:
        csv.field_size_limit(LONGEST_LINE)  # no field of a line is longer
        return next(csv.reader([line], delimiter=delimiter, quotechar=quote, strict=True), [""])
    except csv.Error:
        return None


def lines_of_json(path: Path, columns: ColumnMap, advance: Callable[[int], object]) -> Iterator[Block]:
    """A JSON object a line."""
    for row, text in text_blocks(path, advance):
        is_text = no_text(text) is None
        values: dict[str, list[str]] = {name: [] for name in columns.named}
        rows, bad = [], {}
        for number, line in enumerate(bytes(text).split(b"\n")[:-1], start=row):
            if not is_text and (found := no_text(line)) is not None:
                bad[number] = found[1]
                continue
            try:
                told = json.loads(line)
                own = [as_text(told.get(name)) for name in columns.named]
            except (ValueError, AttributeError, RecursionError) as error:
                bad[number] = f"is no JSON object of plain values ({' '.join(str(error).split())[:80]})"
                continue
            rows.append(number)
            for name, value in zip(columns.named, own, strict=True):
                values[name].append(value)
        arrays = {name: pa.array(texts, pa.string()) for name, texts in values.items()}
        yield Block(arrays, np.array(rows, dtype=np.int64), bad)


def as_text(value: object) -> str:
    """A plain JSON value as a CSV file would have it.

    Raises:
        ValueError: If it is an object or a list.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        text = str(value)
        text.encode("utf-8")  # JSON may hold halves of letters, which no text can; UnicodeEncodeError is a ValueError
        return text
    raise ValueError(f"{type(value).__name__} in place of a value")


def row_groups(path: Path, columns: ColumnMap, advance: Callable[[int], object]) -> Iterator[Block]:
    """A parquet file, a part of a row group at a time."""
    first = 1
    try:
        size = path.stat().st_size
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in columns.named if name not in names]:
                raise missing_columns(path, "", missing, names)
            for group in range(file.num_row_groups):
                held = file.metadata.row_group(group).total_byte_size
                if held > LARGEST_ROW_GROUP:
                    raise DatasetError(
                        f"{path}, rows from {first}: a row group of {held:,} bytes, expected at most "
                        f"{LARGEST_ROW_GROUP:,}; write it in smaller ones"
                    )
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns.named):
                    rows = first + np.arange(len(batch))
                    arrays = {name: text_column(path, name, batch[name], first) for name in columns.named}
                    first += len(batch)
                    yield Block(arrays, rows)
                advance(size // file.num_row_groups)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["damaged"])[0][:200]
        raise DatasetError(f"{path}, rows from {first}: cannot be read ({reason}), expected a parquet file") from error


def has_plain_values(kind: pa.DataType) -> bool:
    """Whether a column's values can be told as texts."""
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind))


def text_column(path: Path, name: str, values: pa.Array, first: int) -> pa.StringArray:
    """A column of plain values as text."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return text_column(path, name, values.dictionary_decode(), first)
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp("us"), safe=False)
    elif not has_plain_values(kind):
        raise DatasetError(f"{path}, rows from {first}: column {name} holds {kind}, expected texts, numbers or times")
    texts = pc.fill_null(values.cast(pa.string()), "")
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:  # parquet lets any bytes be called a text
        for i in range(len(texts)):
            try:
                texts[i].as_py()
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{path}, row {first + i}: {name} holds {error.object[:60]!r}, expected UTF-8 text"
                ) from error
        raise
    return texts
