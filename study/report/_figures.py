"""The figures of a report, each with what it shows in words."""

import io
from collections.abc import Callable, Iterable, Mapping

from matplotlib.figure import Figure
from PIL import Image

from study import plots
from study.analysis import (
    SHORT_NAMES,
    Analysis,
    best_of,
    in_points,
    interval,
    rate,
    shown,
)
from study.estimate import duration
from study.report._blocks import Picture
from study.report._tables import repeat_groups, settings_text

DPI = {plots.WIDE: 150, plots.NARROW: 190}
COLOURS = 160
"""Of a figure's palette."""
STRIPS = 8
"""Groups of repeats of the search that are drawn: the widest."""


def draw(found: Analysis) -> dict[str, Picture]:
    """Every figure that the study has something to show in, by name."""
    figures = [validation(found), learning(found), cost(found)]
    figures += [figure for figure in (noise(found), *searched(found), data(found)) if figure]
    if found.confirmed and found.confirmed.claims:
        figures += [claims(found), groups(found)]
    return {figure.name: figure for figure in figures}


def picture(name: str, title: str, caption: str, alternative: str, drawn: Callable[..., Figure]) -> Picture:
    """A figure at both widths.

    Args:
        name: Of its file.
        title: Above it.
        caption: Below it.
        alternative: In its place.
        drawn: Takes a width.
    """
    images = [png(drawn(width=width), DPI[width]) for width in (plots.WIDE, plots.NARROW)]
    return Picture(name, title, caption, alternative, *images)


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as PNG, without a date or a version in it: the same study gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    with Image.open(buffer) as image:  # flat colours: a palette holds them in a third of the space
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def claims(found: Analysis) -> Picture:
    """The answer as a figure."""
    confirmed = found.confirmed
    said = [
        f"{t.claim.named(shown)}, HR@{t.claim.k}: "
        + ", ".join(f"{SHORT_NAMES[m]} {interval(effects[t.claim.k])}" for m, effects in t.effects.items())
        for t in confirmed.claims
    ]
    return picture(
        "claims",
        "Every claim: the difference, and how sure it is",
        "Each claim by three measures: against 1,000 drawn tracks (sampled, circle), the whole catalogue (full, "
        "square), and new tracks among new tracks (full, new, triangle). Thick and filled: the measure that was "
        "declared before the study ran. Bars are 95% intervals for other seeds and other sessions. Shaded: differences "
        f"of up to {in_points(confirmed.worthwhile)}, which would not matter. An interval right of 0 is in favour of "
        "the first arm.",
        f"Differences with their intervals. {'. '.join(said)}.",
        lambda width: plots.claims(confirmed, width=width),
    )


def groups(found: Analysis) -> Picture:
    """The first claim by group."""
    confirmed = found.confirmed
    tested = confirmed.claims[0]
    said = [f"{g.grouping} {shown(g.group)} {interval(g.effect)}" for g in tested.groups]
    return picture(
        "groups",
        f"{tested.claim.named(shown)}, by group of sessions",
        "The first claim among the sessions of each group, with their number. Intervals are wider where there are "
        "fewer sessions, and are not corrected for the number of groups: of twenty, one leaves 0 out by chance.",
        f"Differences with their intervals: all {interval(tested.effect)}; {'; '.join(said)}.",
        lambda width: plots.groups(tested, confirmed.worthwhile, width=width),
    )


def noise(found: Analysis) -> Picture | None:
    """What chance alone does."""
    strips = []
    if found.confirmed and len(found.confirmed.seeds) > 1:
        strips += [
            plots.Strip(label=arm.name, values=tuple(run.value for run in arm.runs), is_confirming=True)
            for arm in found.confirmed.arms
            if arm.same_as is None
        ]
    strips += [
        plots.Strip(label=name, values=tuple(c.value for c in group), is_confirming=False)
        for name, group in repeat_groups(found)[:STRIPS]
    ]
    if not strips:
        return None
    worthwhile = found.attrs["recipe"].get("worthwhile", 0.01)
    ranges = [100 * (max(s.values) - min(s.values)) for s in strips]
    return picture(
        "noise",
        "What the seed alone does",
        "Each line holds runs that differ by their seed alone, around their mean: circles are the confirming runs of "
        "an arm, squares cells of the search that came to the same experiment (of many, those that lie furthest "
        f"apart). Shaded: {in_points(worthwhile)} to either side, below which a difference would not matter.",
        f"{len(strips)} groups of runs; ranges within a group go from {min(ranges):.1f} to {max(ranges):.1f} points.",
        lambda width: plots.noise(strips, worthwhile, plots.metric_label(found.metric), width=width),
    )


def near(found: Analysis) -> dict[str, float]:
    """Baselines but random, which is far below everything: an axis that reaches it hides what differs."""
    return {name: value for name, value in found.baseline_values.items() if name != "random"}


def strongest(baselines: Mapping[str, float]) -> dict[str, float]:
    """The best of them."""
    return {name: value for name, value in baselines.items() if value == max(baselines.values())}


def validation(found: Analysis) -> Picture:
    """The search's rows."""
    baselines = strongest(near(found))
    said = [f"{row.architecture} {row.label} {rate(row.best.value)}" for row in found.table1 if row.best]
    said += [f"{shown(name)} {rate(value)}" for name, value in baselines.items()]
    return picture(
        "table1",
        "The best cell of each row, on validation",
        "Markers with bars: the best cell of each row with its 95% margin for the sampling of sessions. Faint dots: "
        "the row's other cells, of which the best was picked. The grey line is the strongest baseline; the others are "
        "in the table. Whether two bars overlap does not say whether a difference is shown.",
        f"Best validation values: {', '.join(said)}.",
        lambda width: plots.table1(found.table1, baselines, found.metric, width=width),
    )


