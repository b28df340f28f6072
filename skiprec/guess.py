"""What a log's columns may mean, guessed from its first rows: a map for somebody to read and mend."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import tomli_w

from skiprec.columns import PACKED, SUFFIXES, ColumnMap, Format, SkipMap, load_map, shipped_maps, without_defaults
from skiprec.errors import DatasetError
from skiprec.formats import as_text, split, text_column
from skiprec.logs import text_blocks
from skiprec.mapping import amount, time_of, yes_or_no

ROWS = 1000
"""That are looked at."""
ITEM = (
    "track_id",
    "track",
    "item_id",
    "item",
    "song_id",
    "song",
    "video_id",
    "video",
    "music_id",
    "traid",
    "content_id",
)
SESSION = ("session_id", "session", "sess_id")
USER = ("user_id", "user", "uid", "userid", "listener_id", "account_id")
TIME = ("timestamp", "time", "ts", "datetime", "date_time", "time_ms", "played_at", "created_at", "started_at", "date")
POSITION = ("session_position", "position", "pos", "step", "order", "index")
SKIPPED = ("skipped", "is_skip", "is_skipped", "skip", "was_skipped")
HEARD = ("not_skipped", "completed", "finished", "long_view", "heard", "full_play")
PLAYED = (
    "played_ratio",
    "played_ratio_pct",
    "ms_played",
    "play_time_ms",
    "msplayed",
    "seconds_played",
    "playtime",
    "play_time",
)
DURATION = ("duration_ms", "duration", "track_length", "track_length_seconds", "track_duration", "length_ms")
EVENT = ("event_type", "event", "action", "feedback", "type")
CONTEXT = ("context_type", "context", "playlist_type", "source", "tab")


def guess(path: Path) -> str:
    """A map as TOML, with what it was guessed from in comments.

    Raises:
        DatasetError: If the file cannot be read, or nothing in it looks like an item or a session.
    """
    form = format_of(path)
    names, rows = first_rows(path, form)
    fitting = [name for name in shipped_maps() if fits(load_map(name), form, names)]
    lines = [f"# Guessed from the first {len(rows):,} rows of {path.name}; read it, and mend what is wrong."]
    lines += [f"# Columns: {', '.join(names)}"]
    if fitting:
        best = max(fitting, key=lambda name: len(load_map(name).named))
        lines += [f"# It has the columns of the shipped map `{best}`: --columns {best} would do."]
        return "\n".join(lines) + "\n" + load_map(best).to_toml()
    found, notes = guessed(path, form, names, rows)
    return "\n".join(lines + [f"# {note}" for note in notes]) + "\n" + tomli_w.dumps(without_defaults(found))


def format_of(path: Path) -> Format:
    """By the file's name."""
    for form, suffixes in SUFFIXES.items():
        if path.name.endswith(tuple(suffix + packed for suffix in suffixes for packed in PACKED)):
            return form
    return "csv"


def fits(columns: ColumnMap, form: Format, names: list[str]) -> bool:
    """Whether a log has every column of a map."""
    return columns.header and columns.format == form and set(columns.named) <= set(names)


def first_rows(path: Path, form: Format) -> tuple[list[str], list[dict[str, str]]]:
    """Column names, and some rows as text.

    Raises:
        DatasetError: If the file cannot be read, or has no rows.
    """
    rows: list[dict[str, str]] = []
    if form == "parquet":
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                batch = next(file.iter_batches(ROWS), None)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read ({str(error)[:200]}), expected a parquet file") from error
        texts = {} if batch is None else {name: text_column(path, name, batch[name], 1).to_pylist() for name in names}
        rows = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
    else:
        lines = first_lines(path)
        if form == "jsonl":
            rows = [object_of(path, number, line) for number, line in enumerate(lines[:ROWS], start=1)]
            names = list(dict.fromkeys(name for row in rows for name in row))
        else:
            delimiter = "\t" if form == "tsv" else ","
            names = (split(lines[0], delimiter, '"') or lines[0].split(delimiter)) if lines else []
            values = [split(line, delimiter, '"') or line.split(delimiter) for line in lines[1:]]
            rows = [dict(zip(names, own, strict=False)) for own in values]
    if not rows:
        raise DatasetError(f"{path}: has no rows, expected some to guess from")
    return names, rows


def first_lines(path: Path) -> list[str]:
    """As many as are looked at, and a header."""
    lines: list[str] = []
    for _, text in text_blocks(path, lambda n: None):
        lines += bytes(text).decode("utf-8", "replace").splitlines()
        if len(lines) > ROWS:
            break
    return lines[: ROWS + 1]


