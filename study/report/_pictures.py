"""A study's figures as PNG, each with a title and with what it shows in words."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from study import plots
from study.analysis import Analysis, Confirmed

DPI = 150
CAPTIONS = {
    "forest": (
        "What the confirming runs say of each claim",
        "Differences on test with 95% intervals, for other seeds and other sessions. Bold: the measure that the claim "
        "was declared for. Grey: differences too small to matter. An interval across 0 shows no direction. † marks a "
        "control.",
    ),
    "groups": (
        "The first claim among groups of sessions",
        "The same difference where only the sessions of one group count, with 95% intervals that are not corrected for "
        "the number of groups: one in twenty leaves the truth out by chance.",
    ),
    "learning_bands": (
        "Learning, over seeds",
        "Validation by epoch: the mean of each arm's confirming runs, and a band from the lowest to the highest seed. "
        "A run that stopped early keeps its last value.",
    ),
    "table1": (
        "The best cell of each row",
        "Dots with bars: the best cell of each row with its 95% margin for the sampling of sessions. Faint dots: "
        "the row's other cells, of which the best was picked. Dashed and dotted: baselines; random is in the "
        "table below alone. Whether a difference is shown is said at the top; it is not whether two bars overlap.",
    ),
    "parallel_coordinates": (
        "Every cell through its settings",
        "Each line is a cell, through its settings to its value: dark is high, orange the best. Where a setting "
        "does nothing in a cell, as the context without skips, the line goes through \u201cno effect\u201d.",
    ),
    "slices": (
        "One setting at a time",
        "Each dot is a cell, with all other settings varying behind it. Dashed: the strongest baseline. Where "
        "values are names, dots are spread sideways. Cells that a setting does not affect are left out of its "
        "panel.",
    ),
    "importance": (
        "Which settings matter for S+",
        "PED-ANOVA over the S+ cells: how well each setting alone tells the best tenth of them from the rest, as "
        "shares of the sum. A share says that a setting matters, not which value is good; with fewer than some "
        "fifty cells it is a hint.",
    ),
    "learning_curves": (
        "Learning curves",
        "Faint: every cell. Bold: the best cell of each arm, its chosen epoch marked, its value beside its name. "
        "Dashed: baselines but random.",
    ),
    "cost": (
        "Seconds of each cell",
        "Each dot is a cell; the stroke is the arm's median. Training stops early, so time follows the number of "
        "epochs.",
    ),
}
"""Each figure's title, and what it shows."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG, with what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """For a page that carries its pictures."""
        return base64.b64encode(self.png).decode("ascii")


def draw(found: Analysis) -> dict[str, Picture]:
    """Every figure that the study has something to show in, by name."""
    metric = found.metric
    # Random is far below everything, and an axis that reaches it hides what differs.
    baselines = {name: value for name, value in found.baseline_values.items() if name != "random"}
    strongest = {name: value for name, value in baselines.items() if value == max(baselines.values())}
    arms = [arm.arm for arm in found.arms if arm.cells]
    figures = {"table1": plots.table1(found.table1, baselines, metric)}
    if found.varying:
        figures["parallel_coordinates"] = plots.parallel_coordinates(found.cells, found.varying, metric)
        figures["slices"] = plots.slices(found.cells, found.varying, strongest, metric, arms)
    if found.importance.shares:
        figures["importance"] = plots.importance(found.importance.shares)
    if found.confirmed is None:
        figures["learning_curves"] = plots.learning_curves(found.cells, baselines, metric, arms)
    else:
        figures |= confirmed(found.confirmed, baselines, metric)
    figures["cost"] = plots.cost(found.arms)
    return {name: Picture(name, *CAPTIONS[name], png(figure)) for name, figure in figures.items()}


def confirmed(found: Confirmed, baselines: Mapping[str, float], metric: str) -> dict[str, Figure]:
    """The figures of the confirming runs."""
    controls = [arm.name for arm in found.arms if arm.kind == "control"]
    first = found.claims[0]
    figures = {"forest": plots.forest(found.claims, controls, found.worthwhile)}
    if first.groups:
        figures["groups"] = plots.groups(first.groups, first, found.worthwhile)
    names = [arm.name for arm in found.arms]
    return figures | {"learning_bands": plots.learning_bands(found.arms, baselines, metric, names)}


def png(figure: Figure) -> bytes:
    """A figure as PNG, without a date or a version in it: the same study gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


# Summary
