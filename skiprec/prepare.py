"""Event table -> prepared dataset folder: which sessions are kept, items numbered, tables and manifest written."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, Integer

from skiprec import files
from skiprec.errors import ConfigError, DatasetError
from skiprec.logs import Events, find_logs, read_logs
from skiprec.schema import ITEMS, SESSIONS

# N rows, S sessions.

FORMAT = 1
"""Version of the folder's layout."""

N_HELD_OUT = 2
"""Leave-one-out: the last item is the test target, the one before it the validation target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Which sessions a dataset keeps, and what counts as skipped in it. Recorded whole in the manifest."""

    min_length: int = 10
    """Shorter sessions are dropped."""
    max_length: int = 20
    """A longer session keeps its last items."""
    skip_threshold: int = 2
    """A position is skipped when its level is at least this: 1 mostly played, 2 briefly, 3 very briefly."""
    only_sessions_with_skips: bool = False
    """Drop sessions in which no kept position is skipped."""
    split: Literal["leave_one_out"] = "leave_one_out"
    """What is held out of training."""

    def __post_init__(self) -> None:
        if self.min_length < 4:
            raise ConfigError(
                f"min_length is {self.min_length}, expected 4 or more: two items to train on and two held out"
            )
        if self.max_length < self.min_length:
            raise ConfigError(
                f"max_length ({self.max_length}) is smaller than min_length ({self.min_length}): no session fits"
            )
        if self.skip_threshold not in (1, 2, 3):
            raise ConfigError(f"skip_threshold is {self.skip_threshold}, expected 1, 2 or 3")
        if self.split != "leave_one_out":
            raise ConfigError(f"split is {self.split!r}, expected 'leave_one_out'")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset folder holds and how it came about."""

    format: int
    settings: dict[str, Any]
    """The PrepareConfig."""
    sources: list[dict[str, Any]]
    """Each log file: its name and its rows."""
    counts: dict[str, int]
    """Of kept sessions, unless the name ends in _read."""
    dropped: dict[str, int]
    """Sessions that were not kept, by reason."""
    digests: dict[str, str]
    """SHA-256 of the values of each table, and of these two with the settings as `dataset`."""

    @property
    def digest(self) -> str:
        """What the dataset is known by."""
        return self.digests["dataset"]

    @property
    def config(self) -> PrepareConfig:
        """The settings, checked again."""
        return PrepareConfig(**self.settings)

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """The manifest of a dataset folder.

        Raises:
            DatasetError: If there is none, or it is not one.
        """
        path = Path(folder) / "manifest.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DatasetError(
                f"{path}: cannot be read ({error.strerror}), expected a folder made by `skiprec prepare`"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: is not JSON ({error}); prepare the logs again") from error
        kinds = {"settings": dict, "sources": list, "counts": dict, "dropped": dict, "digests": dict}
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else values
            raise DatasetError(f"{path}: format is {found!r}, expected {FORMAT}; prepare the logs again")
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise DatasetError(f"{path}: {name} is {values.get(name)!r}, expected a {kind.__name__}; prepare again")
        for name in ("sessions", "items", "dataset"):
            if not isinstance(values["digests"].get(name), str):
                raise DatasetError(f"{path}: digests has no {name}, expected one; prepare the logs again")
        manifest = cls(format=FORMAT, **{name: values[name] for name in kinds})
        try:
            manifest.config  # noqa: B018  checked here, or a changed setting would surface far away
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path}: settings: {error}; prepare the logs again") from error
        return manifest


def prepare_logs(
    paths: Sequence[str | Path], out: str | Path, *, config: PrepareConfig | None = None, progress: bool = True
) -> Manifest:
    """Read MSSD logs and write them as a dataset folder.

    Args:
        paths: Files, folders and globs, as find_logs takes them. Their order does not matter.
        out: The folder to make.
        config: Defaults where None.
        progress: Show a bar, where there is a terminal.

    Returns:
        The manifest that was written.

    Raises:
        DatasetError: If a log is not as it should be, or no session can be kept. Nothing is written then.
        OutputError: If `out` exists or cannot be written.
    """
    config = config or PrepareConfig()
    out = Path(out)
    files.refuse_existing(out)  # before minutes of reading
    sessions, items, manifest = build(read_logs(find_logs(paths), progress=progress), config)
    with files.new_folder(out) as folder:
        # One row group: pyarrow, and so pandas, cannot read lists of dictionaries out of several at once.
        pq.write_table(sessions, folder / "sessions.parquet", row_group_size=len(sessions))
        pq.write_table(items, folder / "items.parquet")
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
        files.write_file(folder / "manifest.json", text + "\n")
    return manifest


def build(events: Events, config: PrepareConfig) -> tuple[pa.Table, pa.Table, Manifest]:
    """The two tables of a dataset and its manifest.

    Raises:
        DatasetError: If no session can be kept.
    """
    rows = events.rows
    starts = np.flatnonzero(np.diff(rows.session, prepend=-1))  # (S,) of all sessions read
    lengths = np.diff(starts, append=len(rows.session))
    kept_lengths = np.minimum(lengths, config.max_length)
    is_skipped = rows.skip_level >= config.skip_threshold

    # Sorted without repeats, positions are exactly 1..session_length if the first is 1 and the last is both their
    # number and the session's length.
    last = starts + lengths - 1
    is_whole = (rows.position[starts] == 1) & (rows.position[last] == lengths) & (rows.session_length[last] == lengths)
    is_long = lengths >= config.min_length
    # In the training prefix: flags of held-out rows must not decide what is trained on.
    has_skip = sums(is_skipped, last + 1 - kept_lengths, np.maximum(kept_lengths - N_HELD_OUT, 0)) > 0
    is_wanted = has_skip if config.only_sessions_with_skips else np.ones_like(is_whole)
    keep = is_whole & is_long & is_wanted
    dropped = {
        "incomplete": int((~is_whole).sum()),
        "too_short": int((is_whole & ~is_long).sum()),
        "no_skips": int((is_whole & is_long & ~is_wanted).sum()),
    }
    if not keep.any():
        why = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise DatasetError(
            f"{', '.join(str(path) for path, _ in events.sources[:3])}{', ...' if len(events.sources) > 3 else ''}: "
            f"none of {len(starts)} sessions can be used ({why}), expected at least one of positions "
            f"1..session_length and {config.min_length} rows or more"
        )

    starts, lengths, kept_lengths = starts[keep], lengths[keep], kept_lengths[keep]
    firsts = starts + lengths - kept_lengths  # of what is left of each session
    chosen = within(firsts, kept_lengths)  # rows of the events, session by session
    offsets = np.concatenate([[0], np.cumsum(kept_lengths)]).astype(np.int32)
    catalogue, items = np.unique(rows.item[chosen], return_inverse=True)  # item numbers are in the order of item_id
    items = items + 1  # index 0 is padding
    levels = rows.skip_level[chosen]
    contexts = rows.context[chosen]
    context_types, contexts = np.unique(contexts, return_inverse=True)

    is_prefix = np.arange(len(chosen)) < np.repeat(offsets[1:] - N_HELD_OUT, kept_lengths)
    plays = np.bincount(items[is_prefix], minlength=len(catalogue) + 1)
    session_table = pa.table(
        [
            pa.array([events.session_ids[i] for i in rows.session[starts]], pa.string()),
            pa.array(rows.date[starts], pa.int32()).cast(pa.date32()),
            pa.ListArray.from_arrays(offsets, pa.array(items, pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(levels, pa.int8())),
            pa.ListArray.from_arrays(
                offsets,
                pa.DictionaryArray.from_arrays(
                    pa.array(contexts, pa.int32()),
                    pa.array([events.context_types[i] for i in context_types], pa.string()),
                ),
            ),
        ],
        schema=SESSIONS,
    )
    item_table = pa.table(
        [
            pa.array(np.arange(1, len(catalogue) + 1), pa.int32()),
            pa.array([events.item_ids[i] for i in catalogue], pa.string()),
            pa.array(plays[1:], pa.int64()),
        ],
        schema=ITEMS,
    )
    counts = {
        "rows_read": len(rows.session),
        "sessions_read": len(is_whole),
        "sessions": len(starts),
        "items": len(catalogue),
        "rows": len(chosen),
        "truncated": int((lengths > config.max_length).sum()),
        **{f"skip_level_{level}": int((levels == level).sum()) for level in range(4)},
        "skipped": int(is_skipped[chosen].sum()),
        "no_flag": int(rows.no_flag[chosen].sum()),
        "not_nested": int(rows.not_nested[chosen].sum()),
        "sessions_over_several_dates": int(
            (sums(changes(rows.date, firsts, kept_lengths), firsts, kept_lengths) > 0).sum()
        ),
    }
    settings = dataclasses.asdict(config)
    manifest = Manifest(
        format=FORMAT,
        settings=settings,
        sources=[{"file": name, "rows": n} for name, n in sorted((path.name, n) for path, n in events.sources)],
        counts=counts,
        dropped=dropped,
        digests=table_digests(session_table, item_table, settings),
    )
    return session_table, item_table, manifest


def within(firsts: Integer[np.ndarray, " S"], lengths: Integer[np.ndarray, " S"]) -> Int64[np.ndarray, " N"]:
    """The numbers first, first + 1, ..., `length` of them, for each pair in turn."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(lengths.sum())


