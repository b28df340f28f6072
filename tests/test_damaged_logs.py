"""Logs with what happens to files: each is read, or refused by name, and nothing is left half made."""

import bz2
import gzip
import lzma
import os
import random
import re
import shutil
import tomllib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from test_columns import write
from test_logs import log_session, write_log

import skiprec.logs
from skiprec.columns import ColumnMap, SkipMap, map_from
from skiprec.errors import DatasetError
from skiprec.guess import guess
from skiprec.prepare import Manifest, PrepareConfig, prepare_logs
from skiprec.reading import MSSD, Reading

DAMAGED = int(os.environ.get("SKIPREC_DAMAGED", "300"))
MAPS = (
    {"session": "s", "order": "p", "skip": SkipMap(true={"k": 2})},
    {"user": "u", "order": "t", "order_by": "time", "gap_minutes": 5.0, "skip": SkipMap(played="d", below=((2.0, 2),))},
    {"user": "u", "order_by": "rows", "context": ("k",), "skip": SkipMap(event="e", events={"skip": 2, "play": 0})},
)
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
STRAY = [b'"', b"'", b"\0", b",", b"\t", b"\n", b"\r", b"{", b"]", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"-", b"."]
OF_THE_WHOLE = (
    r"has no rows|is empty|has a header and no rows|rows are bad|no row is left|none of \d+ sessions|does not start as|"
    r"no column |cannot be read"
)
"""What is said where no row is to blame."""


def whole_logs(folder):
    """Small logs that are as they should be, of every form, each with what its columns mean."""
    rows = [
        {"s": f"s{s}", "u": f"u{s % 3}", "i": f"t{t}é", "p": t, "t": 1_500_000_000 + 60 * t, "k": t % 2, "d": 1.5,
         "e": ("skip", "play", "open")[t % 3]}
        for s in range(6)
        for t in range(1, 7)
    ]  # fmt: skip
    maps = [ColumnMap(format=form, item=("i",), **own) for form in ("csv", "tsv", "jsonl", "parquet") for own in MAPS]
    whole = [(c, write(folder / f"whole.{c.format}", rows, c).read_bytes()) for c in maps]
    lines = [line for s in range(6) for line in log_session(f"s{s}", list("abcd"))]
    return [*whole, (MSSD, write_log(folder / "mssd.csv", lines).read_bytes())]


