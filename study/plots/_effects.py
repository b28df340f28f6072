"""Differences with their intervals, one below the other, and the spread of what differs by chance alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis import SHORT_NAMES, Confirmed, GroupEffect, TestedClaim, between, points
from study.plots._style import GREY, MARKERS, PALETTE, WIDE, plain, styled
from study.statistics import Effect

ROW_HEIGHT = 0.21
"""Inches."""
LETTER = 0.068
"""Inches that a letter of the small size takes, about."""
ZONE = "#e9edf1"
MEASURE_LOOKS = {m: {"color": PALETTE[i], "marker": MARKERS[i]} for i, m in enumerate(SHORT_NAMES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a forest plot: a difference with its interval, or a heading where there is none."""

    label: str
    effect: Effect | None = None
    color: str = "#000000"
    marker: str = "o"
    strong: bool = False


@styled
def claims(found: Confirmed, *, width: float = WIDE) -> Figure:
    """Every claim by each measure; the declared one bold and filled."""
    lines = []
    for tested in found.claims:
        control = " (a control)" if found.arm(tested.claim.than).kind == "control" else ""
        longest = round((width - 0.6) / LETTER) - len(control)
        title = tested.claim.named()
        lines.append(Line(label=plain(title, longest) + control, strong=True))
        lines += [
            Line(
                label=SHORT_NAMES[m] + ("" if m != tested.claim.measure else f", HR@{tested.claim.k}"),
                effect=effects[tested.claim.k],
                strong=m == tested.claim.measure,
                **MEASURE_LOOKS[m],
            )
            for m, effects in tested.effects.items()
        ]
    keys = [
        Line2D([], [], linestyle="none", label=name, markersize=6, **MEASURE_LOOKS[m])
        for m, name in SHORT_NAMES.items()
    ]
    return forest(lines, found.worthwhile, "difference of test hit rates, points; 95% intervals", keys, width)


@styled
def groups(tested: TestedClaim, worthwhile: float, *, width: float = WIDE) -> Figure:
    """A claim's difference in each group of sessions, below that of all."""
    style = MEASURE_LOOKS[tested.claim.measure]
    lines = [Line(label=f"all ({tested.effect.n_sessions:,})", effect=tested.effect, strong=True, **style)]
    grouping = None
    for group in tested.groups:
        if group.grouping != grouping:
            grouping = group.grouping
            lines.append(Line(label=grouping))
        lines.append(Line(label=group_label(group), effect=group.effect, **style))
    label = f"difference of test HR@{tested.claim.k}, {SHORT_NAMES[tested.claim.measure]}, points; 95% intervals"
    return forest(lines, worthwhile, label, [], width)


def group_label(group: GroupEffect) -> str:
    """`heard (3,912)`."""
    return f"{plain(group.group, 26)} ({group.n_sessions:,})"


def forest(lines: Sequence[Line], worthwhile: float, label: str, keys: Sequence[Line2D], width: float) -> Figure:
    """Differences in points with their intervals, in figures at the right; the zone that would not matter shaded."""
    effects = [line.effect for line in lines if line.effect]
    right = LETTER * max(len(in_figures(e)) for e in effects)
    left = LETTER * (max(len(line.label) for line in lines if line.effect) + 2)
    height = ROW_HEIGHT * len(lines) + 0.75 + 0.25 * bool(keys)
    figure = Figure(figsize=(width, height))
    bottom = (0.55 + 0.25 * bool(keys)) / height
    axes = figure.add_axes((left / width + 0.02, bottom, 1 - (left + right) / width - 0.06, 1 - bottom - 0.1 / height))
    for y, line in enumerate(lines):
        weight = "bold" if line.strong else "normal"
        if line.effect is None:
            axes.annotate(
                line.label, (0, y), (-72 * left, 0), xycoords=("axes fraction", "data"), va="center",
                textcoords="offset points", fontsize=8.5, fontweight=weight, color="#222222", annotation_clip=False,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            continue
        draw_interval(axes, y, line)
        axes.annotate(
            in_figures(line.effect), (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8, fontweight=weight, color="#222222", annotation_clip=False,
        )  # fmt: skip
    axes.axvspan(-100 * worthwhile, 100 * worthwhile, color=ZONE, zorder=0, linewidth=0)
    axes.axvline(0, color="#222222", linewidth=0.9, zorder=1)
    axes.set_xlim(*limits(effects, worthwhile))
    axes.set_ylim(len(lines) - 0.4, -0.6)
    shown = [(y, line) for y, line in enumerate(lines) if line.effect]
    axes.set_yticks([y for y, _ in shown], [line.label for _, line in shown], fontsize=8)
    for tick, (_, line) in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if line.strong else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label, fontsize=8)
    # In the middle of the figure: beside long names a narrow figure's axes have no room for it.
    axes.xaxis.set_label_coords(0.5, bottom - 0.25 / height, transform=figure.transFigure)
    if keys:
        figure.legend(handles=keys, loc="lower center", ncols=3)
    return figure


def in_figures(effect: Effect) -> str:
    """`+0.8 [+0.2, +1.4]`: shorter than in tables."""
    return f"{points(effect.estimate)} [{between(effect).replace(' to ', ', ')}]"


def draw_interval(axes: Axes, y: float, line: Line) -> None:
    """A marker, and its interval where it is known: thick and filled where it was declared."""
    estimate, low, high = (100 * x for x in (line.effect.estimate, line.effect.low, line.effect.high))
    width = 2.4 if line.strong else 1.2
    if math.isfinite(low):
        axes.plot([low, high], [y, y], color=line.color, linewidth=width, solid_capstyle="butt", zorder=2)
    axes.plot(
        estimate, y, color=line.color, marker=line.marker, markersize=7 if line.strong else 5.5, zorder=3,
        markerfacecolor=line.color if line.strong else "white", markeredgewidth=1.3,
    )  # fmt: skip


def limits(effects: Iterable[Effect], worthwhile: float) -> tuple[float, float]:
    """An axis in points that holds every interval, 0, and the zone that would not matter."""
    ends = [x for e in effects for x in (e.estimate, e.low, e.high) if math.isfinite(x)]
    low, high = 100 * min(*ends, -worthwhile), 100 * max(*ends, worthwhile)
    pad = 0.04 * (high - low)
    return low - pad, high + pad


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Values of runs that differ by their seed alone."""

    label: str
    values: tuple[float, ...]
    is_confirming: bool


@styled
def noise(strips: Sequence[Strip], worthwhile: float, metric: str, *, width: float = WIDE) -> Figure:
    """Each group's values around their mean: what chance alone does, beside the difference that would matter."""
    height = 2 * ROW_HEIGHT * len(strips) + 1.0
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for y, strip in enumerate(strips):
        offsets = 100 * (np.array(strip.values) - np.mean(strip.values))
        colour, marker = (PALETTE[0], "o") if strip.is_confirming else (PALETTE[1], "s")
        axes.plot([offsets.min(), offsets.max()], [y, y], color=colour, linewidth=1, alpha=0.6)
        axes.plot(
            offsets, [y] * len(offsets), color=colour, marker=marker, linestyle="none", markersize=6, alpha=0.75,
            markeredgewidth=0,
        )  # fmt: skip
        axes.annotate(
            f"{plain(strip.label, round(width / LETTER) - 24)}: {len(offsets)} seeds, sd {offsets.std(ddof=1):.2f}",
            (0, y), (0, 6), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.axvspan(-100 * worthwhile, 100 * worthwhile, color=ZONE, zorder=0, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(strips) - 0.6, -0.9)
    axes.set_xlabel(f"{metric}, points from the group's mean", fontsize=8)
    return figure
