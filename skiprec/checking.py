"""A table that was read -> a config dataclass, or an error that names what is wrong with it."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from skiprec.errors import ConfigError

C = TypeVar("C")


def checked(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Make a config dataclass from a table, refusing unknown names and wrong types by name.

    Args:
        cls: A dataclass whose fields are bool, int, float, str, Literal, or lists and tables of anything.
        values: The table.
        where: What the table is, for the message.

    Raises:
        ConfigError: With where, what was found and what was expected.
    """
    hints = typing.get_type_hints(cls)
    taken = {name: typed(hints[name], value, f"{where}: {name}") for name, value in values.items() if name in hints}
    for name in values.keys() - hints.keys():
        raise ConfigError(f"{where}: {unknown(name, hints)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory]  # both are MISSING
    if missing := [name for name in required if name not in taken]:
        raise ConfigError(f"{where}: missing {', '.join(missing)}; expected at least {', '.join(required)}")
    try:
        return cls(**taken)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a name that nothing knows."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown setting '{name}', " + (
        f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
    )


def typed(kind: Any, value: Any, where: str) -> Any:
    """The value, if it is of the kind; an integer where a float belongs becomes one."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{where} is {value!r}, expected " + " or ".join(map(repr, choices)))
        return value
    plain = typing.get_origin(kind) or kind
    if plain is float and type(value) is int:
        return float(value)
    if type(value) is not plain:
        names = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            str: "a text",
            list: "a list",
            dict: "a table",
        }
        raise ConfigError(f"{where} is {value!r}, expected {names[plain]}")
    return value
