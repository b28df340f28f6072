"""What a report says of itself: what its words mean, how far it can be trusted, what a preset leaves out."""

from collections.abc import Iterable

from study.analysis import MEASURE_NAMES, Analysis, listed, shown
from study.report._blocks import Block, Points, Text

RELEASED_BEYOND = (
    "two masked positions a session, and always the last (bidirectional)",
    "its candidates are the 1,000 draws and every target of the same batch, in training and in evaluation alike",
    "padding is attended to",
    "padded positions stand as zero vectors among the negatives",
    "a last item without a later heard one is pulled to the session's first track",
    "S+ checkpoints are chosen by a loss that holds the contrastive term",
)
"""What the authors' code does beyond the settings of this program (semantics: section 9)."""


def uses_released(found: Analysis) -> bool:
    """Whether any cell has the released code's negatives."""
    return any(cell.config["negative_scope"] == "released" for cell in found.cells)


def released() -> tuple[Block, ...]:
    """What is not done here though a preset has its name."""
    text = Text(
        "Arms with negative_scope released do what the authors' public code does as far as settings reach. Beyond "
        "them, that code does the following, and this program does not:"
    )
    return text, Points(tuple(("", text) for text in RELEASED_BEYOND))


def glossary(found: Analysis) -> Iterable[tuple[str, str]]:
    """What words mean, and how far the report can be trusted."""
    yield (
        "HR@10",
        "the share of sessions whose next track is among the first ten of the ranking. A point is one hundredth of it.",
    )
    yield (
        "Measures",
        f"sampled: {MEASURE_NAMES['sampled']} (all, where there are fewer), none of them of the session. Full: "
        f"{MEASURE_NAMES['full']}. Full, new: {MEASURE_NAMES['full_new']}, for a service that does not replay.",
    )
    yield (
        "S- and S+",
        "S- trains on the next track alone (alpha 0). S+ also pushes away the tracks that were skipped in the same "
        "session, from the model's output (context session) or from the track played there (context item). A control "
        "pushes away other tracks instead.",
    )
    yield (
        "Skips help",
        "an arm with a session's own skips is above S- and above the controls, with equal tuning, over paired seeds.",
    )
    yield (
        "Interval",
        "95%, for other seeds and other sessions like these, from differences paired by seed and by session. It says "
        "nothing of other data, other models, or settings that were not tried.",
    )
    yield (
        "Margin",
        "of a search's cell or of a baseline: half a 95% interval, 1.96 √(p(1 - p)/n), for the sampling of sessions "
        "alone, without the seed and without the choice of the best.",
    )
    yield (
        "Validation and test",
        "validation chose epochs and settings; test was read once, by the confirming runs."
        if found.confirmed
        else "validation chose epochs and settings; test is for confirming runs, and was not read.",
    )
    yield ("Baselines", f"{listed(map(shown, found.baselines))}." if found.baselines else "none in this study.")
    yield (
        "Leave one out",
        "models train on sessions that also happen after other sessions' test targets. A service that predicts the "
        "future may see smaller numbers; the comparison of arms is alike for all.",
    )
    yield (
        "Cell and trial",
        "a cell is one configuration with one seed; a trial is one attempt at it. All trials are in trials.csv, every "
        "number of this page in summary.json.",
    )
