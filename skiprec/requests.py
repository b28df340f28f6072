"""Requests for recommendations: sessions in the log's own ids, from text or whatever a service is sent, checked."""

import json
import numbers
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

import numpy as np

from skiprec.errors import RequestError

HIGHEST_LEVEL = 3


@no_type_check  # what is sent may be anything: `checked_session` says what is wrong with it
@dataclass(frozen=True, slots=True)
class Session:
    """What somebody played so far."""

    items: Sequence[str]
    """By the log's own ids, the last one last."""
    skip_levels: Sequence[int | bool] | None = None
    """Of each: 0 heard, 1 mostly played, 2 briefly, 3 very briefly; or whether it was skipped. None: all were heard."""


def checked_count(k: object) -> int:
    """How many are asked for.

    Raises:
        RequestError: If it is not a whole number from 1 on.
    """
    if isinstance(k, bool) or not isinstance(k, numbers.Integral) or k < 1:
        raise RequestError(f"k is {shown(k)}, expected a whole number from 1 on")
    return int(k)


def checked_session(session: object, where: str, skip_threshold: int) -> tuple[list[str], list[int]]:
    """A session's items and skip levels.

    Args:
        session: A Session, of whatever values.
        where: What it is called in an error.
        skip_threshold: The level that True stands for.

    Raises:
        RequestError: With the position of what is wrong.
    """
    items, levels = listed(session.items, f"{where}: items"), session.skip_levels
    if not items:
        raise RequestError(f"{where}: items is empty, expected at least one id")
    for position, item in enumerate(items, start=1):
        if not isinstance(item, str) or not is_unicode(item):
            raise RequestError(f"{where}, position {position}: the item is {shown(item)}, expected an id as text")
    if levels is None:
        return items, [0] * len(items)
    levels = listed(levels, f"{where}: skip_levels")
    if len(levels) != len(items):
        raise RequestError(f"{where}: {len(items)} items and {len(levels)} skip levels, expected as many of both")
    return items, [
        checked_level(level, f"{where}, position {position}", skip_threshold)
        for position, level in enumerate(levels, start=1)
    ]


def listed(values: object, what: str) -> list[Any]:
    """The values of a list, a tuple or an array of one axis.

    Raises:
        RequestError: If it is anything else.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values.tolist()
    if not isinstance(values, list | tuple):
        raise RequestError(f"{what} is {shown(values)}, expected a list")
    return list(values)


def is_unicode(text: str) -> bool:
    """Whether it can be written at all: half a surrogate pair, which JSON may hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_level(level: object, where: str, skip_threshold: int) -> int:
    """A skip level.

    Raises:
        RequestError: If it is none.
    """
    if isinstance(level, bool | np.bool_):
        return skip_threshold if level else 0
    if isinstance(level, float) and level.is_integer():  # what becomes of whole numbers in a table with gaps
        level = int(level)
    if not isinstance(level, numbers.Integral) or not 0 <= level <= HIGHEST_LEVEL:
        raise RequestError(
            f"{where}: the skip level is {shown(level)}, expected 0 to {HIGHEST_LEVEL}, or true or false"
        )
    return int(level)


def shown(value: object) -> str:
    """A value as an error prints it: on one line, and not too long."""
    text = repr(value) if not isinstance(value, numbers.Integral) or abs(int(value)) < 10**20 else "a huge number"
    return " ".join(text.split())[:80]


def session_of(value: object, where: str) -> Session:
    """A session as JSON has it: an object with `items` and, where there are any, `skip_levels`.

    Raises:
        RequestError: If it is something else.
    """
    if not isinstance(value, Mapping) or "items" not in value or not value.keys() <= {"items", "skip_levels"}:
        raise RequestError(f"{where}: found {shown(value)}, expected an object with items and, if known, skip_levels")
    return Session(value["items"], value.get("skip_levels"))


def read_sessions(path: Path) -> list[Session]:
    """Sessions from a file of JSON, one a line; `-` is the standard input.

    Raises:
        RequestError: If it cannot be read, or a line is no session.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}), expected a session a line as JSON") from error
    sessions = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            sessions.append(session_of(json.loads(line), f"{path}, line {number}"))
        except (ValueError, RecursionError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{path}, line {number}: is not JSON ({error})") from error
    return sessions


def parse_session(text: str) -> Session:
    """A session as the command line has it: `A,B:skipped,C:1`, ids with a skip level or `skipped` after a colon.

    Raises:
        RequestError: If an id is empty.
    """
    items: list[str] = []
    levels: list[int | bool] = []
    for position, part in enumerate(text.split(","), start=1):
        item, colon, how = part.strip().rpartition(":")
        if colon and how == "skipped":
            level: int | bool = True
        elif colon and how in ("0", "1", "2", "3"):
            level = int(how)
        else:
            item, level = part.strip(), 0
        if not item:
            raise RequestError(f"--session, position {position}: no id in {part!r}, expected A,B:skipped,C")
        items.append(item)
        levels.append(level)
    return Session(items, levels)
