"""The paper's Table 1 from confirming runs, and its observations, each with what these runs say of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skiprec.evaluation import HIT_RATE_AT
from study.analysis._ranks import Ranks
from study.analysis._tables import ARCHITECTURES, PAPER_TEST, use_of_skips
from study.statistics import Effect, around, crossed_effect, difference

USES = ("S-", "S+ session", "S+ item")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """A row of the paper's Table 1, and the arm of the study that it is."""

    architecture: str
    label: str
    arm: str
    paper: tuple[float, ...]
    """Test HR@1, 5, 10, 20."""
    gains: Mapping[int, float] | None
    """Relative to S- of the same architecture, by K; None for S- itself, or where the study has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Something that the paper observes in its Table 1."""

    says: str
    effect: Effect
    """Of HR@10; for what wanes, the relative gain at HR@1 less that at HR@20."""
    is_relative: bool
    """Whether the effect is one of relative gains."""

    @property
    def verdict(self) -> Literal["holds", "the other way round", "not shown"]:
        """By the 95% interval, which is not corrected for the number of observations."""
        return "holds" if self.effect.low > 0 else "the other way round" if self.effect.high < 0 else "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table1:
    """What a study has of the paper's Table 1."""

    rows: tuple[PaperRow, ...]
    observations: tuple[Observation, ...]


def table1_of(configs: Mapping[str, Mapping[str, Any]], ranks: Mapping[str, Ranks]) -> Table1 | None:
    """The paper's rows that a study confirmed; None where it has no architecture with and without skips.

    Args:
        configs: Each arm's finalist.
        ranks: Each arm's test ranks.
    """
    arms: dict[tuple[str, str], str] = {}
    for arm, config in configs.items():
        arms.setdefault((config["architecture"], use_of_skips(config)[1]), arm)
    arms = {row: arms[row] for row in PAPER_TEST if row in arms}
    if not any((a, "S-") in arms and len([1 for b, _ in arms if b == a]) > 1 for a in ARCHITECTURES):
        return None
    rows = []
    for (architecture, label), arm in arms.items():
        base = arms.get((architecture, "S-"))
        gains = None
        if label != "S-" and base is not None:
            gains = {k: ranks[arm].rate(k) / ranks[base].rate(k) - 1 for k in HIT_RATE_AT if ranks[base].rate(k)}
        paper = PAPER_TEST[architecture, label]
        rows.append(PaperRow(architecture=architecture, label=label, arm=arm, paper=paper, gains=gains))
    found = observations({row: ranks[arm] for row, arm in arms.items()})
    return Table1(rows=tuple(rows), observations=tuple(found))


def observations(rows: Mapping[tuple[str, str], Ranks]) -> Iterable[Observation]:
    """The paper's, as far as the rows are there."""

    def compare(
        says: str, ours: tuple[str, str], other: tuple[str, str], *, wanes: bool = False
    ) -> Iterable[Observation]:
        if ours in rows and other in rows:
            effect = waning(rows[ours], rows[other]) if wanes else difference(rows[ours].hits(), rows[other].hits())
            yield Observation(says=says, effect=effect, is_relative=wanes)

    for a in ARCHITECTURES:
        for label in USES[1:]:
            yield from compare(f"{a}: {label} above S-", (a, label), (a, "S-"))
    for label in USES:
        yield from compare(f"{label}: unidirectional above bidirectional", *((a, label) for a in ARCHITECTURES))
    for label in USES:
        says = f"{label}: the gap between the architectures wanes from HR@1 to HR@20"
        yield from compare(says, *((a, label) for a in ARCHITECTURES), wanes=True)
    for a in ARCHITECTURES:
        yield from compare(f"{a}: item context above session context", (a, "S+ item"), (a, "S+ session"))
    for a in ARCHITECTURES:
        for label in USES[1:]:
            says = f"{a}: the gain of {label} wanes from HR@1 to HR@20"
            yield from compare(says, (a, label), (a, "S-"), wanes=True)


def waning(ours: Ranks, other: Ranks) -> Effect:
    """The logarithm of the ratio of two arms' HR@1 less that of their HR@20, by the delta method.

    Near the relative gain at HR@1 less that at HR@20. Where an arm has no hit at all it says nothing: the interval is
    infinite.
    """
    rates = [r.rate(k) for r in (ours, other) for k in (1, 20)]
    if min(rates) == 0:
        return crossed_effect([(1.0, np.zeros((1, 1), np.float32))])  # as one seed: it may be anything
    first, last, other_first, other_last = rates
    linear = ours.hits(k=1) / first - ours.hits(k=20) / last - other.hits(k=1) / other_first
    linear = (linear + other.hits(k=20) / other_last).astype(np.float32)
    estimate = float(np.log(first / other_first) - np.log(last / other_last))
    return around(crossed_effect([(1.0, linear)]), estimate)
