"""Tables of track features, such as MSSD's tf_*.csv -> a number a feature and item, for description and for groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int8, Int64
from tqdm import tqdm

from skiprec.errors import DatasetError
from skiprec.events import shorten
from skiprec.logs import MISSING, check_text, parse, text_blocks

# V items of a catalogue, N rows of a block.

ID_COLUMNS = ("track_id", "track_id_clean", "item_id")
"""What the column of ids may be called."""
FEATURE_THIRDS = ("low", "middle", "high")
FEATURE = "feature "
"""What a feature's column is called among the ranks, before its own name."""


def read_features(
    paths: Sequence[Path],
    item_ids: pa.StringArray,
    *,
    rename: Callable[[pa.StringArray], pa.StringArray] = lambda ids: ids,
    progress: bool = True,
) -> pa.Table:
    """The features of a catalogue's items: columns of numbers, with null where a table has none. Others are left out.

    Args:
        paths: CSV files with a header, plain or packed; each track is in one row of one of them.
        item_ids: Of the catalogue.
        rename: Makes the catalogue's ids of the tables' own.
        progress: Show a bar, where there is a terminal.

    Raises:
        DatasetError: With file and row, what was found and what was expected.
    """
    values: dict[str, Float32[np.ndarray, " V"]] = {}
    is_known = np.zeros(len(item_ids), dtype=bool)
    total = sum(path.stat().st_size for path in paths if path.exists())
    shown = None if progress else True
    with tqdm(total=total, desc="reading features", unit="B", unit_scale=True, disable=shown) as bar:
        for path in paths:
            for row, ids, columns in feature_blocks(path, bar.update):
                places = pc.index_in(rename(ids), value_set=item_ids)
                here = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
                places = places.drop_null().to_numpy()
                twice = is_known[places]
                is_repeat = np.ones(len(places), dtype=bool)
                is_repeat[np.unique(places, return_index=True)[1]] = False
                if (again := np.flatnonzero(twice | is_repeat)).size:
                    at = int(here[again[0]])
                    raise DatasetError(
                        f"{path}, row {row + at}: track {shorten(ids[at].as_py())} was there before, expected each once"
                    )
                is_known[places] = True
                for name, numbers in columns.items():
                    own = values.setdefault(name, np.full(len(item_ids), np.nan, dtype=np.float32))
                    own[places] = numbers[here]
    if not is_known.any():
        raise DatasetError(
            f"{', '.join(map(str, paths[:3]))}: none of the {len(item_ids):,} tracks of the dataset is there, expected "
            "the features of the same tracks"
        )
    arrays = {name: pa.array(own, pa.float32(), from_pandas=True) for name, own in sorted(values.items())}
    return pa.table({"item_index": pa.array(np.arange(1, len(item_ids) + 1, dtype=np.int32))} | arrays)


Rows = tuple[int, pa.StringArray, dict[str, Float32[np.ndarray, " N"]]]
"""The number of the first row, ids, and the columns of numbers."""


def feature_blocks(path: Path, advance: Callable[[int], object]) -> Iterator[Rows]:
    """A file's rows, some at a time.

    Which columns hold numbers is decided by the first rows; a text in one of them later on is refused.

    Raises:
        DatasetError: With file and row.
    """
    header: list[str] = []
    key, numeric = "", None
    for row, text in text_blocks(path, advance):
        check_text(path, row, text)
        if not header:
            first, _, rest = bytes(text).partition(b"\n")
            header = first.rstrip(b"\r").decode().split(",")
            if not (keys := [name for name in ID_COLUMNS if name in header]):
                shown = ", ".join(shorten(name) for name in header[:8])
                raise DatasetError(f"{path}, row 1: no column {' or '.join(ID_COLUMNS)}; found {shown}")
            if twice := [name for name in header if header.count(name) > 1]:
                raise DatasetError(f"{path}, row 1: column {shorten(twice[0])} is there twice, expected once")
            key, row, text = keys[0], 2, memoryview(rest)
        if not text:
            continue
        try:
            table = parse(text, header, dict.fromkeys(header, pa.string()))
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path}, rows from {row}: cannot be read ({error}), expected a CSV table") from error
        table = table.combine_chunks()
        columns: dict[str, Float32[np.ndarray, " N"]] = {}
        for name in header if numeric is None else numeric:
            if name == key:
                continue
            found = numbers_of(table[name])
            if isinstance(found, int):
                if numeric is not None:
                    wrong = shorten(table[name][found].as_py())
                    raise DatasetError(f"{path}, row {row + found}: {name} is {wrong}, expected a number as before")
                continue
            columns[name] = found
        if numeric is None:
            numeric = list(columns)
            if not numeric:
                raise DatasetError(f"{path}, row {row}: no column of numbers beside {key}, expected at least one")
        yield row, table[key].combine_chunks(), columns
    if not header:
        raise DatasetError(f"{path}: is empty, expected a header and rows")


def numbers_of(texts: pa.ChunkedArray) -> Float32[np.ndarray, " N"] | int:
    """Texts as numbers, NaN where there is no value; or the place of the first one that is no finite number."""
    filled = pc.if_else(pc.is_in(texts, pa.array(sorted(MISSING))), None, texts)
    try:
        numbers = filled.cast(pa.float32())
        if pc.all(pc.is_finite(numbers)).as_py() is not False:
            return numbers.to_numpy()
    except pa.ArrowInvalid:
        pass
    return next(i for i, text in enumerate(filled.to_pylist()) if text is not None and not is_number(text))


def is_number(text: str) -> bool:
    """Whether Arrow takes it for a finite number of 32 bits."""
    try:
        return bool(np.isfinite(pa.scalar(text).cast(pa.float32()).as_py()))
    except pa.ArrowInvalid:
        return False


def thirds(values: Float32[np.ndarray, " V"]) -> Int8[np.ndarray, " V"]:
    """Of each item whether its value is among the lowest third of those known (0), the middle (1) or the highest (2).

    Equal values are in one third; -1 where the value is not known.
    """
    is_known = ~np.isnan(values)
    found = np.full(len(values), -1, dtype=np.int8)
    _, which, counts = np.unique(values[is_known], return_inverse=True, return_counts=True)
    # Of equal values the mean place decides, so that two frequent ones do not fall together.
    twice_places = 2 * np.cumsum(counts) - counts
    found[is_known] = np.minimum(3 * twice_places // (2 * max(1, is_known.sum())), 2)[which]
    return found


def skip_differences(
    features: Mapping[str, Float32[np.ndarray, " V"]],
    items: Int64[np.ndarray, " N"],
    skipped: Bool[np.ndarray, " N"],
) -> dict[str, float]:
    """How far the mean of each feature over skipped plays is above that over heard plays, in its standard deviations.

    Args:
        features: By item, NaN where not known.
        items: Of the plays.
        skipped: Whether each was skipped.

    Returns:
        By feature, the largest differences first; those that cannot be told are left out.
    """
    found = {}
    for name, values in features.items():
        own = values[items].astype(np.float64)
        is_known = ~np.isnan(own)
        own, is_skipped = own[is_known], skipped[is_known]
        if is_skipped.any() and not is_skipped.all() and own.std() > 0:
            found[name] = float((own[is_skipped].mean() - own[~is_skipped].mean()) / own.std())
    return dict(sorted(found.items(), key=lambda pair: (-abs(pair[1]), pair[0])))
