"""Learning curves: over the seeds of confirming runs, or of a search's cells where there are none."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.analysis import Curve, DoneCell, best_of, rate
from study.plots._style import BASELINE_DASHES, GREY, NARROW, WIDE, looks, metric_label, plain, spread, styled

End = tuple[float, float, str, str, str]
"""Of a curve: its last epoch and value; its label, colour and weight."""


@styled
def seed_curves(
    curves: Sequence[Curve], baselines: Mapping[str, float], metric: str, arms: Sequence[str], *, width: float = WIDE
) -> Figure:
    """An arm's mean over its seeds by epoch, in a band from the lowest to the highest of them.

    Args:
        curves: Of the arms that have runs of their own.
        baselines: Values by name.
        metric: What the values are.
        arms: Every arm: each keeps its look in all figures.
        width: Of the figure.
    """
    figure, axes = empty(width)
    look = looks(arms)
    ends = []
    for found in curves:
        style = look[found.arm]
        # Markers at other epochs for each arm: curves that lie on each other stay apart.
        every = (arms.index(found.arm) % 3, max(1, len(found.epochs) // 6))
        axes.fill_between(found.epochs, found.low, found.high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(found.epochs, found.mean, linewidth=1.8, markersize=5, markevery=every, **style)
        text = f"{plain(found.arm)} {rate(max(found.mean))}"
        ends.append((found.epochs[-1], found.mean[-1], text, style["color"], "bold"))
    finish(axes, ends, baselines, metric, max(c.epochs[-1] for c in curves), width)
    return figure


@styled
def learning_curves(
    cells: Sequence[DoneCell],
    baselines: Mapping[str, float],
    metric: str,
    arms: Sequence[str],
    *,
    width: float = WIDE,
) -> Figure:
    """The metric by epoch: faint for every cell, bold for each arm's best, its chosen epoch marked."""
    figure, axes = empty(width)
    look = looks(arms)
    for cell in cells:
        axes.plot(cell.curve.keys(), cell.curve.values(), color=look[cell.arm]["color"], linewidth=0.7, alpha=0.25)
    ends = []
    for arm in arms:
        cell = best_of(c for c in cells if c.arm == arm)
        if cell is None:
            continue
        axes.plot(cell.curve.keys(), cell.curve.values(), color=look[arm]["color"], linewidth=2)
        axes.plot(cell.chosen_epoch, cell.value, markersize=6, zorder=4, **look[arm])
        last = max(cell.curve)
        ends.append((last, cell.curve[last], f"{plain(arm)} {rate(cell.value)}", look[arm]["color"], "bold"))
    finish(axes, ends, baselines, metric, max(max(c.curve) for c in cells), width)
    return figure


def empty(width: float) -> tuple[Figure, Axes]:
    """A figure, and its axes."""
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    return figure, figure.add_subplot()


def finish(
    axes: Axes, ends: Sequence[End], baselines: Mapping[str, float], metric: str, longest: int, width: float
) -> None:
    """Baselines, labels and axes. Labels stand at the curves' ends, or below them where the figure is narrow."""
    ends = list(ends)
    for name, value in baselines.items():
        axes.axhline(value, color=GREY, linestyle=BASELINE_DASHES.get(name, "-"), linewidth=1, zorder=1)
        ends.append((longest, value, f"{plain(name)} {rate(value)}", GREY, "normal"))
    low, high = axes.get_ylim()
    axes.set_xlim(0.8, max(longest, 2) + 0.2)
    edge = axes.get_xlim()[1]
    below = width == NARROW
    heights = spread([end[1] for end in ends], 0.05 * (high - low))
    if below:  # the highest first, as the curves are
        order = sorted(range(len(ends)), key=lambda i: -ends[i][1])
        for line, i in enumerate(order):
            _, _, text, colour, weight = ends[i]
            axes.annotate(
                text, (0, 0), (0, -38 - 12 * line), xycoords="axes fraction", textcoords="offset points", fontsize=8,
                color=colour, fontweight=weight, annotation_clip=False,
            )  # fmt: skip
    else:
        for (x, y, text, colour, weight), height in zip(ends, heights, strict=True):
            axes.annotate(
                text, (x, y), (edge * 1.012, height), va="center", fontsize=8, color=colour, fontweight=weight,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5},
            )  # fmt: skip
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric_label(metric))
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
