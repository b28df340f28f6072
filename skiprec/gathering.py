"""Checked rows, block by block -> chunks on disk, each sorted by session: of a log, memory holds one chunk.

And the ids of its items, each once.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, Integer

from skiprec.events import Order, Rows, in_order_of_runs
from skiprec.numbering import Codes, Numbering

# N rows, R runs.

CHUNK_BYTES = 1 << 24
"""Of rows that are held before they are written to disk, counted with the next two."""
RUN_BYTES, ROW_BYTES = 120, 5
"""What a run takes, its session's id included, and each of its rows."""
RUNS_AT_ONCE = 1 << 8
"""That are read back together at least."""

NUMBERS = ("position", "n_rows", "session_length", "date", "context", "file", "row")
"""Of `Runs`, all but the session, which a chunk has as a text."""
WIDE = ("position", "row")
"""Of these, what 32 bits may not hold."""
CHUNK = pa.schema(
    [
        ("session_id", pa.string()),
        *((name, pa.int64() if name in WIDE else pa.int32()) for name in NUMBERS),
        ("item", pa.list_(pa.int32())),
        ("flags", pa.list_(pa.uint8())),
    ]
)
"""One row a run; item and flags are those of the run's rows. Numbers of items and contexts are the gatherer's own."""


@dataclass(frozen=True)
class Chunk:
    """A file of runs, in batches, sorted by `merging_key`."""

    path: Path
    batches: list[tuple[bytes, int]]
    """The key of the first run of each batch, in UTF-8; and its bytes, as CHUNK_BYTES counts them."""


@dataclass(frozen=True)
class Gathered:
    """What was read of some files."""

    chunks: list[Chunk]
    item_ids: pa.StringArray
    """By number."""
    context_types: list[str]
    """By number."""
    rows: dict[int, int]
    """Of each file."""
    left_out: Counter[str]
    """Rows that were left out, by reason."""
    notes: Counter[str]
    """What was odd, and in how many files."""


class Column:
    """Values that come block by block, in one array that grows in place: joined at the end, all would be held twice."""

    def __init__(self, dtype: type) -> None:
        self.n = 0
        self.room = np.empty(0, dtype=dtype)

    def append(self, block: Integer[np.ndarray, " N"]) -> None:
        """Take the next values."""
        if self.n + len(block) > len(self.room):
            self.room.resize((self.n + len(block)) * 5 // 4, refcheck=False)
        self.room[self.n : self.n + len(block)] = block
        self.n += len(block)

    def whole(self) -> Integer[np.ndarray, " N"]:
        """All values."""
        return self.room[: self.n]

    def clear(self) -> None:
        """Forget the values, and keep the room."""
        self.n = 0


class Gatherer:
    """Takes rows block by block.

    Args:
        order: What positions mean.
        folder: Where chunks are written to.
        name: What their files' names start with: no other gatherer's do.
    """

    def __init__(self, order: Order, folder: Path, name: str) -> None:
        self.order, self.folder, self.name = order, folder, name
        self.items, self.contexts = Numbering(), Codes()
        self.sessions = Numbering()
        self.columns = {name: Column(np.int64 if name in WIDE else np.int32) for name in ("session", *NUMBERS)}
        self.item, self.flags = Column(np.int32), Column(np.uint8)
        self.chunks: list[Chunk] = []
        self.rows: Counter[int] = Counter()
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def add(self, rows: Rows, file: int) -> None:
        """Take the next rows of a file, which is named by a number."""
        self.left_out.update(rows.left_out)
        self.notes.update(rows.notes)
        self.rows[file] += len(rows.row)
        if not len(rows.row):
            return
        # Of times each row is a run: two that a microsecond parts may have another between them, of another file.
        starts = np.arange(len(rows.row)) if self.order.by == "time" else run_starts(rows)
        self.columns["session"].append(self.sessions.numbers(rows.session_id.take(pa.array(starts))))
        self.columns["n_rows"].append(np.diff(starts, append=len(rows.item_id)))
        for name in ("position", "session_length", "date", "context", "row"):
            self.columns[name].append(getattr(rows, name)[starts])
        self.columns["file"].append(np.full(len(starts), file, dtype=np.int32))
        self.item.append(self.items.numbers(rows.item_id))
        self.flags.append(rows.flags)
        if RUN_BYTES * self.columns["session"].n + ROW_BYTES * self.item.n >= CHUNK_BYTES:
            self.spill()

    def spill(self) -> None:
        """Write what is held to disk."""
        session_ids = pa.concat_arrays(self.sessions.texts)
        keys = merging_key(session_ids, self.order)
        places = np.empty(len(keys), dtype=np.int32)
        by_key = pc.array_sort_indices(keys).to_numpy()
        places[by_key] = np.arange(len(keys), dtype=np.int32)
        session, n_rows = (self.columns[name].whole() for name in ("session", "n_rows"))
        order = np.argsort(places[session], kind="stable")
        first_row = (np.cumsum(n_rows, dtype=np.int64) - n_rows)[order]
        item, flags = (in_order_of_runs(c.whole(), first_row, n_rows[order]) for c in (self.item, self.flags))
        offsets = np.concatenate([[0], np.cumsum(n_rows[order])]).astype(np.int32)
        number = session[order]
        table = pa.table(
            [
                session_ids.take(pa.array(number)),
                *(pa.array(self.columns[name].whole()[order]) for name in NUMBERS),
                *(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (item, flags)),
            ],
            schema=CHUNK,
        )
        path = self.folder / f"{self.name}-{len(self.chunks)}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, CHUNK) as writer:
            writer.write_table(table, max_chunksize=RUNS_AT_ONCE)
        edges = np.array([*range(0, len(table), RUNS_AT_ONCE), len(table)])
        sizes = (RUN_BYTES * np.diff(edges) + ROW_BYTES * np.diff(offsets[edges])).tolist()
        firsts = [text.encode() for text in keys.take(pa.array(number[::RUNS_AT_ONCE])).to_pylist()]
        self.chunks.append(Chunk(path, list(zip(firsts, sizes, strict=True))))
        self.sessions = Numbering()
        for column in (*self.columns.values(), self.item, self.flags):
            column.clear()

    def finish(self) -> Gathered:
        """Everything that was added. The gatherer is of no use then."""
        if self.item.n:
            self.spill()
        texts = self.items.texts
        return Gathered(
            chunks=self.chunks,
            item_ids=pa.concat_arrays(texts) if texts else pa.array([], pa.string()),
            context_types=list(self.contexts),
            rows=dict(self.rows),
            left_out=self.left_out,
            notes=self.notes,
        )


def merging_key(session_ids: pa.StringArray, order: Order) -> pa.StringArray:
    """What chunks are sorted and split by, so that sessions of one part have ids below those of the next part.

    Of a user whose rows are yet to be cut into sessions U/1, U/2, ... that is what comes before U's first slash, with a
    slash: so no user's sessions lie among those of a user with another key.
    """
    if order.gap is None:
        return session_ids
    return pc.replace_substring_regex(session_ids, r"(?s)^([^/]*).*$", r"\1/")


def run_starts(rows: Rows) -> Int64[np.ndarray, " R"]:
    """The rows that begin a run."""
    is_start = np.ones(len(rows.position), dtype=bool)
    is_start[1:] = pc.not_equal(rows.session_id[1:], rows.session_id[:-1]).to_numpy(zero_copy_only=False)
    is_start[1:] |= (np.diff(rows.position) != 1) | (np.diff(rows.row) != 1)
    for column in (rows.session_length, rows.date, rows.context):
        is_start[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(is_start)
