"""Chunks of runs on disk -> events, a part of the sessions at a time, in the order of their ids."""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from skiprec.digests import combined
from skiprec.events import Events, Order, events_of
from skiprec.gathering import CHUNK, CHUNK_BYTES, NUMBERS, Chunk, Gathered, merging_key
from skiprec.numbering import Codes, Numbering, renumber

# V distinct items, K contexts.

PART_BYTES = CHUNK_BYTES
"""About what a part takes, counted as chunks are."""


@dataclass(frozen=True)
class Source:
    """A chunk, with what its numbers are in the whole log."""

    chunk: Chunk
    firsts: list[bytes]
    """The key of the first run of each batch."""
    items: Int32[np.ndarray, " V"]
    contexts: Int32[np.ndarray, " K"]


class Log:
    """All that was read, by one process or several.

    Args:
        gathered: What each of them read.
        files: All files: what their numbers mean.
        order: What positions mean.
        leave_bad_out: Whether sessions that contradict themselves are left out, and counted, rather than refused.
    """

    def __init__(
        self, gathered: Sequence[Gathered], files: Sequence[Path], order: Order, *, leave_bad_out: bool
    ) -> None:
        self.order, self.leave_bad_out = order, leave_bad_out
        rows = {file: n for part in gathered for file, n in part.rows.items()}
        self.sources = [(path, rows.get(file, 0)) for file, path in enumerate(files)]
        """Each file with its number of rows."""
        self.left_out, self.notes = Counter[str](), Counter[str]()
        for part in gathered:
            self.left_out.update(part.left_out)
            self.notes.update(part.notes)
        items, contexts = Numbering(), Codes()
        numbers = [
            (
                items.numbers(part.item_ids) if len(part.item_ids) else np.empty(0, np.int32),
                np.array([contexts[text] for text in part.context_types], dtype=np.int32),
            )
            for part in gathered
        ]
        self.context_types = sorted(contexts)
        """Sorted, as item_ids: events number both so."""
        context_places = np.empty(len(contexts), dtype=np.int32)
        context_places[[contexts[text] for text in self.context_types]] = np.arange(len(contexts))
        self.item_ids, item_places = items.in_order() if items.n else (pa.array([], pa.string()), np.empty(0, np.int32))
        self.chunks = []
        for part, (own_items, own_contexts) in zip(gathered, numbers, strict=True):
            # Made once for all chunks of a part: each is as large as the catalogue.
            places = item_places[own_items], context_places[own_contexts]
            self.chunks += [Source(chunk, [first for first, _ in chunk.batches], *places) for chunk in part.chunks]

    @property
    def n_rows(self) -> int:
        """That were read and not left out."""
        return sum(n for _, n in self.sources)

    def parts(self) -> Iterator[Events]:
        """All events: those of some sessions, then of sessions with larger ids, and so on.

        Raises:
            DatasetError: If a session has a position twice, or says two lengths, and is not to be left out.
        """
        edges = [None, *self._edges(), None]
        for least, below in itertools.pairwise(edges):
            pieces = [piece for source in self.chunks if (piece := self._piece(source, least, below)) is not None]
            if pieces:
                yield self._events(pieces)

    def _edges(self) -> list[bytes]:
        """Keys at which to begin another part."""
        edges: list[bytes] = []
        size = 0
        for first, own in sorted(batch for source in self.chunks for batch in source.chunk.batches):
            if size and size + own > PART_BYTES and first != (edges[-1] if edges else b""):
                edges.append(first)
                size = 0
            size += own
        return edges

    def _piece(self, source: Source, least: bytes | None, below: bytes | None) -> pa.Table | None:
        """The runs of a chunk with keys from `least` on, and below the other."""
        firsts = source.firsts
        # The batch before the first one that begins in the range may reach into it.
        start = 0 if least is None else max(0, bisect.bisect_left(firsts, least) - 1)
        stop = len(firsts) if below is None else bisect.bisect_left(firsts, below)
        if start >= stop:
            return None
        with pa.OSFile(str(source.chunk.path)) as file, pa.ipc.open_file(file) as reader:
            table = pa.Table.from_batches([reader.get_batch(i) for i in range(start, stop)], CHUNK)
        keys = merging_key(combined(table["session_id"]), self.order)
        start = 0 if least is None else pc.sum(pc.less(keys, least.decode())).as_py()
        stop = len(keys) if below is None else pc.sum(pc.less(keys, below.decode())).as_py()
        if start >= stop:
            return None
        table = table.slice(start, stop - start)
        columns = {name: table[name] for name in table.column_names}
        for name, places in (("context", source.contexts), ("item", source.items)):
            array = pa.concat_arrays(columns[name].chunks)
            numbers = (array.flatten() if name == "item" else array).to_numpy().copy()
            renumber(numbers, places)
            columns[name] = (
                pa.ListArray.from_arrays(offsets_of(array), pa.array(numbers)) if name == "item" else pa.array(numbers)
            )
        return pa.table(columns, schema=CHUNK)

    def _events(self, pieces: list[pa.Table]) -> Events:
        table = pa.concat_tables(pieces)
        return events_of(
            {name: combined(table[name]).to_numpy() for name in NUMBERS},
            combined(table["session_id"]),
            *(combined(table[name]).flatten().to_numpy() for name in ("item", "flags")),
            self.order,
            self.sources,
            leave_bad_out=self.leave_bad_out,
        )


def offsets_of(lists: pa.ListArray) -> Int32[np.ndarray, " V"]:
    """Where each list starts among the flattened values, and where the last one ends."""
    offsets = lists.offsets.to_numpy()
    return offsets - offsets[0]
