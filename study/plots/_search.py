"""Figures of a search: its cells by row, through their settings, by one setting, and what they took."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis import ArmCost, DoneCell, Row, rate
from study.plots._style import (
    BASELINE_DASHES,
    COLOURS_OF_VALUES,
    DOTS,
    GREY,
    JITTER,
    LEGEND_COLUMNS,
    NARROW,
    PALETTE,
    WIDE,
    axis_ticks,
    is_log,
    is_text,
    looks,
    metric_label,
    number,
    numeric_axis,
    plain,
    spread_names,
    styled,
)

KINDS = {"S-": ("#000000", "s"), "S+": (PALETTE[0], "o"), "control": (PALETTE[1], "D"), "use": (PALETTE[2], "^")}
"""A colour and a marker for each use of skips."""


@styled
def table1(rows: Sequence[Row], baselines: Mapping[str, float], metric: str, *, width: float = WIDE) -> Figure:
    """Each row's best cell with its margin, its other cells faintly behind, baselines as vertical lines."""
    shown = [row for row in rows if row.cells]
    figure = Figure(figsize=(width, 1.5 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(shown):
        colour, marker = KINDS[row.kind]
        best = row.best
        others = [c.value for c in row.cells if c is not best]
        axes.plot(others, [y] * len(others), "o", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
        axes.errorbar(best.value, y, xerr=best.margin, fmt=marker, color=colour, markersize=7, capsize=3, linewidth=1.4)
        axes.annotate(
            rate(best.value), (best.value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    for name, value in baselines.items():
        axes.axvline(value, color=GREY, linestyle=BASELINE_DASHES.get(name, "-"), linewidth=1)
    low, high = axes.get_xlim()
    # Two lines each: the name above the value. As many as there are would run into each other in one.
    for i, (name, place) in enumerate(spread_names(baselines, (high - low) * 1.5 / width).items()):
        axes.annotate(
            f"{plain(name)}\n{rate(baselines[name])}", (place, 1), (0, 3 + 22 * (i % 2)),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", fontsize=8, color=GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [plain(f"{row.architecture} {row.label}") for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.7)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{metric_label(metric)} (the axis does not start at 0)" if low > 0 else metric_label(metric))
    return figure


@styled
def parallel_coordinates(
    cells: Sequence[DoneCell], settings: Sequence[str], metric: str, *, width: float = WIDE
) -> Figure:
    """A line a cell through its settings to its value; the best one bold and drawn last."""
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.add_subplot()
    settings = [name for name in settings if name != "alpha/beta"]
    ordered = sorted(cells, key=lambda c: (c.value, -c.trial))
    columns = [column(axes, x, name, ordered) for x, name in enumerate(settings)]
    values = [c.value for c in ordered]
    norm = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    columns.append([0.5] * len(values) if len(set(values)) == 1 else [float(norm(v)) for v in values])
    colours = ScalarMappable(norm, COLOURS_OF_VALUES)
    for cell, heights in zip(ordered, zip(*columns, strict=True), strict=True):
        is_best = cell is ordered[-1]
        axes.plot(
            range(len(columns)),
            heights,
            color=PALETTE[1] if is_best else colours.to_rgba(cell.value),
            linewidth=2.6 if is_best else 1.0,
            alpha=1 if is_best else 0.65,
            marker="o",
            markersize=4.5 if is_best else 2.5,
            zorder=3 if is_best else 2,
            clip_on=False,
        )
    last = len(settings)
    ends = [values[0], values[-1]] if len(set(values)) > 1 else values[:1]
    for value in ends:
        height = 0.5 if len(ends) == 1 else float(norm(value))
        is_best = value == values[-1]
        weight, colour = ("bold", PALETTE[1]) if is_best else ("normal", "#444444")
        axes.annotate(
            f"{rate(value)}{' best' if is_best else ''}", (last, height), (7, 0), textcoords="offset points",
            va="center", fontsize=9, fontweight=weight, color=colour,
        )  # fmt: skip
    for x in range(len(columns)):
        axes.axvline(x, color="#bbbbbb", linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(columns)), [plain(name) for name in settings] + [metric_label(metric)])
    axes.tick_params(axis="x", length=0, pad=12, labelsize=9, rotation=60 if width == NARROW else 0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.25, last + 0.45)
    axes.set_ylim(-0.04, 1.04)
    return figure


def column(axes: Axes, x: int, name: str, cells: Sequence[DoneCell]) -> list[float]:
    """Draw one axis' labels; the height of each cell on it, between 0 and 1."""
    values = [c.settings.get(name) for c in cells]
    real = [v for v in values if v is not None]
    if is_text(real):
        seen = sorted(set(real), key=str)
        heights = {v: i / max(1, len(seen) - 1) for i, v in enumerate(seen)}
        labels = {v: plain(v) if isinstance(v, str) else str(v) for v in seen}
    else:
        ticks = axis_ticks(name, real)
        scale = np.log if is_log(name, real) else np.asarray
        low, high = float(scale(min(real))), float(scale(max(real)))
        heights = {v: (float(scale(v)) - low) / ((high - low) or 1.0) for v in {*ticks, *real}}
        labels = {v: number(v) for v in ticks}
    if None in values:  # below all others
        heights = {v: 0.25 + 0.75 * height for v, height in heights.items()} | {None: 0.0}
        labels[None] = "no effect"
    # Lines through one name are fanned out a little, or a hundred of them would look like one.
    fan = np.linspace(-0.03, 0.03, len(cells)) if is_text(real) else np.zeros(len(cells))
    drawn = [heights[v] + shift for v, shift in zip(values, fan, strict=True)]
    for value, label in labels.items():
        axes.annotate(
            label, (x, heights[value]), (5, 0), textcoords="offset points", va="center", fontsize=8, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    return drawn


@styled
def slices(
    cells: Sequence[DoneCell],
    settings: Sequence[str],
    baselines: Mapping[str, float],
    metric: str,
    arms: Sequence[str],
    *,
    width: float = WIDE,
) -> Figure:
    """A panel a setting: its value against the metric, coloured by arm. Cells that it does not affect are left out."""
    across = 4 if len(settings) in (4, 7, 8) else min(3, len(settings))
    across = min(2, across) if width == NARROW else across
    down = -(-len(settings) // across)
    lines = -(-(len(arms) + len(baselines)) // LEGEND_COLUMNS[width])
    figure = Figure(figsize=(width, 2.5 * down + 0.2 + 0.2 * lines), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    look = looks(arms)
    jitter = np.random.default_rng(0)
    for axes, name in zip(panels.flat, settings, strict=False):
        affected = [c for c in cells if name in c.settings]
        by_name = is_text(c.settings[name] for c in affected)
        seen = sorted({c.settings[name] for c in affected}, key=str if by_name else None)
        if by_name:
            axes.set_xticks(range(len(seen)), [plain(v) if isinstance(v, str) else str(v) for v in seen])
            axes.set_xlim(-0.5, len(seen) - 0.5)
        else:
            numeric_axis(axes, name, seen)
        for arm in arms:
            own = [c for c in affected if c.arm == arm]
            x = [c.settings[name] for c in own]
            if by_name:
                x = [seen.index(v) + jitter.uniform(-JITTER, JITTER) for v in x]
            axes.plot(x, [c.value for c in own], **(DOTS | look[arm]), markersize=5, alpha=0.7)
        for baseline, value in baselines.items():
            axes.axhline(value, color=GREY, linestyle=BASELINE_DASHES.get(baseline, "-"), linewidth=1, zorder=1)
        axes.set_xlabel(plain(name) + (", log scale" if axes.get_xscale() == "log" else ""))
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    for axes in panels.flat[len(settings) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(metric_label(metric))
    keys = [Line2D([], [], linestyle="none", label=plain(arm), markersize=5, **look[arm]) for arm in arms]
    keys += [
        Line2D([], [], color=GREY, linestyle=BASELINE_DASHES.get(n, "-"), linewidth=1, label=f"{plain(n)} {rate(v)}")
        for n, v in baselines.items()
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=LEGEND_COLUMNS[width])
    return figure


@styled
def importance(
    shares: Mapping[str, float], spread: Mapping[str, tuple[float, float]], *, width: float = WIDE
) -> Figure:
    """A bar a setting, from 0, the largest on top, and a stroke over where the share may as well lie."""
    figure = Figure(figsize=(width, 0.8 + 0.36 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(shares, key=shares.get)
    axes.barh([plain(n) for n in names], [shares[n] for n in names], color=PALETTE[6], height=0.6)
    for y, name in enumerate(names):
        low, high = spread.get(name, (shares[name], shares[name]))
        axes.plot([low, high], [y, y], color="black", linewidth=1.4, marker="|", markersize=7)
        axes.annotate(
            f"{shares[name]:.0%} ({low:.0%} to {high:.0%})", (max(high, shares[name]), y), (6, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_xlim(0, max(max(shares.values()), *(high for _, high in spread.values()), 0) * (1 + 2.4 / width))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of importance")
    return figure


@styled
def cost(arms: Sequence[ArmCost], *, width: float = WIDE) -> Figure:
    """Seconds of each cell, a strip an arm, from 0; the arm's median as a stroke."""
    shown = [arm for arm in arms if arm.cells]
    figure = Figure(figsize=(width, 0.9 + 0.38 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    look = looks(arm.arm for arm in arms)
    for y, arm in enumerate(shown):
        seconds = [c.train_seconds + c.eval_seconds for c in arm.cells]
        axes.plot(seconds, [y] * len(seconds), **(DOTS | look[arm.arm]), markersize=6, alpha=0.5)
        axes.plot([np.median(seconds)] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.2)
    axes.set_yticks(range(len(shown)), [plain(arm.arm) for arm in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds a cell, training and validation")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure
