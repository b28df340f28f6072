"""Event table -> prepared dataset folder: which sessions are kept, items numbered, tables and manifest written."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int8, Int32, Int64, Integer

from skiprec import files
from skiprec.digests import table_digests
from skiprec.errors import ConfigError, DatasetError
from skiprec.events import NO_FLAG, NOT_NESTED, SKIP_LEVEL, Events
from skiprec.numbering import counted, hash_pairs, renumber
from skiprec.reading import Reading, find_logs, read_logs
from skiprec.schema import ITEMS, SESSIONS
from skiprec.seeds import counter_bits, derive_seed
from skiprec.splits import TRAIN, temporal_parts

# N rows, S sessions, R runs of rows.

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
    """SHA-256 of the values of each table, and of these two with the settings as `dataset`."""
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
    """What a dataset keeps of the events: N rows of S sessions. Numbers are still those of everything that was read."""

    session: Int32[np.ndarray, " S"]
    date: Int32[np.ndarray, " S"]
    """Of a session's first row, whether that is kept or not."""
    lengths: Int64[np.ndarray, " S"]
    items: Int32[np.ndarray, " N"]
    levels: Int8[np.ndarray, " N"]
    contexts: Int32[np.ndarray, " R"]
    context_lengths: Int32[np.ndarray, " R"]
    """For how many rows each of them holds."""
    session_ids: pa.StringArray
    item_ids: pa.StringArray
    context_types: list[str]
    counts: dict[str, int]
    dropped: dict[str, int]


def prepare_logs(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    config: PrepareConfig | None = None,
    reading: Reading | None = None,
    sample: tuple[int, int] | None = None,
    progress: bool = True,
) -> Manifest:
    """Read logs and write them as a dataset folder.

    Args:
        paths: Files, folders and globs, as find_logs takes them. Their order does not matter.
        out: The folder to make.
        config: Defaults where None.
        reading: How the logs are read; MSSD's CSV files where None.
        sample: How many of the sessions that could be kept are drawn, and the draw's seed; all where None.
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
    with lean_arrow():
        sessions, items, manifest = build(find_logs(paths, reading.columns), config, reading, sample, progress=progress)
        pa.default_memory_pool().release_unused()
        with files.new_folder(out) as folder:
            # One row group: pyarrow, and so pandas, cannot read lists of dictionaries out of several at once.
            few = ["date", "skip_levels.list.element", "contexts.list.element"]  # whose values are worth a dictionary
            pq.write_table(sessions, folder / "sessions.parquet", row_group_size=len(sessions), use_dictionary=few)
            pq.write_table(items, folder / "items.parquet", use_dictionary=False)
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


def build(
    logs: Sequence[Path], config: PrepareConfig, reading: Reading, sample: tuple[int, int] | None, *, progress: bool
) -> tuple[pa.Table, pa.Table, Manifest]:
    """The two tables of a dataset and its manifest.

    Raises:
        DatasetError: If a log is not as it should be, or no session can be kept.
    """
    # Each step lets go of what the one before it made: no more than two of them are ever held.
    events = read_logs(logs, reading, progress=progress)
    found = {"left_out": events.left_out, "notes": events.notes}
    pa.default_memory_pool().release_unused()
    sources = [{"file": name, "rows": n} for name, n in sorted((path.name, n) for path, n in events.sources)]
    if reading.key is not None:  # a file may be named after those whose plays it holds
        sources = [{"rows": n} for n in sorted(source["rows"] for source in sources)]
    kept = choose(events, config, sample)
    del events
    sessions, items = tables(kept, trained_lengths(kept, config))
    counts, dropped = kept.counts | {"items": len(items)}, kept.dropped
    del kept
    settings = dataclasses.asdict(config)
    manifest = Manifest(
        format=FORMAT,
        settings=settings,
        sources=sources,
        counts=counts,
        dropped=dropped,
        digests=table_digests(sessions, items, settings),
        reading=reading.about() | found | ({"sample": list(sample)} if sample else {}),
    )
    return sessions, items, manifest


def choose(events: Events, config: PrepareConfig, sample: tuple[int, int] | None = None) -> Kept:
    """The sessions that a dataset keeps, and what is left of them.

    Raises:
        DatasetError: If no session can be kept.
    """
    runs = events.runs
    first_run = np.flatnonzero(np.diff(runs.session, prepend=-1))  # (S,) of all sessions read
    last_run = np.append(first_run[1:], len(runs.session)) - 1
    run_starts = np.cumsum(runs.n_rows, dtype=np.int64) - runs.n_rows
    starts = run_starts[first_run]
    lengths = np.diff(starts, append=len(events.item))
    kept_lengths = np.minimum(lengths, config.max_length)

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
    if config.only_sessions_with_skips:
        is_skipped = (events.flags & SKIP_LEVEL) >= config.skip_threshold
        is_skipped &= marked(lengths, lengths - kept_lengths, np.maximum(kept_lengths - config.n_held_out, 0))
        is_wanted = np.logical_or.reduceat(is_skipped, starts)
    keep = is_whole & is_long & is_wanted
    dropped = {
        "incomplete": int((~is_whole).sum()),
        "too_short": int((is_whole & ~is_long).sum()),
        "no_skips": int((is_whole & is_long & ~is_wanted).sum()),
    }
    if sample is not None:
        is_drawn = drawn(events.session_ids.take(pa.array(runs.session[first_run])), keep, *sample)
        dropped["not_sampled"] = int((keep & ~is_drawn).sum())
        keep &= is_drawn
    if not keep.any():
        why = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise DatasetError(
            f"{', '.join(str(path) for path, _ in events.sources[:3])}{', ...' if len(events.sources) > 3 else ''}: "
            f"none of {len(keep)} sessions can be used ({why}), expected at least one of positions "
            f"1..session_length and {config.min_length} rows or more"
        )

    kept_lengths[~keep] = 0
    is_kept = marked(lengths, lengths - kept_lengths, kept_lengths)  # (N,)
    in_run = np.add.reduceat(is_kept, run_starts, dtype=np.int32)  # kept rows of each run
    kept_runs = np.flatnonzero(in_run)
    session, date = runs.session[kept_runs], runs.date[kept_runs]
    is_other_date = (session[1:] == session[:-1]) & (date[1:] != date[:-1])
    flags = events.flags[is_kept]
    levels = (flags & SKIP_LEVEL).astype(np.int8)
    return Kept(
        session=runs.session[first_run[keep]],
        date=runs.date[first_run[keep]],
        lengths=kept_lengths[keep],
        items=events.item[is_kept],
        levels=levels,
        contexts=runs.context[kept_runs],
        context_lengths=in_run[kept_runs],
        session_ids=events.session_ids,
        item_ids=events.item_ids,
        context_types=events.context_types,
        dropped=dropped,
        counts={
            "rows_read": len(events.item),
            "sessions_read": len(keep),
            "sessions": int(keep.sum()),
            "items": 0,  # see tables
            "rows": len(levels),
            "truncated": int((lengths[keep] > config.max_length).sum()),
            **{f"skip_level_{level}": int((levels == level).sum()) for level in range(4)},
            "skipped": int((levels >= config.skip_threshold).sum()),
            "no_flag": int((flags & NO_FLAG > 0).sum()),
            "not_nested": int((flags & NOT_NESTED > 0).sum()),
            "sessions_over_several_dates": len(np.unique(session[1:][is_other_date])),
        },
    )


def drawn(session_ids: pa.StringArray, may_be: Bool[np.ndarray, " S"], n: int, seed: int) -> Bool[np.ndarray, " S"]:
    """Which n sessions are drawn of those that may be: those whose ids have the least hashes, wherever they stand.

    Raises:
        ConfigError: If n is less than 1.
    """
    if n < 1:
        raise ConfigError(f"--sample is {n}, expected at least 1")
    first, second = hash_pairs(session_ids)
    mixed = counter_bits(derive_seed(seed, "sample"), first ^ (second >> np.uint64(1)))
    places = np.flatnonzero(may_be)
    least = places[np.argsort(mixed[places], kind="stable")[:n]]
    is_drawn = np.zeros(len(may_be), dtype=bool)
    is_drawn[least] = True
    return is_drawn


def trained_lengths(kept: Kept, config: PrepareConfig) -> Int64[np.ndarray, " S"]:
    """How many of each session's items training may see."""
    if config.split == "temporal":
        return np.where(temporal_parts(kept.date) == TRAIN, kept.lengths, 0)
    return kept.lengths - N_HELD_OUT


