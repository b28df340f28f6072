"""What a log's columns may mean, guessed from its first rows: a map for somebody to read and mend."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from skiprec.columns import PACKED, SUFFIXES, ColumnMap, Format, SkipMap, load_map, shipped_maps
from skiprec.errors import DatasetError
from skiprec.formats import as_text, has_plain_values, split, text_column
from skiprec.logs import mended, text_blocks, whole_number
from skiprec.mapping import amount, day_in, time_of, yes_or_no

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
TIME = ("timestamp", "time", "ts", "datetime", "date_time", "time_ms", "played_at", "created_at", "started_at")
DAY = ("date", "day")
LENGTH = ("session_length",)
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
    names, odd = mended(names)
    fitting = [name for name in shipped_maps() if fits(load_map(name), form, names, rows)]
    notes = [f"Guessed from the first {len(rows):,} rows of {path.name}; read it, and mend what is wrong."]
    notes += [f"Columns: {', '.join(names)}", *odd]
    if fitting:
        best = max(fitting, key=lambda name: len(load_map(name).named))
        found = load_map(best)
        notes[1] = notes[1] if found.header else f"No header. Columns: {', '.join(found.columns)}"
        notes += [f"It has the columns of the shipped map `{best}`: --columns {best} would do."]
    else:
        found, seen = guessed(path, form, names, rows)
        notes += seen
    comments = ("# " + "".join(letter if letter.isprintable() else " " for letter in note) for note in notes)
    return "\n".join([*comments, found.to_toml()])


def format_of(path: Path) -> Format:
    """By the file's name."""
    for form, suffixes in SUFFIXES.items():
        if path.name.endswith(tuple(suffix + packed for suffix in suffixes for packed in PACKED)):
            return form
    return "csv"


def fits(columns: ColumnMap, form: Format, names: list[str], rows: list[dict[str, str]]) -> bool:
    """Whether a log has every column of a map; without a header, as many as it has, with times where it has times."""
    if columns.format != form:
        return False
    if columns.header:
        return set(columns.named) <= set(names)
    if columns.order_by != "time" or len(columns.columns) != len(names):
        return False
    at = columns.columns.index(columns.order)
    values = [names[at], *(row.get(names[at], "") for row in rows)]
    return all(time_of(value, columns.time_unit) is not None for value in values)


def first_rows(path: Path, form: Format) -> tuple[list[str], list[dict[str, str]]]:
    """Column names, and some rows as text.

    Raises:
        DatasetError: If the file cannot be read, or has no rows.
    """
    rows: list[dict[str, str]] = []
    if form == "parquet":
        try:
            with pq.ParquetFile(path) as file:
                names = [own.name for own in file.schema_arrow if has_plain_values(own.type)]
                batch = next(file.iter_batches(ROWS, columns=names), None)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or ["damaged"])[0][:200]
            raise DatasetError(f"{path}: cannot be read ({reason}), expected a parquet file") from error
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
    position = named(names, POSITION) if session else None
    if position and not all_are(rows, position, whole_number):
        notes.append(f"order: not {position}, which holds more than whole numbers")
        position = None
    time, day = named(names, TIME), named(names, DAY)
    is_time = bool(time) and all_are(rows, time, lambda text: time_of(text, "auto"))
    order: dict[str, object] = {"order_by": "rows"}
    if position:
        length = named(names, LENGTH)
        is_length = bool(length) and all_are(rows, length, whole_number)
        order = {"order": position, "order_by": "position", "session_length": length if is_length else ""}
        notes.append(f"order: {position}, such as {example(rows, position)}; expected to count from 0 or 1 on")
        day = day or time
    elif is_time:
        order = {"order": time, "order_by": "time"}
        notes.append(f"order: the time {time}, such as {example(rows, time)}; check its unit")
    else:
        notes.append("order: no position and no time was found, so the order of the rows is taken; check this")
    if session:
        notes.append(f"session: {session}, such as {example(rows, session)}")
        sessions: dict[str, object] = {"session": session}
    else:
        sessions = {"user": user}
        notes.append(
            f"session: none was found, so the plays of {user} make one" + (", cut at 30 minutes" if is_time else "")
        )
        sessions |= {"gap_minutes": 30.0} if order["order_by"] == "time" else {}
    if order["order_by"] != "time" and day and all_are(rows, day, lambda text: day_in(text, "auto")):
        order["date"] = day
        notes.append(f"date: {day}, such as {example(rows, day)}")
    skip, said = guessed_skip(names, rows)
    context = tuple(filter(None, [named(names, CONTEXT)]))
    notes += [f"context: {name}, such as {example(rows, name)}; expected of few kinds" for name in context]
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


def all_are(rows: list[dict[str, str]], name: str, number: Callable[[str], int | None]) -> bool:
    """Whether every value of a column is what a function takes."""
    return all(number(row.get(name, "")) is not None for row in rows)


def example(rows: list[dict[str, str]], name: str) -> str:
    """A value, as a comment shows it."""
    return repr(rows[0].get(name, ""))[:60]
