"""Figures of confirming runs: effects with intervals, by measure and by group, and learning with a band over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.analysis import ConfirmedArm, GroupEffect, TestedClaim, points, rate
from study.plots._style import BASELINE_DASHES, GREY, PALETTE, WIDTH, looks, metric_label, plain, spread, styled

MEASURES = {
    "sampled": ("against sampled tracks", PALETTE[0], "o"),
    "full": ("against the whole catalogue", PALETTE[1], "s"),
    "full_new": ("new tracks among new tracks", PALETTE[2], "^"),
}
"""How each measure is drawn, and what it is called."""


@styled
def forest(claims: Sequence[TestedClaim], controls: Sequence[str], worthwhile: float) -> Figure:
    """Every claim's difference by the three measures, each with its 95% interval; the declared one bold."""
    figure = Figure(figsize=(WIDTH, 1.3 + 0.85 * len(claims)), layout="constrained")
    axes = figure.add_subplot()
    shade(axes, worthwhile)
    for y, tested in enumerate(claims):
        for shift, (measure, (label, colour, marker)) in zip((-0.24, 0.0, 0.24), MEASURES.items(), strict=True):
            effect = tested.effects[measure][tested.claim.k]
            is_declared = measure == tested.claim.measure
            name = label + (" (declared)" if is_declared else "")
            interval(axes, effect, y + shift, colour, marker, is_declared, name if y == 0 else None)
    names = [
        f"{plain(t.claim.arm)}\nless {plain(t.claim.than)}{' †' if t.claim.than in controls else ''}" for t in claims
    ]
    axes.set_yticks(range(len(claims)), names)
    axes.set_ylim(len(claims) - 0.45, -0.55)
    finish(axes, "difference of HR@K on test, in points" if len({t.claim.k for t in claims}) > 1 else
           f"difference of HR@{claims[0].claim.k} on test, in points")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def groups(found: Sequence[GroupEffect], whole: TestedClaim, worthwhile: float) -> Figure:
    """One claim's difference in every group of sessions, with its 95% interval and the number of sessions."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * (len(found) + 1)), layout="constrained")
    axes = figure.add_subplot()
    shade(axes, worthwhile)
    rows = [("all sessions", whole.effect), *((f"{g.grouping}: {g.group}", g.effect) for g in found)]
    for y, (_, effect) in enumerate(rows):
        interval(axes, effect, y, "#000000" if y == 0 else PALETTE[0], "D" if y == 0 else "o", y == 0, None)
    axes.set_yticks(range(len(rows)), [f"{plain(name)} ({effect.n_sessions:,})" for name, effect in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    finish(axes, f"difference of HR@{whole.claim.k} on test, in points: {plain(whole.claim.arm)} less "
           f"{plain(whole.claim.than)}")  # fmt: skip
    return figure


def shade(axes: Axes, worthwhile: float) -> None:
    """Mark the differences that would not matter."""
    axes.axvspan(-100 * worthwhile, 100 * worthwhile, color="#ededed", zorder=0, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=1, zorder=1)


def interval(axes: Axes, effect, y: float, colour: str, marker: str, is_bold: bool, label: str | None) -> None:
    """An effect as a dot with a bar, and its number beside it."""
    if not np.isfinite(effect.low):
        axes.plot(100 * effect.estimate, y, marker, color=colour, label=label, markersize=5, fillstyle="none")
        return
    errors = [[100 * (effect.estimate - effect.low)], [100 * (effect.high - effect.estimate)]]
    axes.errorbar(
        100 * effect.estimate, y, xerr=errors, fmt=marker, color=colour, label=label, capsize=3,
        markersize=7 if is_bold else 5, linewidth=2.2 if is_bold else 1.1,
    )  # fmt: skip
    axes.annotate(
        points(effect.estimate), (100 * effect.high, y), (5, 0), textcoords="offset points", va="center", fontsize=8,
        color=colour, fontweight="bold" if is_bold else "normal",
    )  # fmt: skip


def finish(axes: Axes, label: str) -> None:
    """Grid and name of the axis of differences."""
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.set_xlabel(label)


@styled
def learning_bands(
    arms: Sequence[ConfirmedArm], baselines: Mapping[str, float], metric: str, colours: Sequence[str]
) -> Figure:
    """Each arm's mean over its seeds by epoch, with a band from the lowest to the highest seed.

    Args:
        arms: With their runs.
        baselines: Values of the metric, drawn as lines.
        metric: That is drawn.
        colours: The names of all arms, so that each looks the same in every figure.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.add_subplot()
    look = looks(colours)
    ends = []
    for arm in arms:
        # A run that stopped early keeps its last value: else the mean would jump where one drops out.
        longest = max(max(run.curve) for run in arm.runs)
        table = np.array([[run.curve[min(e, max(run.curve))] for e in range(1, longest + 1)] for run in arm.runs])
        epochs = np.arange(1, longest + 1)
        style = look[arm.name]
        axes.fill_between(epochs, table.min(0), table.max(0), color=style["color"], alpha=0.15, linewidth=0)
        mean = table.mean(0)
        axes.plot(epochs, mean, linewidth=1.8, markevery=max(1, longest // 6), markersize=5, **style)
        ends.append((longest, mean[-1], f"{plain(arm.name)} {rate(float(mean[-1]))}", style["color"]))
    last = max(end[0] for end in ends)
    for name, value in baselines.items():
        axes.axhline(value, color=GREY, linestyle=BASELINE_DASHES.get(name, "-"), linewidth=1, zorder=1)
        ends.append((last, value, f"{plain(name)} {rate(value)}", GREY))
    low, high = axes.get_ylim()
    axes.set_xlim(0.8, max(last, 2) + 0.2)
    edge = axes.get_xlim()[1]
    for (x, y, text, colour), height in zip(ends, spread([e[1] for e in ends], 0.05 * (high - low)), strict=True):
        axes.annotate(
            text, (x, y), (edge * 1.012, height), va="center", fontsize=8, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5},
        )  # fmt: skip
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric_label(metric))
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure
