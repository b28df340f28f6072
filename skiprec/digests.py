"""The digests by which a dataset is known: of values in a fixed form, whatever wrote the files that hold them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Integer

from skiprec import files
from skiprec.numbering import renumber

# N values.


def features_digest(features: pa.Table) -> str:
    """Of names and values; what is not known is NaN."""
    columns = [combined(features[name]).to_numpy(zero_copy_only=False) for name in features.column_names[1:]]
    named = files.canonical_json(features.column_names).encode()
    return files.sha256(named, *(as_bytes(values, "<f4") for values in columns))


Columns = Callable[[str], Iterator[pa.Array]]
"""A table's column by its name, a part of its rows after the other."""


def table_digests(sessions: Columns, items: pa.Table, settings: dict[str, Any]) -> dict[str, str]:
    """The manifest's digests: of values in a fixed form, so that neither file format nor library version matters.

    Args:
        sessions: The columns of the sessions, in parts: all need not be in memory together. Parts of `contexts` may
            have dictionaries of their own.
        items: The items.
        settings: The PrepareConfig.
    """
    found = {text for part in sessions("contexts") for text in part.flatten().dictionary.to_pylist()}
    names = sorted(found, key=str.encode)  # as texts are compared everywhere
    places = {text: place for place, text in enumerate(names)}

    def contexts() -> Iterator[memoryview]:
        for part in sessions("contexts"):
            own = part.flatten()
            table = np.array([places[text] for text in own.dictionary.to_pylist()], dtype=np.int32)
            numbers = own.indices.to_numpy()
            if table.tolist() != list(range(len(table))):
                numbers = numbers.copy()
                renumber(numbers, table)
            yield as_bytes(numbers, "<i4")

    def values(name: str, dtype: str) -> Iterator[memoryview]:
        return (as_bytes(part.flatten().to_numpy(), dtype) for part in sessions(name))

    def lengths(name: str) -> Iterator[memoryview]:
        return (as_bytes(np.diff(part.offsets.to_numpy()), "<i4") for part in sessions(name))

    def dates() -> Iterator[memoryview]:
        return (as_bytes(part.cast(pa.int32()).to_numpy(), "<i4") for part in sessions("date"))

    def ids(part: Literal[0, 1]) -> Iterator[memoryview]:
        return (texts_as_bytes(texts)[part] for texts in sessions("session_id"))

    named = texts_as_bytes(pa.array(names, pa.string()))
    digests = {
        "sessions": files.sha256_of_streams(
            lambda: ids(0),
            lambda: ids(1),
            dates,
            *(functools.partial(lengths, name) for name in ("items", "skip_levels", "contexts")),
            lambda: values("items", "<i4"),
            lambda: values("skip_levels", "<i1"),
            contexts,
            lambda: iter(named[:1]),
            lambda: iter(named[1:]),
        ),
        "items": files.sha256(
            as_bytes(combined(items["item_index"]).to_numpy(), "<i4"),
            *texts_as_bytes(combined(items["item_id"])),
            as_bytes(combined(items["plays"]).to_numpy(), "<i8"),
        ),
    }
    return digests | {"dataset": files.sha256(files.canonical_json([settings, digests]).encode())}


def columns_of(table: pa.Table) -> Columns:
    """Those of a table in memory."""
    return lambda name: iter([combined(table[name])])


def as_bytes(values: Integer[np.ndarray, " N"] | Float32[np.ndarray, " N"], dtype: str) -> memoryview:
    """The values' bytes in a fixed form; not copied where they are in it already."""
    return memoryview(np.ascontiguousarray(values, dtype=dtype)).cast("B")


def combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array that starts at its buffers' start."""
    if column.num_chunks == 1 and column.chunk(0).offset == 0:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def texts_as_bytes(texts: pa.Array) -> tuple[memoryview, memoryview]:
    """Lengths and concatenated UTF-8 of the texts."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return as_bytes(np.diff(offsets), "<i8"), memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]]
