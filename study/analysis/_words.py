"""Numbers and names as reports print them."""

import math
import unicodedata
from collections.abc import Iterable

from study.statistics import Effect

ISOLATE, END_ISOLATE = "\u2068", "\u2069"
"""Unicode's first strong isolate: what is between them has a direction of its own and leaves that of others alone."""
UNKNOWN = "one seed"
"""In place of an interval that one seed cannot give."""
NOT_SHOWN = "\ufffd"
"""In place of characters that cannot be seen and change what can."""


def one_line(name: object) -> str:
    """A name from data or users on one line, without marks that turn the direction of what follows."""
    text = " ".join(str(name).split())
    return "".join(NOT_SHOWN if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in text)


def shown(name: object) -> str:
    """A name as one line that cannot change the order of the text around it: isolated where it runs to the left."""
    text = one_line(name)
    runs_left = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)
    return f"{ISOLATE}{text}{END_ISOLATE}" if runs_left else text


def rate(value: float | None) -> str:
    """A hit rate as the paper prints it: .4712; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}".removeprefix("0") if value >= 0 else f"-{rate(-value)}"


def percent(value: float) -> str:
    """A hit rate in a sentence: 47.1%."""
    return f"{value:.1%}"


def points(difference: float) -> str:
    """A difference of rates in hundredths, with its sign."""
    return f"{100 * difference:+.1f}".replace("-0.0", "+0.0")


def in_points(difference: float) -> str:
    """A difference that somebody chose: `1 point`, `0.5 points`."""
    return f"{100 * difference:g} point{'s' * (difference != 0.01)}"


def between(effect: Effect) -> str:
    """The 95% interval of a difference, in points: `+0.2 to +1.4`."""
    return f"{points(effect.low)} to {points(effect.high)}" if math.isfinite(effect.low) else UNKNOWN


def interval(effect: Effect) -> str:
    """`+0.8 points (95% interval +0.2 to +1.4)`."""
    if not math.isfinite(effect.low):
        return f"{points(effect.estimate)} points (one seed, so no interval)"
    return f"{points(effect.estimate)} points (95% interval {between(effect)})"


def with_interval(effect: Effect | None) -> str:
    """A difference in a table: `+0.8 (+0.2 to +1.4)`."""
    return "-" if effect is None else f"{points(effect.estimate)} ({between(effect)})"


def rate_interval(effect: Effect | None) -> str:
    """A rate in a table: `.4712 (.4601 to .4823)`."""
    if effect is None:
        return "-"
    ends = f"{rate(effect.low)} to {rate(effect.high)}" if math.isfinite(effect.low) else UNKNOWN
    return f"{rate(effect.estimate)} ({ends})"


def relative(effect: Effect | None) -> str:
    """A relative gain in a table: `+8.1% (+2.0 to +14.2)`."""
    if effect is None or not math.isfinite(effect.estimate):
        return "-"
    return f"{points(effect.estimate)}% ({between(effect)})"


def p_value(p: float) -> str:
    """`0.034`, `under 0.001`."""
    return "under 0.001" if p < 0.001 else f"{p:.2g}" if p < 1 else "1"


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def some(n: int, thing: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n:,} {thing}{'s' * (n != 1)}"
