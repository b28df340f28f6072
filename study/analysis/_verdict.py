"""The rows of Table 1 -> comparisons, and what they say about skips, in words and no more than they can."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from study.analysis._tables import ARCHITECTURES, Counts, DoneCell, Repeats, Row, margin
from study.analysis._words import points, rate, shown, some


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The best cell of one group beside the best of another."""

    architecture: str
    ours: Row
    other: Row

    @property
    def difference(self) -> float:
        """Of the study's metric."""
        return self.ours.best.value - self.other.best.value

    @property
    def margin(self) -> float:
        """Half a 95% interval of the difference, as if the two had been asked about different sessions."""
        return margin([self.ours.best.value, self.other.best.value], self.ours.best.metrics["val/count"])

    @property
    def outcome(self) -> str:
        """`higher`, `lower`, or `no difference shown` where the difference is within the margin."""
        if abs(self.difference) <= self.margin:
            return "no difference shown"
        return "higher" if self.difference > 0 else "lower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer in words, and the comparisons behind it."""

    answer: str
    """To "do skips help here?", in a few words."""
    because: str
    """One sentence with the numbers."""
    remarks: tuple[str, ...]
    """What a reader must know before believing it."""
    comparisons: tuple[Comparison, ...]
    """Best S+ against best S-, for each architecture that has both."""
    controls: tuple[Comparison, ...]
    """Best S+ against the best control, likewise."""


def judge(
    rows: Iterable[Row],
    baselines: Mapping[str, float],
    best: DoneCell,
    counts: Counts,
    repeats: Repeats | None,
    *,
    unequal: bool,
) -> Verdict:
    """What the rows say about skips, no more than they can.

    "Skips help" means that a session's own skips beat both no skips and the controls (semantics: after section 5).
    """
    comparisons = compare(rows, "S-")
    controls = compare(rows, "control")
    floor = max(baselines.values(), default=-math.inf)
    name = next((n for n, v in baselines.items() if v == floor), "")
    learnt = [c for c in comparisons if max(c.ours.best.value, c.other.best.value) > floor]
    answer, because = answer_from(learnt, controls)
    if comparisons and not learnt:
        answer = f"Not shown: no model here is above {shown(name)}"
        because = (
            f"The best model has {rate(best.value)}, {name} {rate(floor)}. Models that have learnt nothing worth "
            "having say nothing about skips."
        )
    remarks = [against_baseline(best, name, floor)] if baselines else []
    remarks += [
        f"{c.architecture.capitalize()}: no model is above {name}, so its S+ and S- are not counted in the answer."
        for c in comparisons
        if learnt and c not in learnt
    ]
    if unequal:
        remarks.append("The recipe gives its arms unequal chances, and says so (unequal = true).")
    remarks += [how_tuned(c) for c in comparisons]
    if comparisons:
        remarks.append(
            f"The margins are rough: for {best.metrics['val/count']:,.0f} validation sessions, as if each model had "
            "been asked about others, one seed each, and before the bias of picking the best by these same sessions."
        )
    remarks += [text for c in comparisons for text in by_other_measures(c)]
    remarks += [about_control(c) for c in controls]
    if repeats is not None:
        remarks.append(about_seeds(repeats))
    if not counts.is_finished:
        answer = f"So far: {answer[0].lower()}{answer[1:]}"
    return Verdict(
        answer=answer, because=because, remarks=tuple(remarks), comparisons=tuple(comparisons), controls=tuple(controls)
    )


def compare(rows: Iterable[Row], kind: str) -> list[Comparison]:
    """The best S+ row against the best row of a kind, for each architecture where both were tried."""
    rows = [row for row in rows if row.cells]
    found = []
    for architecture in ARCHITECTURES:
        ours, other = (pooled(r for r in rows if r.architecture == architecture and r.kind == k) for k in ("S+", kind))
        if ours and other:
            found.append(Comparison(architecture=architecture, ours=ours, other=other))
    return found


def pooled(rows: Iterable[Row]) -> Row | None:
    """The rows of one kind as one, under the label of the best: its best is the best of all their cells."""
    rows = list(rows)
    if not rows:
        return None
    best = max(rows, key=lambda r: (r.best.value, -r.best.trial))
    cells = tuple(c for r in rows for c in r.cells)
    return Row(architecture=best.architecture, label=best.label, kind=best.kind, cells=cells, paper=None)


def answer_from(comparisons: list[Comparison], controls: list[Comparison]) -> tuple[str, str]:
    """The short answer, and the sentences behind it."""
    if not comparisons:
        return (
            "This study cannot say",
            "It needs a complete cell with a session's skips (S+) and one without (S-, alpha 0) of one architecture.",
        )
    because = " ".join(map(in_words, comparisons))
    higher, lower = ([c for c in comparisons if c.outcome == outcome] for outcome in ("higher", "lower"))
    unbeaten = [c for c in controls if c.outcome != "higher" and c.architecture in {h.architecture for h in higher}]
    if not higher and not lower:
        return "Not shown", because
    if not higher:
        if len(lower) == len(comparisons):
            return "Not shown: S+ is below S-", because
        return f"Not shown; {lower[0].architecture}, S+ is below S-", because
    where = "" if len(higher) == len(comparisons) else f" for one architecture of two ({higher[0].architecture})"
    if unbeaten:
        return f"Not shown: S+ is above S-{where}, but not above its control", because
    if {c.architecture for c in higher} - {c.architecture for c in controls}:
        return f"Perhaps: S+ is above S-{where}, but no control was tried beside it", because
    return f"Perhaps: S+ is above S- and its control{where}, in single runs", because


def in_words(c: Comparison) -> str:
    """A comparison as one sentence."""
    ending = {
        "no difference shown": "no difference shown",
        "higher": "more than the sampling of sessions explains",
        "lower": "lower, by more than the sampling of sessions explains",
    }[c.outcome]
    return (
        f"{c.architecture.capitalize()}: the best S+ cell has {rate(c.ours.best.value)}, "
        f"the best S- cell {rate(c.other.best.value)}, {points(c.difference)} points with a 95% "
        f"margin of {100 * c.margin:.1f}: {ending}."
    )


def how_tuned(c: Comparison) -> str:
    """How many draws each side had."""
    ours, other = (some(len(row.cells), "cell") for row in (c.ours, c.other))
    text = f"{c.architecture.capitalize()}: S+ is the best of {ours}, S- of {other}."
    if len(c.ours.cells) == len(c.other.cells):
        return text
    favoured = "S+" if len(c.ours.cells) > len(c.other.cells) else "S-"
    return f"{text} The best of more cells is higher by luck alone, which favours {favoured} here."


def by_other_measures(c: Comparison) -> list[str]:
    """The same two cells by the metrics that sampled candidates may order otherwise (semantics: section 6)."""
    found = []
    for name, label in (("val/full_hr_at_10", "the whole catalogue"), ("val/full_new_hr_at_10", "new tracks alone")):
        ours, other = c.ours.best.metrics.get(name), c.other.best.metrics.get(name)
        if ours is not None and other is not None:
            found.append(f"{points(ours - other)} against {label}")
    text = f"{c.architecture.capitalize()}: the same two cells by the full measures, in points of HR@10: "
    return [text + " and ".join(found) + "."] if found else []


def about_control(c: Comparison) -> str:
    """Whether it is the session's own skips that matter."""
    _, control = c.other.label.split(maxsplit=1)
    return (
        f"{c.architecture.capitalize()}: the best control ({control}) has {rate(c.other.best.value)}; S+ is "
        f"{points(c.difference)} points from it, margin {100 * c.margin:.1f}: "
        + (
            "what S+ gains may come from the session's own skips."
            if c.outcome == "higher"
            else "not shown that a session's own skips matter more than these."
        )
    )


def about_seeds(repeats: Repeats) -> str:
    """What chance alone does, in words."""
    n = len(repeats.groups)
    return (
        f"Seeds: in {some(n, 'group')} of cells that are the same experiment but for their seed (alpha and beta "
        f"counted by their ratio) values have a standard deviation of {100 * repeats.standard_deviation:.1f} points "
        f"and a range of up to {100 * repeats.largest_range:.1f}. A difference like that between two runs is noise."
    )


def against_baseline(best: DoneCell, name: str, floor: float) -> str:
    """How the best model stands to the strongest baseline."""
    difference = best.value - floor
    width = margin([best.value, floor], best.metrics["val/count"])
    where = f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"
    text = f"The best model is {where} the strongest baseline, {name} ({rate(floor)})"
    if difference <= 0:
        return f"{text}: it has learnt nothing worth having."
    if difference <= width:
        return f"{text}, within the margin of {100 * width:.1f}: not shown to have learnt more."
    return f"{text}."
