"""The paper's Table 1 from confirming runs: its six columns, relative gains, and its observations, each tested.

Its comparisons are those of the paper, whatever the recipe claims: none of them is corrected for their number.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from skiprec.evaluation import HIT_RATE_AT
from study.analysis._ranks import Ranks
from study.analysis._tables import ARCHITECTURES, PAPER_TEST, use_of_skips
from study.statistics import Effect, around, crossed_effect, difference

# K seeds, S sessions.

FIRST_K, LAST_K = HIT_RATE_AT[0], HIT_RATE_AT[-1]
PLUS = ("S+ session", "S+ item")
Key = tuple[str, str]
"""Architecture and row, as in PAPER_TEST."""
Outcome = Literal["holds", "reversed", "not shown"]
Hits = Bool[np.ndarray, "K S"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """A column of the paper's table: an architecture with a use of skips."""

    architecture: str
    label: str
    arm: str
    """The arm that stands for it."""
    paper: tuple[float, ...]
    """Its HR@1, 5, 10, 20."""
    gains: Mapping[int, Effect] | None
    """By K: HR@K over that of S- with this architecture, less 1; None for S-."""
    paper_gains: Mapping[int, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison behind an observation: a difference that is above 0 where the observation holds."""

    name: str
    effect: Effect
    paper: float
    """The same from the paper's figures."""
    of: Effect | None = None
    """For what wanes, the gap or gain at the first K: where none is shown, nothing can wane."""

    @property
    def outcome(self) -> Outcome:
        """By whether the 95% interval leaves 0 out, on the paper's side or on the other."""
        if self.of is not None and not self.of.low > 0:
            return "not shown"
        if self.effect.low > 0:
            return "holds"
        return "reversed" if self.effect.high < 0 else "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the paper saw in its table."""

    text: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """What the checks come to, in a few words."""
        n = len(self.checks)
        holds, turned = (sum(c.outcome == outcome for c in self.checks) for outcome in ("holds", "reversed"))
        if holds == n:
            return "holds"
        if turned == n:
            return "the reverse holds"
        if not holds and not turned:
            return "not shown"
        parts = [f"holds in {holds} of {n}"] if holds else []
        return ", ".join(parts + ([f"the reverse in {turned} of {n}"] if turned else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """The paper's Table 1 on other data."""

    rows: tuple[PaperRow, ...]
    """In the paper's order."""
    observations: tuple[Observation, ...]
    is_misaligned: bool
    """Whether S+ pushes away other sessions' skips, as the authors' released code does."""


def paper_table(
    configs: Mapping[str, Mapping[str, Any]], values: Mapping[str, float], ranks: Mapping[str, Ranks]
) -> PaperTable | None:
    """The paper's table where some arm stands for each of its columns; the best by validation where several do.

    Args:
        configs: By arm.
        values: What validation says of each.
        ranks: On test.
    """
    arms = {key: [arm for arm in configs if key_of(configs[arm]) == key] for key in PAPER_TEST}
    if not all(arms.values()):
        return None
    chosen = {key: max(names, key=values.get) for key, names in arms.items()}

    def hits(key: Key, k: int) -> Hits:
        found = ranks[chosen[key]]
        return found.hits("sampled", k)[:, found.among("sampled")]

    rows = []
    for architecture, label in PAPER_TEST:
        is_plus = label in PLUS
        own, base = (architecture, label), (architecture, "S-")
        gains = {k: relative_gain(hits(own, k), hits(base, k)) for k in HIT_RATE_AT} if is_plus else None
        papers = {k: paper_rate(own, k) / paper_rate(base, k) - 1 for k in HIT_RATE_AT} if is_plus else None
        rows.append(
            PaperRow(
                architecture=architecture,
                label=label,
                arm=chosen[own],
                paper=PAPER_TEST[own],
                gains=gains,
                paper_gains=papers,
            )
        )
    return PaperTable(
        rows=tuple(rows),
        observations=observations(hits),
        is_misaligned=any(configs[chosen[key]]["negative_scope"] == "released" for key in chosen if key[1] != "S-"),
    )


def key_of(config: Mapping[str, Any]) -> Key:
    """The column that a configuration belongs to; the released code's negatives are what that code calls S+."""
    own = dict(config) | ({"negative_scope": "session"} if config["negative_scope"] == "released" else {})
    return config["architecture"], use_of_skips(own)[1]


def paper_rate(key: Key, k: int) -> float:
    """The paper's HR@k."""
    return PAPER_TEST[key][HIT_RATE_AT.index(k)]


def observations(hits: Callable[[Key, int], Hits]) -> tuple[Observation, ...]:
    """What the paper says of its table, each with the comparisons that it rests on.

    Args:
        hits: Of a column, at K.
    """

    def above(name: str, ours: Key, other: Key, k: int = 10) -> Check:
        return Check(
            name=name,
            effect=difference(hits(ours, k), hits(other, k)),
            paper=paper_rate(ours, k) - paper_rate(other, k),
        )

    def gap_wanes(label: str) -> Check:
        uni, bi = ((architecture, label) for architecture in ARCHITECTURES)
        gap = {k: hits(uni, k).astype(np.float32) - hits(bi, k) for k in (FIRST_K, LAST_K)}
        papers = {k: paper_rate(uni, k) - paper_rate(bi, k) for k in (FIRST_K, LAST_K)}
        return Check(
            name=f"{label}: gap at HR@{FIRST_K} less gap at HR@{LAST_K}",
            effect=crossed_effect([(1.0, gap[FIRST_K] - gap[LAST_K])]),
            paper=papers[FIRST_K] - papers[LAST_K],
            of=crossed_effect([(1.0, gap[FIRST_K])]),
        )

    def gain_wanes(architecture: str, label: str) -> Check:
        own, base = (architecture, label), (architecture, "S-")
        papers = {k: paper_rate(own, k) / paper_rate(base, k) - 1 for k in (FIRST_K, LAST_K)}
        return Check(
            name=f"{architecture} {label}: gain at HR@{FIRST_K} less gain at HR@{LAST_K}",
            effect=difference_of_gains(*((hits(own, k), hits(base, k)) for k in (FIRST_K, LAST_K))),
            paper=papers[FIRST_K] - papers[LAST_K],
            of=relative_gain(hits(own, FIRST_K), hits(base, FIRST_K)),
        )

    pairs = [(architecture, label) for architecture in ARCHITECTURES for label in PLUS]
    labels = ("S-", *PLUS)
    uni, bi = ARCHITECTURES
    return (
        Observation(
            text="S+ is above S- (HR@10)",
            checks=tuple(above(f"{a} {label} less S-", (a, label), (a, "S-")) for a, label in pairs),
        ),
        Observation(
            text="The unidirectional model is above the bidirectional one (HR@10)",
            checks=tuple(above(f"{label}: {uni} less {bi}", (uni, label), (bi, label)) for label in labels),
        ),
        Observation(text="That gap wanes from HR@1 to HR@20", checks=tuple(map(gap_wanes, labels))),
        Observation(
            # By the paper's figures, of the bidirectional model at HR@1 alone: at HR@10 they are the other way round.
            text="Item context is above session context (HR@10; bidirectional: HR@1)",
            checks=tuple(
                above(f"{a}: item less session, HR@{k}", (a, PLUS[1]), (a, PLUS[0]), k)
                for a, k in zip(ARCHITECTURES, (10, FIRST_K), strict=True)
            ),
        ),
        Observation(
            text="Relative gains of S+ over S- wane from HR@1 to HR@20",
            checks=tuple(gain_wanes(*pair) for pair in pairs),
        ),
    )


def relative_gain(ours: Hits, other: Hits) -> Effect:
    """The ratio of two hit rates, less 1, by the delta method: see `linearised_gain`."""
    gain, values = linearised_gain(ours, other)
    effect = around(crossed_effect([(1.0, values)]), gain)
    # No rate is below 0, so no gain below -100%.
    return dataclasses.replace(effect, low=max(effect.low, -1.0)) if math.isfinite(effect.low) else effect


def difference_of_gains(first: tuple[Hits, Hits], last: tuple[Hits, Hits]) -> Effect:
    """The relative gain of one pair of hits less that of another, of the same arms at another K."""
    (gain, values), (other_gain, other_values) = linearised_gain(*first), linearised_gain(*last)
    return around(crossed_effect([(1.0, values - other_values)]), gain - other_gain)


def linearised_gain(ours: Hits, other: Hits) -> tuple[float, Float[np.ndarray, "K S"]]:
    r"""A ratio of means less 1, and what each run and session adds to its error, to first order.

    .. math:: R = \bar x / \bar y, \quad v_{si} = (x_{si} - R\, y_{si}) / \bar y

    v has mean 0, and its spread over seeds and sessions is that of R (Cochran 1977, Sampling Techniques, section 6.4).
    The ratio is infinite, and its error unknown, where the other arm hits nothing.
    """
    base = other.mean(dtype=np.float64)
    if base == 0:
        return math.inf, np.full(ours.shape, math.nan, dtype=np.float32)
    ratio = ours.mean(dtype=np.float64) / base
    return ratio - 1, ((ours - np.float32(ratio) * other) / base).astype(np.float32)