def searched(found: Analysis) -> Iterable[Picture]:
    """What the settings do."""
    arms = [arm.arm for arm in found.arms if arm.cells]
    if found.varying:
        best = settings_text(found.best, found)
        yield picture(
            "parallel_coordinates",
            "Every cell through its settings",
            "Each line is a cell, through its settings to its value: dark is high, orange the best. Where a setting "
            "does nothing in a cell, as the context without skips, the line goes through “no effect”.",
            f"{len(found.cells)} cells through {', '.join(found.varying)}. The best, {rate(found.best.value)}, has "
            f"{best}.",
            lambda width: plots.parallel_coordinates(found.cells, found.varying, found.metric, width=width),
        )
        baselines = strongest(near(found))
        yield picture(
            "slices",
            "One setting at a time",
            "Each marker is a cell, with all other settings varying behind it; each arm has a colour and a shape. "
            "Grey: the strongest baseline. Where values are names, markers are spread sideways. Cells that a setting "
            "does not affect are left out of its panel.",
            f"A panel for each of {', '.join(found.varying)}: {found.metric} of every cell by the setting's value. "
            + "; ".join(best_values(found)),
            lambda width: plots.slices(found.cells, found.varying, baselines, found.metric, arms, width=width),
        )
    shares = found.importance.shares
    if shares:
        spread = found.importance.spread
        said = [
            f"{name} {share:.0%} ({spread[name][0]:.0%} to {spread[name][1]:.0%})" for name, share in shares.items()
        ]
        yield picture(
            "importance",
            "Which settings matter for S+",
            f"PED-ANOVA over {found.importance.n_trials} S+ cells: how well each setting alone tells the best tenth of "
            "them from the rest, as shares of the sum. The stroke is how far a share moves where the cells are drawn "
            "again with replacement (95%): settings whose strokes overlap are not told apart. A share says that a "
            "setting matters, not which value is good.",
            f"Shares: {', '.join(said)}.",
            lambda width: plots.importance(shares, spread, width=width),
        )


def best_values(found: Analysis) -> Iterable[str]:
    """For each setting, the value of its best cell."""
    for name in found.varying:
        best = best_of(c for c in found.cells if name in c.settings)
        value = best.settings[name]
        yield f"best {name} {value:.4g}" if isinstance(value, float) else f"best {name} {shown(value)}"


def learning(found: Analysis) -> Picture:
    """Curves over seeds where there are confirming runs, else the search's."""
    baselines = strongest(near(found))
    if found.confirmed:
        curves = found.confirmed.curves
        said = [f"{shown(c.arm)} {rate(max(c.mean))}" for c in curves]
        return picture(
            "learning_curves",
            "Learning curves of the confirming runs, on validation",
            f"Line: the mean of an arm over {len(found.confirmed.seeds)} seeds, its best value beside its name. Band: "
            "from the lowest to the highest seed. Curves end where the first seed stopped early; each run is measured "
            "at its own best epoch. Grey: the strongest baseline.",
            f"Highest mean of each arm: {', '.join(said)}.",
            lambda width: plots.seed_curves(curves, baselines, found.metric, found.arm_names, width=width),
        )
    arms = [arm.arm for arm in found.arms if arm.cells]
    best = {arm: best_of(c for c in found.cells if c.arm == arm) for arm in arms}
    said = [f"{shown(arm)} {rate(cell.value)} at epoch {cell.chosen_epoch}" for arm, cell in best.items()]
    return picture(
        "learning_curves",
        "Learning curves",
        "Faint: every cell. Bold: the best cell of each arm, its chosen epoch marked, its value beside its name. "
        "Grey: the strongest baseline.",
        f"Best cell of each arm: {', '.join(said)}.",
        lambda width: plots.learning_curves(found.cells, baselines, found.metric, arms, width=width),
    )


def data(found: Analysis) -> Picture | None:
    """What the sessions are like; None where the study does not say."""
    about = found.attrs.get("description")
    if about is None:
        return None
    by_context = {name: about["skipped_by_context"][name] for name in about["contexts"]}
    said = [f"{n:,} {some_share(share)}" for n, share in about["popularity"]]
    return picture(
        "data",
        "What the data is like",
        "First: how much of what is played at a position is skipped. Then by context, the most frequent first. Last: "
        "the share of all plays that the most played tracks have; where few tracks have most of them, popularity alone "
        "is hard to beat against drawn tracks.",
        f"Skipped by position: {', '.join(map(some_share, about['skipped_by_position']))}. By context: "
        + "; ".join(f"{shown(name)} {some_share(share)}" for name, share in by_context.items())
        + f". Plays of the most played tracks: {', '.join(said)}.",
        lambda width: plots.data(about["skipped_by_position"], by_context, about["popularity"], width=width),
    )


def some_share(share: float | None) -> str:
    """As 52%; a dash where there was nothing to count."""
    return "-" if share is None else f"{share:.0%}"


def cost(found: Analysis) -> Picture:
    """What cells took."""
    said = [
        f"{shown(arm.arm)} {duration(arm.train_seconds + arm.eval_seconds)} for {len(arm.cells)}"
        for arm in found.arms
        if arm.cells
    ]
    return picture(
        "cost",
        "Seconds of each cell of the search",
        "Each marker is a cell; the stroke is the arm's median. Training stops early, so time follows the number of "
        "epochs.",
        f"Training and validation by arm: {', '.join(said)} cells.",
        lambda width: plots.cost(found.arms, width=width),
    )
