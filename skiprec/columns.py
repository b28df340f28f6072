"""A column map: what the columns of somebody's log mean. A TOML file, checked once; some come with the program."""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from skiprec.errors import ConfigError

Format = Literal["csv", "tsv", "jsonl", "parquet"]
OrderBy = Literal["position", "time", "rows"]
TimeUnit = Literal["auto", "s", "ms", "us", "text"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "csv": (".csv",),
    "tsv": (".tsv", ".inter", ".txt"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
}
"""By which the files of a folder are found, packed or not."""
PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
SHIPPED = files("skiprec") / "column_maps"


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipMap:
    """What counts as a skip, and how strong: levels 1 (mostly played) to 3 (very briefly). The strongest holds."""

    true: Mapping[str, int] = field(default_factory=dict)
    """Columns of yes and no, each with the level of a yes: `skipped = 2`."""
    false: Mapping[str, int] = field(default_factory=dict)
    """The same, with the level of a no: `completed = 2`."""
    heard: str = ""
    """A column of yes and no that says that a track was heard; with a skip in the same row, the row is wrong."""
    played: str = ""
    """How much was played: a share of `duration` where that is named, else in its own unit."""
    duration: str = ""
    """In the unit of `played`."""
    below: tuple[tuple[float, int], ...] = ()
    """Of `played`: [less than this, level], such as [[0.25, 3], [0.5, 2], [0.9, 1]]."""
    event: str = ""
    """A column of kinds of events."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Each kind with its level, 0 where it means heard; rows of other kinds are left out and counted."""

    @property
    def columns(self) -> list[str]:
        """Those that are read."""
        named = [*self.true, *self.false, self.heard, self.played, self.duration, self.event]
        return [name for name in named if name]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """What the columns of a log mean. Names are the log's own."""

    format: Format = "csv"
    header: bool = True
    """Whether the first line of a CSV or TSV file names the columns."""
    columns: tuple[str, ...] = ()
    """Their names in order, where there is no header."""
    quote: str = '"'
    """What a CSV or TSV field may be quoted with; empty for none."""
    session: str = ""
    """The column that tells sessions apart; or `user`, whose plays are one session each, or cut by gap_minutes."""
    user: str = ""
    gap_minutes: float = 0.0
    """A user's session ends where more than this passes between two plays; 0: it never does."""
    item: tuple[str, ...] = ()
    """The column of the item; of several, the texts joined by " / "."""
    order: str = ""
    """The column that tells the order of a session's plays."""
    order_by: OrderBy = "position"
    """position: whole numbers without a gap. time: any times. rows: no column, but the order in which rows stand."""
    time_unit: TimeUnit = "auto"
    """Of times, and of `date`: since 1970 in s, ms or us; text as 2018-07-15T12:30:00; auto: by how they look."""
    session_length: str = ""
    """Of position: a column that says how many rows a session has."""
    date: str = ""
    """The day of a play, where it is not that of its time."""
    context: tuple[str, ...] = ()
    """The kind of list that was played from, or anything of few kinds; of several columns, as with `item`."""
    skip: SkipMap = field(default_factory=SkipMap)

    def __post_init__(self) -> None:
        if bool(self.session) == bool(self.user):
            raise ConfigError("expected one of session and user, as what tells sessions apart")
        if not self.item:
            raise ConfigError("item is missing, expected the column of the item")
        if "" in (*self.item, *self.context, *self.skip.true, *self.skip.false):
            raise ConfigError("a column's name is empty, expected a name, or none where there is no such column")
        if self.quote and not (len(self.quote) == 1 and "!" <= self.quote <= "~" and self.quote != ","):
            raise ConfigError(f"quote is {self.quote!r}, expected one character such as '\"', or '' for none")
        if not (math.isfinite(self.gap_minutes) and all(math.isfinite(share) for share, _ in self.skip.below)):
            raise ConfigError("gap_minutes and the thresholds of below are numbers, expected finite ones")
        if self.gap_minutes < 0 or (self.gap_minutes and (self.session or self.order_by != "time")):
            raise ConfigError(
                f"gap_minutes is {self.gap_minutes:g}, expected above 0, with user and with order_by = 'time'"
            )
        if bool(self.order) == (self.order_by == "rows"):
            raise ConfigError(f"order is '{self.order}' and order_by '{self.order_by}', expected a column, or 'rows'")
        if self.session_length and self.order_by != "position":
            raise ConfigError("session_length goes with order_by = 'position': without positions nothing is incomplete")
        if self.columns and (self.header or self.format not in ("csv", "tsv")):
            raise ConfigError("columns goes with header = false, in CSV and TSV")
        if not self.header and not self.columns:
            raise ConfigError("header is false, expected columns: the names of the columns, in order")
        if bool(self.skip.played) != bool(self.skip.below) or bool(self.skip.event) != bool(self.skip.events):
            raise ConfigError("skip: played goes with below, and event with events")
        if self.skip.duration and not self.skip.played:
            raise ConfigError("skip: duration goes with played")
        levels = [*self.skip.true.values(), *self.skip.false.values(), *(level for _, level in self.skip.below)]
        if any(level not in (1, 2, 3) for level in levels) or any(n not in range(4) for n in self.skip.events.values()):
            raise ConfigError("skip: expected levels from 1 to 3, and 0 for an event that means heard")
        if missing := [name for name in self.named if self.columns and name not in self.columns]:
            raise ConfigError(f"{', '.join(missing)}: not among columns")
        if twice := [name for name in self.named if self.columns.count(name) > 1]:
            raise ConfigError(f"columns has {twice[0]} {self.columns.count(twice[0])} times, expected it once")

    @property
    def named(self) -> list[str]:
        """Every column that is read, once."""
        others = filter(None, (self.order, self.session_length, self.date))
        named = [self.session or self.user, *self.item, *others, *self.context, *self.skip.columns]
        return list(dict.fromkeys(named))

    def to_toml(self) -> str:
        """As a file."""
        return tomli_w.dumps(without_defaults(self))


def without_defaults(value: ColumnMap | SkipMap) -> dict[str, Any]:
    """What differs from the defaults, as TOML holds it."""
    told: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        own = getattr(value, f.name)
        if own != default or f.name == "format":
            told[f.name] = without_defaults(own) if isinstance(own, SkipMap) else plain(own)
    return told


def plain(value: Any) -> Any:
    """Tuples as lists; one name alone as a text."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def shipped_maps() -> list[str]:
    """The names of the maps that come with the program."""
    return sorted(path.name.removesuffix(".toml") for path in SHIPPED.iterdir() if path.name.endswith(".toml"))


def load_map(name: str) -> ColumnMap:
    """A map that comes with the program, by its name, or from a file.

    Raises:
        ConfigError: If there is none, or it is not as it should be, with the file and the key.
    """
    if name in shipped_maps():
        return map_from(tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8")), name)
    try:
        return map_from(tomllib.loads(Path(name).read_text(encoding="utf-8")), name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{name}: cannot be read ({reason}), expected a TOML file, or one of {', '.join(shipped_maps())}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: is not TOML: {error}") from error


def map_from(told: Mapping[str, Any], where: str) -> ColumnMap:
    """A checked map from what a file holds.

    Raises:
        ConfigError: With the key that is wrong.
    """
    values = checked(told, ColumnMap, where)
    if "skip" in values:
        skip = checked(values["skip"], SkipMap, f"{where}: skip")
        if "below" in skip:
            skip["below"] = tuple(pair(entry, f"{where}: skip: below") for entry in skip["below"])
        values["skip"] = SkipMap(**skip)
    try:
        return ColumnMap(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def checked(told: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """The values by field, each of the field's kind."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for name, value in told.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean '{near[0]}'" if near else f", expected one of {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key '{name}'{hint}")
        values[name] = of_kind(value, known[name].type, f"{where}: {name}")
    return values


def of_kind(value: Any, kind: Any, where: str) -> Any:
    """A value of a field's kind.

    Raises:
        ConfigError: If it is none.
    """
    choices = get_args(kind)
    if kind in (Format, OrderBy, TimeUnit) and value in choices:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind == tuple[str, ...] and isinstance(value, str):
        return (value,)
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if kind is SkipMap and isinstance(value, dict):
        return value
    if kind == tuple[tuple[float, int], ...] and isinstance(value, list):
        return value
    if kind == Mapping[str, int] and isinstance(value, dict) and all(type(v) is int for v in value.values()):
        return value
    expected = {bool: "true or false", str: "a text", float: "a number", SkipMap: "a table"}.get(kind)
    if kind in (Format, OrderBy, TimeUnit):
        expected = f"one of {', '.join(choices)}"
    elif kind == Mapping[str, int]:
        expected = "a table of columns or kinds, each with a level"
    raise ConfigError(f"{where} is {value!r}, expected {expected or 'a list'}")


def pair(entry: Any, where: str) -> tuple[float, int]:
    """A threshold and its level.

    Raises:
        ConfigError: If it is something else.
    """
    if not (
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int | float) and type(entry[1]) is int
    ):
        raise ConfigError(f"{where} holds {entry!r}, expected [less than this, level]")
    return float(entry[0]), entry[1]
