"""Event table -> prepared dataset folder: which sessions are kept, items numbered, tables and manifest written."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, Integer, UInt64
from tqdm import tqdm

from skiprec import files
from skiprec.digests import combined, features_digest, table_digests
from skiprec.errors import ConfigError, DatasetError
from skiprec.events import NO_FLAG, NOT_NESTED, SKIP_LEVEL, Events
from skiprec.features import read_features
from skiprec.merging import Log
from skiprec.numbering import counted, hash_pairs, renumber
from skiprec.reading import Reading, find_logs, read_logs, refuse_too_many_bad
from skiprec.schema import ITEMS, SESSIONS
from skiprec.seeds import counter_bits, derive_seed
from skiprec.splits import TRAIN, temporal_parts

# N rows, S sessions, R runs of rows, V distinct texts.

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
    """Drop sessions in which no position of the training prefix is skipped."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """What is held out of training: the last two items of each session, or all sessions of the last days."""

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
        if self.split not in ("leave_one_out", "temporal"):
            raise ConfigError(f"split is {self.split!r}, expected 'leave_one_out' or 'temporal'")

    @property
    def n_held_out(self) -> int:
        """The last items of a session of which some split asks one."""
        return N_HELD_OUT if self.split == "leave_one_out" else 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset folder holds and how it came about."""

    format: int
    settings: dict[str, Any]
    """The PrepareConfig."""
    sources: list[dict[str, Any]]
    """Each log file: its name, where ids are not pseudonyms, and its rows."""
    counts: dict[str, int]
    """Of kept sessions, unless the name ends in _read."""
    dropped: dict[str, int]
    """Sessions that were not kept, by reason."""
    digests: dict[str, str]
    """SHA-256 of the values of each table, and of sessions and items with the settings as `dataset`."""
    reading: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the logs were read, and what of their rows was left out, by reason."""

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
        if not isinstance(reading := values.get("reading", {}), dict):
            raise DatasetError(f"{path}: reading is {reading!r}, expected a dict; prepare the logs again")
        manifest = cls(format=FORMAT, reading=reading, **{name: values[name] for name in kinds})
        try:
            manifest.config  # noqa: B018  checked here, or a changed setting would surface far away
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path}: settings: {error}; prepare the logs again") from error
        return manifest


@dataclass(frozen=True)
class Kept:
    """What a dataset keeps of some events, and how many of them there were."""

    table: pa.Table
    """As KEPT says."""
    counts: dict[str, int]
    dropped: dict[str, int]


KEPT = pa.schema(
    [
        ("session_id", pa.string()),
        ("date", pa.int32()),
        ("items", pa.list_(pa.int32())),
        ("skip_levels", pa.list_(pa.int8())),
        ("contexts", pa.list_(pa.int32())),
    ]
)
"""As SESSIONS, with items and contexts by the numbers of everything that was read."""


def prepare_logs(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    config: PrepareConfig | None = None,
    reading: Reading | None = None,
    sample: tuple[int, int] | None = None,
    processes: int = 1,
    features: Sequence[str | Path] = (),
    progress: bool = True,
) -> Manifest:
    """Read logs and write them as a dataset folder.

    Memory holds the items' ids and a part of the rows; the others wait in a folder beside `out`, which is removed.

    Args:
        paths: Files, folders and globs, as find_logs takes them. Their order does not matter.
        out: The folder to make.
        config: Defaults where None.
        reading: How the logs are read; MSSD's CSV files where None.
        sample: How many of the sessions that could be kept are drawn, and the draw's seed; all where None.
        processes: That read files at the same time.
        features: CSV files of track features, as find_logs takes them; no part of what training sees, nor of the
            dataset's digest.
        progress: Show a bar, where there is a terminal.

    Returns:
        The manifest that was written.

    Raises:
        DatasetError: If a log is not as it should be, or no session can be kept. Nothing is written then.
        OutputError: If `out` exists or cannot be written.
    """
    config, reading = config or PrepareConfig(), reading or Reading()
    out = Path(out)
    files.refuse_existing(out)  # before minutes of reading
    if sample is not None and sample[0] < 1:
        raise ConfigError(f"--sample is {sample[0]}, expected at least 1")
    logs = find_logs(paths, reading.columns)
    feature_files = find_logs(features) if features else []
    with lean_arrow(), files.scratch_beside(out) as scratch:
        log = read_logs(logs, reading, scratch, processes=processes, progress=progress)
        kept = Store(scratch / "kept.arrow", KEPT)
        counts, dropped, left_out = choose_all(log, config, sample, kept, progress=progress)
        n_rows = log.n_rows - left_out.total()
        left_out = dict(sorted((log.left_out + left_out).items()))
        refuse_too_many_bad(logs, n_rows, left_out, reading)
        refuse_nothing(logs, counts, dropped, config)
        final = Final(log, kept, config)
        with files.new_folder(out) as folder:
            items = final.write(folder)
            settings = dataclasses.asdict(config)
            sources = [{"file": name, "rows": n} for name, n in sorted((path.name, n) for path, n in log.sources)]
            if reading.key is not None:  # a file may be named after those whose plays it holds
                sources = [{"rows": n} for n in sorted(source["rows"] for source in sources)]
            found = {"left_out": left_out, "notes": dict(log.notes)}
            digests = table_digests(final.column, items, settings)
            if feature_files:
                table = read_features(
                    feature_files, combined(items["item_id"]), rename=reading.renamed_items, progress=progress
                )
                pq.write_table(table, folder / "features.parquet", use_dictionary=False)
                digests["features"] = features_digest(table)
            manifest = Manifest(
                format=FORMAT,
                settings=settings,
                sources=sources,
                counts=counts | {"items": len(items)},
                dropped=dropped,
                digests=digests,
                reading=reading.about() | found | ({"sample": list(sample)} if sample else {}),
            )
            text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
            files.write_file(folder / "manifest.json", text + "\n")
    return manifest


@contextmanager
def lean_arrow() -> Iterator[None]:
    """Let Arrow allocate as all else does: its own allocator keeps what is freed, some 150 MB here."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


