"""What all figures share: colours that colour-blind readers tell apart, letters, ticks, labels that do not meet."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, NullLocator

from study.analysis import one_line

# Okabe & Ito's colours, which stay apart for colour-blind readers; their yellow is too light for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BASELINE_DASHES = {"session-popular": (0, (5, 2)), "most popular": (0, (1, 1.5))}
GREY = "#666666"
COLOURS_OF_VALUES = "viridis_r"  # dark where the value is high
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.usetex": False,
}
WIDE = 9.0
"""Inches: the report's width at about 110 dots an inch."""
NARROW = 4.3
"""Inches: of a figure for a telephone."""
DOTS = {"linestyle": "none", "markeredgewidth": 0}
LONGEST_LABEL = 44
LEGEND_COLUMNS = {WIDE: 3, NARROW: 1}
FEW = 6
"""Values of a setting that have a tick each."""
JITTER = 0.13
"""Half the width over which a categorical value's dots are spread."""

Draw = Callable[..., Figure]


def styled(draw: Draw) -> Draw:
    """Draw in this file's style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def plain(text: object, longest: int = LONGEST_LABEL) -> str:
    """A name from a user as matplotlib should print it: no formulas, one line, not too long, no letter it has not."""
    text = one_line(text)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    known = letters()
    return "".join(c if ord(c) in known else "\ufffd" for c in text).replace("$", r"\$")


@functools.cache
def letters() -> frozenset[int]:
    """What the font can draw."""
    return frozenset(get_font(findfont(FontProperties(family=STYLE["font.family"]))).get_charmap())


def metric_label(metric: str) -> str:
    """`val/hr_at_10` -> `validation HR@10`."""
    return metric.replace("val/", "validation ").replace("hr_at_", "HR@")


def looks(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each arm, the same in every figure."""
    return {
        arm: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]}
        for i, arm in enumerate(arms)
    }


def is_text(values: Iterable[Any]) -> bool:
    """Whether a setting's values are names rather than numbers."""
    return any(isinstance(v, str | bool) for v in values)


def is_log(name: str, values: Sequence[float]) -> bool:
    """Whether a setting is better read on a logarithmic axis: rates and ratios that are never 0."""
    return name in ("learning_rate", "alpha/beta") and min(values) > 0


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:.3g}"


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move labels apart to at least `gap`, in their order; those that meet stay around their middle."""
    groups: list[tuple[list[int], float]] = []
    for i in np.argsort(places, kind="stable").tolist():
        members, middle = [i], places[i]
        while groups and middle - groups[-1][1] < gap * (len(members) + len(groups[-1][0])) / 2 * (1 - 1e-9):
            members = groups.pop()[0] + members
            middle = sum(places[j] for j in members) / len(members)
        groups.append((members, middle))
    moved = {j: middle + gap * (k - (len(g) - 1) / 2) for g, middle in groups for k, j in enumerate(g)}
    return [moved[i] for i in range(len(places))]


def spread_names(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Places of labels by name, moved apart."""
    return dict(zip(places, spread(list(places.values()), gap), strict=True))


def numeric_axis(axes: Axes, name: str, values: Sequence[float]) -> None:
    """Set up the x axis of a setting that is a number."""
    seen = sorted(set(values))
    if is_log(name, seen):
        axes.set_xscale("log")
        pad = max(1.1, (seen[-1] / seen[0]) ** 0.07)
        axes.set_xlim(seen[0] / pad, seen[-1] * pad)
        axes.xaxis.set_minor_locator(NullLocator())
    ticks = axis_ticks(name, seen)
    axes.set_xticks(ticks, [number(t) for t in ticks])


def axis_ticks(name: str, values: Sequence[float]) -> list[float]:
    """The values that were tried where these are few, else round numbers among them."""
    seen = sorted(set(values))
    if len(seen) <= FEW:
        return seen
    if is_log(name, seen):
        return nice_log_ticks(seen[0], seen[-1])
    return [t for t in MaxNLocator(5).tick_values(seen[0], seen[-1]).tolist() if seen[0] <= t <= seen[-1]]


def nice_log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers; the ends themselves where there are fewer than two."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return ticks if len(ticks) > 1 else [low, high]