def sums(
    flags: Bool[np.ndarray, " N"], firsts: Integer[np.ndarray, " S"], lengths: Integer[np.ndarray, " S"]
) -> Int64[np.ndarray, " S"]:
    """How many of the `length` flags from `first` on are true."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return total[firsts + lengths] - total[firsts]


def changes(
    values: Integer[np.ndarray, " N"], firsts: Integer[np.ndarray, " S"], lengths: Integer[np.ndarray, " S"]
) -> Bool[np.ndarray, " N"]:
    """True at a row whose value is not that of the row before it; never at the first row of a session."""
    differs = np.diff(values, prepend=values[:1]) != 0
    differs[firsts] = False
    return differs


def table_digests(sessions: pa.Table, items: pa.Table, settings: dict[str, Any]) -> dict[str, str]:
    """The manifest's digests: of values in a fixed form, so that neither file format nor library version matters."""
    lists = {name: combined(sessions[name]) for name in ("items", "skip_levels", "contexts")}
    lengths = [np.diff(array.offsets.to_numpy()).astype("<i4").tobytes() for array in lists.values()]
    context = lists["contexts"].flatten()
    by_name = pc.array_sort_indices(context.dictionary)  # parquet need not keep the order in which they are numbered
    place = np.argsort(by_name.to_numpy())
    digests = {
        "sessions": files.sha256(
            *texts_as_bytes(combined(sessions["session_id"])),
            combined(sessions["date"]).cast(pa.int32()).to_numpy().astype("<i4").tobytes(),
            *lengths,
            lists["items"].flatten().to_numpy().astype("<i4").tobytes(),
            lists["skip_levels"].flatten().to_numpy().astype("<i1").tobytes(),
            place[context.indices.to_numpy()].astype("<i4").tobytes(),
            *texts_as_bytes(context.dictionary.take(by_name)),
        ),
        "items": files.sha256(
            combined(items["item_index"]).to_numpy().astype("<i4").tobytes(),
            *texts_as_bytes(combined(items["item_id"])),
            combined(items["plays"]).to_numpy().astype("<i8").tobytes(),
        ),
    }
    return digests | {"dataset": files.sha256(files.canonical_json([settings, digests]).encode())}


def combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array that starts at its buffers' start."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def texts_as_bytes(texts: pa.Array) -> tuple[bytes, bytes]:
    """Lengths and concatenated UTF-8 of the texts."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.diff(offsets).astype("<i8").tobytes(), texts.buffers()[2].to_pybytes()[offsets[0] : offsets[-1]]
