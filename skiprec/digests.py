"""The digests by which a dataset is known: of values in a fixed form, whatever wrote the files that hold them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Integer

from skiprec import files
from skiprec.numbering import renumber

# N values.


def table_digests(sessions: pa.Table, items: pa.Table, settings: dict[str, Any]) -> dict[str, str]:
    """The manifest's digests: of values in a fixed form, so that neither file format nor library version matters."""
    lists = {name: combined(sessions[name]) for name in ("items", "skip_levels", "contexts")}
    lengths = [as_bytes(np.diff(array.offsets.to_numpy()), "<i4") for array in lists.values()]
    context = lists["contexts"].flatten()
    by_name = pc.array_sort_indices(context.dictionary)  # parquet need not keep the order in which they are numbered
    contexts = context.indices.to_numpy()
    if (place := np.argsort(by_name.to_numpy()).astype(np.int32)).tolist() != list(range(len(place))):
        contexts = contexts.copy()
        renumber(contexts, place)
    digests = {
        "sessions": files.sha256(
            *texts_as_bytes(combined(sessions["session_id"])),
            as_bytes(combined(sessions["date"]).cast(pa.int32()).to_numpy(), "<i4"),
            *lengths,
            as_bytes(lists["items"].flatten().to_numpy(), "<i4"),
            as_bytes(lists["skip_levels"].flatten().to_numpy(), "<i1"),
            as_bytes(contexts, "<i4"),
            *texts_as_bytes(context.dictionary.take(by_name)),
        ),
        "items": files.sha256(
            as_bytes(combined(items["item_index"]).to_numpy(), "<i4"),
            *texts_as_bytes(combined(items["item_id"])),
            as_bytes(combined(items["plays"]).to_numpy(), "<i8"),
        ),
    }
    return digests | {"dataset": files.sha256(files.canonical_json([settings, digests]).encode())}


def as_bytes(values: Integer[np.ndarray, " N"], dtype: str) -> memoryview:
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