def damaged(content, draw):
    """Bytes with one or a few of the things that happen to files."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content)) if content else 0
        before, after = content[:at], content[at:]
        what = draw.randrange(9)
        if what == 0 and content:
            content = before + bytes([after[0] ^ 1 << draw.randrange(8)]) + after[1:]
        elif what == 1:
            content = before
        elif what == 2:
            content = before + draw.choice(STRAY) + after
        elif what == 3:
            content = before + b"9" * draw.choice([30, 5000, 70_000]) + after
        elif what == 4:
            content = before + after[draw.randint(1, 40) :]
        elif what == 5:
            content = content.decode("utf-8", "replace").encode(draw.choice(["utf-16", "latin-1"]), "replace")
        elif what == 6:
            content = before + content[: draw.randint(1, 200)] + after
        elif what == 7:
            lines = content.split(b"\n")
            draw.shuffle(lines)
            content = b"\n".join(lines)
        else:
            content = with_columns_swapped(content, draw)
    return content


def with_columns_swapped(content, draw):
    """In all lines, or in one of them."""
    lines = content.split(b"\n")
    delimiter = max((b",", b"\t"), key=content.count)
    n = lines[0].count(delimiter) + 1
    one, other = draw.randrange(n), draw.randrange(n)
    for i in range(len(lines)) if draw.random() < 0.5 else [draw.randrange(len(lines))]:
        fields = lines[i].split(delimiter)
        if len(fields) == n:
            fields[one], fields[other] = fields[other], fields[one]
        lines[i] = delimiter.join(fields)
    return b"\n".join(lines)


def damaged_table(content, draw, path):
    """A parquet file that is whole, and whose values are of other kinds, missing, or no text."""
    path.write_bytes(content)
    table = pq.read_table(path)
    at = draw.randrange(table.num_columns)
    name, n = table.column_names[at], len(table)
    columns = [
        pa.nulls(n),
        pa.array([draw.choice(["x", None, "", "1", "-1", "9" * 40, "nan"]) for _ in range(n)]),
        pa.array([draw.choice([1.5, None, float("nan"), 2.0**70]) for _ in range(n)]),
        pa.array([draw.randrange(2**63) for _ in range(n)]).cast(pa.timestamp("ns")),
        pa.array([b"\xff\xfe"] * n),
        pa.array([[1]] * n),
        pa.Array.from_buffers(pa.string(), n, pa.array([draw.choice([b"ok", b"\xff"]) for _ in range(n)]).buffers()),
        pa.array([draw.randrange(1000) for _ in range(n)]).cast(pa.duration("s")),
        pa.array(["a"] * n).dictionary_encode(),
    ]
    table = table.set_column(at, name, draw.choice(columns))
    if draw.random() < 0.3:
        names = list(table.column_names)
        draw.shuffle(names)
        table = table.rename_columns(names)
    pq.write_table(table, path, row_group_size=draw.choice([5, 100]))
    return path.read_bytes()


def refusal(path, out, reading):
    """What preparing the log is refused with, if it is."""
    try:
        prepare_logs([path], out, config=PrepareConfig(min_length=4, max_length=6), reading=reading, progress=False)
    except DatasetError as error:
        return str(error)
    return None


def guess_or_refusal(path):
    """A guessed map that is one; or what guessing is refused with."""
    try:
        return map_from(tomllib.loads(guess(path)), "guess")
    except DatasetError as error:
        return str(error)


def test_a_damaged_log_ends_well_or_in_an_error_that_names_its_file_and_row(tmp_path, monkeypatch):
    """Of every form and packing: no other exception, and no folder half made. SKIPREC_DAMAGED=10000 is the full one."""
    draw = random.Random(8)
    whole = whole_logs(tmp_path)
    ended = {"well": 0, "by its row": 0, "as a whole": 0}
    for number in range(DAMAGED):
        columns, content = draw.choice(whole)
        suffix = draw.choice(["", "", *PACK]) if columns.format != "parquet" else ""
        path = tmp_path / f"log-{number}.{columns.format}{suffix}"
        if columns.format == "parquet" and draw.random() < 0.5:
            content = damaged_table(content, draw, path)
        else:
            content = damaged(content, draw)
        if suffix:
            content = PACK[suffix](content)
            content = damaged(content, draw) if draw.random() < 0.5 else content
        path.write_bytes(content)
        monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", draw.choice([100, 1 << 22]))
        monkeypatch.setattr(skiprec.logs, "LONGEST_LINE", draw.choice([60_000, 1 << 24]))
        reading = Reading(columns=columns, on_bad_row=draw.choice(["refuse", "skip"]), bad_rows_at_most=0.5)
        error = refusal(path, tmp_path / "out", reading)
        assert (tmp_path / "out").exists() == (error is None)
        assert not list(tmp_path.glob(".out*"))
        if error is None:
            ended["well"] += 1
            for name in ("sessions", "items"):  # whatever is written is text, and can be read again
                assert len(pd.read_parquet(tmp_path / "out" / f"{name}.parquet"))
            assert Manifest.read(tmp_path / "out").counts["sessions"]
            shutil.rmtree(tmp_path / "out")
        else:
            assert path.name in error, content[:200]
            is_by_row = re.search(r", rows? (from )?\d+", error) is not None
            assert is_by_row or re.search(OF_THE_WHOLE, error), error
            ended["by its row" if is_by_row else "as a whole"] += 1
        found = guess_or_refusal(path)
        assert isinstance(found, ColumnMap) or path.name in found
        path.unlink()
    print(ended)
    assert min(ended.values()) > DAMAGED // 20