class Store:
    """Tables of one schema, one after the other in a file.

    Args:
        path: Of the file, to be made.
        schema: Of all tables.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.file = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_file(self.file, schema)

    def append(self, table: pa.Table) -> None:
        """Add a table. It is one batch."""
        self.writer.write_table(table.combine_chunks())

    def close(self) -> None:
        """Nothing more comes; tables may be read now."""
        self.writer.close()
        self.file.close()

    def tables(self, *names: str) -> Iterator[pa.Table]:
        """The tables as they were appended, or these columns of them."""
        wanted = [self.schema.get_field_index(name) for name in names] or None
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_file(file, options=options) as reader:
            for i in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(i)])


def choose_all(
    log: Log, config: PrepareConfig, sample: tuple[int, int] | None, kept: Store, *, progress: bool
) -> tuple[dict[str, int], dict[str, int], Counter[str]]:
    """Put what a dataset keeps of a log into a store, which is closed then.

    Returns:
        Counts of what was kept, of what was dropped, and of rows that were left out as sessions contradict themselves.

    Raises:
        DatasetError: If a session contradicts itself, and is not to be left out.
    """
    limit = None if sample is None else sample_limit(log, config, *sample)
    counts, dropped, left_out = Counter[str](), Counter[str](), Counter[str]()
    with tqdm(
        total=log.n_rows, desc="choosing sessions", unit=" rows", unit_scale=True, disable=None if progress else True
    ) as bar:
        for events in log.parts():
            part = choose(events, config, sample and (sample[1], limit))
            counts.update(part.counts)
            dropped.update(part.dropped)
            left_out.update(events.left_out)
            if len(part.table):
                kept.append(part.table)
            bar.update(len(events.item))
    kept.close()
    return dict(counts), dict(dropped), left_out


def refuse_nothing(
    logs: Sequence[Path], counts: Mapping[str, int], dropped: Mapping[str, int], config: PrepareConfig
) -> None:
    """Refuse logs of which no session can be kept.

    Raises:
        DatasetError: With what was dropped.
    """
    if not counts["sessions"]:
        why = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise DatasetError(
            f"{', '.join(str(path) for path in logs[:3])}{', ...' if len(logs) > 3 else ''}: "
            f"none of {counts['sessions_read']} sessions can be used ({why}), expected at least one of positions "
            f"1..session_length and {config.min_length} rows or more"
        )


@dataclass(frozen=True)
class Usable:
    """Which sessions of some events could be kept: S sessions."""

    first_run: Int64[np.ndarray, " S"]
    starts: Int64[np.ndarray, " S"]
    """Of the rows."""
    lengths: Int64[np.ndarray, " S"]
    keep: Bool[np.ndarray, " S"]
    dropped: dict[str, int]
    """Sessions that could not, by reason."""


def usable(events: Events, config: PrepareConfig) -> Usable:
    """Find the sessions that a dataset may keep."""
    runs = events.runs
    first_run = np.flatnonzero(np.diff(runs.session, prepend=-1))  # (S,) of all sessions read
    last_run = np.append(first_run[1:], len(runs.session))[: len(first_run)] - 1
    starts = (np.cumsum(runs.n_rows, dtype=np.int64) - runs.n_rows)[first_run]
    lengths = np.diff(starts, append=len(events.item))

    # Sorted without repeats, positions are exactly 1..session_length if the first is 1 and the last is both their
    # number and the session's length.
    last_position = runs.position[last_run] + runs.n_rows[last_run] - 1
    # Where a log does not say how long a session is, they may begin with 0 too. Times say nothing of what is missing.
    first_position, said = runs.position[first_run], runs.session_length[last_run]
    is_whole = (first_position == 1) & (last_position == lengths) & ((said == lengths) | (said == 0))
    is_whole |= (first_position == 0) & (last_position == lengths - 1) & (said == 0)
    if events.order.by != "position":
        is_whole[:] = True
    is_long = lengths >= config.min_length
    # In the training prefix: flags of held-out rows must not decide what is trained on.
    is_wanted = np.ones_like(is_whole)
    if config.only_sessions_with_skips and len(starts):
        kept_lengths = np.minimum(lengths, config.max_length)
        is_skipped = (events.flags & SKIP_LEVEL) >= config.skip_threshold
        is_skipped &= marked(lengths, lengths - kept_lengths, np.maximum(kept_lengths - config.n_held_out, 0))
        is_wanted = np.logical_or.reduceat(is_skipped, starts)
    dropped = {
        "incomplete": int((~is_whole).sum()),
        "too_short": int((is_whole & ~is_long).sum()),
        "no_skips": int((is_whole & is_long & ~is_wanted).sum()),
    }
    return Usable(first_run, starts, lengths, is_whole & is_long & is_wanted, dropped)


def choose(events: Events, config: PrepareConfig, sample: tuple[int, int] | None = None) -> Kept:
    """The sessions that a dataset keeps, and what is left of them.

    Args:
        events: All events of some sessions.
        config: What is kept.
        sample: The seed of a draw, and the largest hash that is drawn; all are where None.
    """
    runs, found = events.runs, usable(events, config)
    lengths, keep, dropped = found.lengths, found.keep, found.dropped
    session_ids = events.session_ids.take(pa.array(runs.session[found.first_run]))
    if sample is not None:
        is_drawn = sample_hashes(session_ids, sample[0]) <= np.uint64(sample[1])
        dropped = dropped | {"not_sampled": int((keep & ~is_drawn).sum())}
        keep = keep & is_drawn
    kept_lengths = np.minimum(lengths, config.max_length)
    kept_lengths[~keep] = 0
    is_kept = marked(lengths, lengths - kept_lengths, kept_lengths)  # (N,)
    run_starts = np.cumsum(runs.n_rows, dtype=np.int64) - runs.n_rows
    # Kept rows of each run.
    in_run = np.add.reduceat(is_kept, run_starts, dtype=np.int32) if len(run_starts) else np.empty(0, np.int32)
    kept_runs = np.flatnonzero(in_run)
    session, date = runs.session[kept_runs], runs.date[kept_runs]
    is_other_date = (session[1:] == session[:-1]) & (date[1:] != date[:-1])
    flags = events.flags[is_kept]
    levels = (flags & SKIP_LEVEL).astype(np.int8)
    offsets = np.concatenate([[0], np.cumsum(kept_lengths[keep])]).astype(np.int32)
    contexts = np.repeat(runs.context[kept_runs], in_run[kept_runs])
    table = pa.table(
        [
            session_ids.filter(pa.array(keep)),
            pa.array(runs.date[found.first_run[keep]]),
            *(pa.ListArray.from_arrays(offsets, pa.array(v)) for v in (events.item[is_kept], levels, contexts)),
        ],
        schema=KEPT,
    )
    return Kept(
        table=table,
        dropped=dropped,
        counts={
            "rows_read": len(events.item),
            "sessions_read": len(keep),
            "sessions": int(keep.sum()),
            "items": 0,  # see prepare_logs
            "rows": len(levels),
            "truncated": int((lengths[keep] > config.max_length).sum()),
            **{f"skip_level_{level}": int((levels == level).sum()) for level in range(4)},
            "skipped": int((levels >= config.skip_threshold).sum()),
            "no_flag": int((flags & NO_FLAG > 0).sum()),
            "not_nested": int((flags & NOT_NESTED > 0).sum()),
            "sessions_over_several_dates": len(np.unique(session[1:][is_other_date])),
        },
    )


def sample_limit(log: Log, config: PrepareConfig, n: int, seed: int) -> int:
    """The hash up to which sessions are drawn: that of the n-th of those that could be kept, by their ids' hashes.

    So it does not matter where in the logs a session stands, nor what is read at once.
    """
    least = np.empty(0, dtype=np.uint64)
    for events in log.parts():
        found = usable(events, config)
        ids = events.session_ids.take(pa.array(events.runs.session[found.first_run[found.keep]]))
        least = np.sort(np.concatenate([least, sample_hashes(ids, seed)]))[:n]
    return int(least[-1]) if len(least) else 0


def sample_hashes(session_ids: pa.StringArray, seed: int) -> UInt64[np.ndarray, " S"]:
    """A number for each id, by which sessions are drawn."""
    if not len(session_ids):
        return np.empty(0, dtype=np.uint64)
    first, second = hash_pairs(session_ids)
    return counter_bits(derive_seed(seed, "sample"), first ^ (second >> np.uint64(1)))


class Final:
    """The tables of a dataset, made from what is kept: items and contexts numbered anew, without those that went.

    Args:
        log: What the numbers of the kept rows mean.
        kept: Closed.
        config: What is trained on.
    """

    def __init__(self, log: Log, kept: Store, config: PrepareConfig) -> None:
        self.log, self.kept, self.config = log, kept, config
        used = np.zeros(len(log.item_ids), dtype=bool)
        used_contexts = np.zeros(len(log.context_types), dtype=bool)
        for table in kept.tables("items", "contexts"):
            used[values_of(table["items"])] = True
            used_contexts[values_of(table["contexts"])] = True
        self.used = used
        # Numbers are in the order of texts already. Items count from 1, as 0 is padding.
        self.item_places = np.cumsum(used, dtype=np.int32)
        self.context_places = np.cumsum(used_contexts, dtype=np.int32) - 1
        self.contexts = pa.array([log.context_types[i] for i in np.flatnonzero(used_contexts)], pa.string())

    def write(self, folder: Path) -> pa.Table:
        """Write both tables into a folder. Returns that of the items."""
        few = ["date", "skip_levels.list.element", "contexts.list.element"]  # whose values are worth a dictionary
        with pq.ParquetWriter(folder / "sessions.parquet", SESSIONS, use_dictionary=few) as writer:
            for table in self.kept.tables():
                columns = [self.of(name, combined(table[name])) for name in KEPT.names]
                writer.write_table(pa.table(columns, schema=SESSIONS), row_group_size=max(1, len(table)))
        plays = self.plays()[self.used]
        numbers = pa.array(np.arange(1, len(plays) + 1, dtype=np.int32))
        items = pa.table([numbers, self.log.item_ids.filter(pa.array(self.used)), pa.array(plays)], schema=ITEMS)
        pq.write_table(items, folder / "items.parquet", use_dictionary=False)
        return items

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column of the sessions, a part of them at a time."""
        return (self.of(name, combined(table[name])) for table in self.kept.tables(name))

    def of(self, name: str, values: pa.Array) -> pa.Array:
        """A kept column as it is in the dataset."""
        if name == "date":
            return values.cast(pa.date32())
        if name not in ("items", "contexts"):
            return values
        numbers = values.flatten().to_numpy().copy()
        renumber(numbers, self.item_places if name == "items" else self.context_places)
        inner = pa.array(numbers)
        if name == "contexts":
            inner = pa.DictionaryArray.from_arrays(inner, self.contexts)
        return pa.ListArray.from_arrays(values.offsets, inner)

    def plays(self) -> Int64[np.ndarray, " V"]:
        """How often each item that was read is in what training may see."""
        plays = np.zeros(len(self.log.item_ids), dtype=np.int64)
        parts = None
        if self.config.split == "temporal":
            parts = temporal_parts(np.concatenate([t["date"].to_numpy() for t in self.kept.tables("date")]))
        done = 0
        for table in self.kept.tables("items"):
            lengths = np.diff(combined(table["items"]).offsets.to_numpy()).astype(np.int64)
            trained = lengths - N_HELD_OUT
            if parts is not None:
                trained = np.where(parts[done : done + len(lengths)] == TRAIN, lengths, 0)
            done += len(lengths)
            plays += counted(values_of(table["items"])[marked(lengths, np.zeros_like(lengths), trained)], len(plays))
        return plays


def values_of(lists: pa.ChunkedArray) -> Integer[np.ndarray, " N"]:
    """What is in the lists, one after the other."""
    return combined(lists).flatten().to_numpy()


def marked(
    lengths: Int64[np.ndarray, " S"], firsts: Int64[np.ndarray, " S"], n: Int64[np.ndarray, " S"]
) -> Bool[np.ndarray, " N"]:
    """Of each session's `length` rows, true are the `n` from the `first` on."""
    counts = np.stack([firsts, n, lengths - firsts - n], axis=1)
    return np.repeat(np.tile([False, True, False], len(lengths)), counts.ravel())


def within(firsts: Integer[np.ndarray, " S"], lengths: Integer[np.ndarray, " S"]) -> Int64[np.ndarray, " N"]:
    """The numbers first, first + 1, ..., `length` of them, for each pair in turn."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(lengths.sum())