def tables(kept: Kept, trained: Int64[np.ndarray, " S"]) -> tuple[pa.Table, pa.Table]:
    """The dataset's sessions and items. Items are numbered anew, in place, without those that went.

    Args:
        kept: What is in them.
        trained: As `trained_lengths` gives them: what counts as a play.
    """
    # Numbers are in the order of texts already. Items count from 1, as 0 is padding.
    is_used = counted(kept.items, len(kept.item_ids)) > 0
    is_prefix = marked(kept.lengths, np.zeros_like(kept.lengths), trained)
    plays = counted(kept.items[is_prefix], len(kept.item_ids))[is_used]
    renumber(kept.items, np.cumsum(is_used, dtype=np.int32))
    contexts, numbers = np.unique(kept.contexts, return_inverse=True)
    context_types = pa.array([kept.context_types[i] for i in contexts], pa.string())
    contexts = np.repeat(numbers.astype(np.int32), kept.context_lengths)
    offsets = np.concatenate([[0], np.cumsum(kept.lengths)]).astype(np.int32)
    sessions = pa.table(
        [
            kept.session_ids.take(pa.array(kept.session)),
            pa.array(kept.date).cast(pa.date32()),
            pa.ListArray.from_arrays(offsets, pa.array(kept.items)),
            pa.ListArray.from_arrays(offsets, pa.array(kept.levels)),
            pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(pa.array(contexts), context_types)),
        ],
        schema=SESSIONS,
    )
    items = pa.table(
        [
            pa.array(np.arange(1, len(plays) + 1, dtype=np.int32)),
            kept.item_ids.filter(pa.array(is_used)),
            pa.array(plays),
        ],
        schema=ITEMS,
    )
    return sessions, items


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
