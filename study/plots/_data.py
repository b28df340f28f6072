"""What the data is like: where people skip, and how plays are spread over the catalogue."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from study.plots._style import NARROW, PALETTE, WIDE, plain, styled

CONTEXTS = 8
"""That are drawn: those with the most plays."""
LONGEST = 22
"""Letters of a context's name."""


@styled
def data(
    by_position: Sequence[float | None],
    by_context: Mapping[str, float | None],
    popularity: Sequence[tuple[int, float]],
    *,
    width: float = WIDE,
) -> Figure:
    """Share skipped by position and by context, and the share of plays that the most played tracks have.

    Args:
        by_position: From the first position on; None where nobody was.
        by_context: By falling plays.
        popularity: Numbers of tracks, the most played first, each with their share of all plays.
        width: Of the figure.
    """
    is_narrow = width == NARROW
    shown = dict(list(by_context.items())[:CONTEXTS])
    size = (width, 7.2) if is_narrow else (width, 2.9)
    figure = Figure(figsize=size, layout="constrained")
    positions, contexts, curve = figure.subplots(*((3, 1) if is_narrow else (1, 3)))
    places = [t for t, value in enumerate(by_position, 1) if value is not None]
    positions.plot(
        places, [by_position[t - 1] for t in places], color=PALETTE[0], marker="o", markersize=4, linewidth=1.4
    )
    positions.set_title("Skipped, by position")
    positions.set_xlabel("position in the session")
    positions.set_ylim(0, 1)
    positions.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bars = [value or 0.0 for value in shown.values()]
    contexts.barh([plain(name, LONGEST) for name in shown], bars, color=PALETTE[2], height=0.6)
    contexts.invert_yaxis()
    contexts.set_title("Skipped, by context")
    contexts.set_xlim(0, 1)
    curve.plot(*zip(*popularity, strict=True), color=PALETTE[1], marker="o", markersize=3, linewidth=1.4)
    curve.set_title("Plays of the most played")
    curve.set_xscale("log")
    curve.set_xlabel("tracks, the most played first")
    curve.set_ylim(0, 1)
    for axes, of in ((positions, "y"), (contexts, "x"), (curve, "y")):
        getattr(axes, f"{of}axis").set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis=of, color="#eeeeee")
        axes.set_axisbelow(True)
    return figure