def object_of(path: Path, number: int, line: str) -> dict[str, str]:
    """A line of JSON as texts.

    Raises:
        DatasetError: If it is no object of plain values.
    """
    try:
        return {name: as_text(value) for name, value in json.loads(line).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}, row {number}: is no JSON object of plain values") from error


def guessed(path: Path, form: Format, names: list[str], rows: list[dict[str, str]]) -> tuple[ColumnMap, list[str]]:
    """A map by names and values, and what was seen.

    Raises:
        DatasetError: If there is no column for the item, or for the session or the user.
    """
    item, session, user = (named(names, known) for known in (ITEM, SESSION, USER))
    if not item or not (session or user):
        lacking = "the item" if not item else "the session or the user"
        raise DatasetError(
            f"{path}: no column looks like {lacking}; found {', '.join(names)}. Write a map by hand: skiprec's README "
            "has an example"
        )
    notes = [f"item: {item}, such as {example(rows, item)}"]
    position, time = named(names, POSITION), named(names, TIME)
    values = [row.get(time, "") for row in rows] if time else []
    is_time = bool(values) and all(time_of(value, "auto") is not None for value in values)
    order: dict[str, object] = {"order_by": "rows"}
    if session and position:
        order = {"order": position}
        notes.append(f"order: {position}, such as {example(rows, position)}")
    elif is_time:
        order = {"order": time, "order_by": "time"}
        notes.append(f"order: the time {time}, such as {example(rows, time)}; check its unit")
    else:
        notes.append("order: no position and no time was found, so the order of the rows is taken")
    if session:
        notes.append(f"session: {session}, such as {example(rows, session)}")
        sessions: dict[str, object] = {"session": session}
    else:
        sessions = {"user": user}
        notes.append(
            f"session: none was found, so the plays of {user} make one" + (", cut at 30 minutes" if is_time else "")
        )
        sessions |= {"gap_minutes": 30.0} if order["order_by"] == "time" else {}
    skip, said = guessed_skip(names, rows)
    context = named(names, CONTEXT) or ""
    found = ColumnMap(format=form, item=(item,), context=context, skip=skip, **sessions, **order)
    return found, [*notes, said]


def guessed_skip(names: list[str], rows: list[dict[str, str]]) -> tuple[SkipMap, str]:
    """What a skip may be, and what was seen."""
    for known, where, what in ((SKIPPED, "true", "a yes"), (HEARD, "false", "a no")):
        column = named(names, known)
        if column and all(yes_or_no(row.get(column, "")) is not None for row in rows):
            return SkipMap(**{where: {column: 2}}), f"skip: {what} in {column} is level 2 (played briefly)"
    played, duration = named(names, PLAYED), named(names, DURATION)
    if played and all(amount(row.get(played, ""), False) is not None for row in rows):
        most = max(amount(row[played], False) for row in rows)
        if duration and all(amount(row.get(duration, ""), True) is not None for row in rows):
            below = ((0.25, 3), (0.5, 2), (0.9, 1))
            return SkipMap(played=played, duration=duration, below=below), (
                f"skip: by the share {played} / {duration}; check that both are in one unit, and the thresholds"
            )
        if most <= 100:
            below = ((0.25, 3), (0.5, 2), (0.9, 1)) if most <= 1.5 else ((25.0, 3), (50.0, 2), (90.0, 1))
            return SkipMap(played=played, below=below), f"skip: by {played}, up to {most:g} here; check the thresholds"
    event = named(names, EVENT)
    if event:
        kinds = sorted({row.get(event, "") for row in rows})[:20]
        levels = {kind: 3 if "dislike" in kind.lower() else 2 if "skip" in kind.lower() else 0 for kind in kinds}
        return SkipMap(
            event=event, events=levels
        ), f"skip: kinds of {event}, each with a level, 0 for heard; mend these"
    return SkipMap(), "skip: nothing like a skip was found, so every play counts as heard"


def named(names: list[str], known: tuple[str, ...]) -> str | None:
    """The first column with one of these names, however it is written."""
    plain = {name.partition(":")[0].lower().replace("-", "_").replace(" ", "_"): name for name in reversed(names)}
    return next((plain[name] for name in known if name in plain), None)


def example(rows: list[dict[str, str]], name: str) -> str:
    """A value, as a comment shows it."""
    return repr(rows[0].get(name, ""))[:60]
