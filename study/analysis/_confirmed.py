"""Confirming runs -> what they show on test: rates, differences with intervals, claims tested, groups. No words."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd

from skiprec.evaluation import HIT_RATE_AT
from study.analysis._ranks import Ranks, groups, ranks_of
from study.analysis._table1 import PaperTable, paper_table, relative_gain
from study.analysis._tables import Counts, DoneCell, Failure, count, done_cells, failures, use_of_skips
from study.claims import MEASURES, Claim, claims_from
from study.statistics import Effect, Verdict, difference, gap_difference, holm, mean, verdict

FEWEST_IN_GROUP = 50
"""Sessions: of smaller groups nothing is said."""
Rates = Mapping[str, Mapping[int, Effect]]
"""By measure and K of HR@K."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedArm:
    """An arm's finalist over its paired seeds."""

    name: str
    kind: str
    """S-, S+, control or use."""
    config: Mapping[str, Any]
    runs: tuple[DoneCell, ...]
    """In the order of the seeds."""
    same_as: str | None
    """The arm above with the same settings, whose runs these are too."""
    rates: Rates
    over: str | None
    """The S- arm that gains are over; None for S- arms, and where there is none of the same architecture."""
    gains: Mapping[int, Effect] | None
    """By K: HR@K over that of `over`, less 1, sampled."""
    skip_gap: Effect | None
    """HR@10 on heard targets less HR@10 on skipped ones, sampled; None where either are too few."""

    @property
    def validation(self) -> float:
        """Mean of the study's metric over the seeds."""
        return sum(run.value for run in self.runs) / len(self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The study's metric by epoch, over an arm's seeds, as far as all of them came."""

    arm: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    """The lowest of the seeds."""
    high: tuple[float, ...]
    chosen_epochs: tuple[int, ...]
    """Of each seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEffect:
    """A claim's difference among the sessions of one group."""

    grouping: str
    group: str
    n_sessions: int
    ours: float
    """Hit rate of the claim's arm."""
    other: float
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedClaim:
    """A claim, and what the confirming runs say of it by each measure and at each K."""

    claim: Claim
    effects: Rates
    adjusted_p: Mapping[str, float]
    """By measure: corrected by Holm over the family of claims, each asked by that measure."""
    verdicts: Mapping[str, Verdict]
    """By measure. That of the claim's own measure is the one that was declared."""
    groups: tuple[GroupEffect, ...]
    """By the claim's own measure; their intervals are not corrected for the number of groups. None with `beyond`."""
    skip_gap: Effect | None
    """Difference of the two arms' skip gaps."""

    @property
    def effect(self) -> Effect:
        """As declared."""
        return self.effects[self.claim.measure][self.claim.k]

    @property
    def verdict(self) -> Verdict:
        """As declared."""
        return self.verdicts[self.claim.measure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """Everything that the confirming runs show."""

    name: str
    attrs: Mapping[str, Any]
    """What the confirming study says of itself."""
    counts: Counts
    failures: tuple[Failure, ...]
    cells: tuple[DoneCell, ...]
    """Every complete run, of seeds that are not complete in every arm too."""
    seeds: tuple[int, ...]
    """For which every arm with a run is complete."""
    planned_seeds: int
    n_sessions: int
    n_new: int
    """Sessions whose target is new: those that the measure `full_new` asks about."""
    worthwhile: float
    arms: tuple[ConfirmedArm, ...]
    without_runs: tuple[str, ...]
    """Arms of which no run is complete."""
    declared: tuple[Claim, ...]
    claims: tuple[TestedClaim, ...]
    """Those that could be tested."""
    untested: tuple[Claim, ...]
    """Claims about an arm without runs; they still count in Holm's correction."""
    curves: tuple[Curve, ...]
    paper: PaperTable | None
    """Where the arms cover the paper's Table 1."""
    baselines: Mapping[str, Mapping[str, float]]
    """Metrics by name, of both splits."""

    def arm(self, name: str) -> ConfirmedArm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def best(self) -> ConfirmedArm:
        """By the mean of the study's metric on validation, over the seeds: test chooses nothing."""
        return max(self.arms, key=lambda arm: arm.validation)


def confirmed(study: optuna.Study, read_ranks: Callable[[DoneCell], pd.DataFrame]) -> Confirmed | None:
    """What a study's confirming runs show so far.

    Args:
        study: The confirming one.
        read_ranks: A run -> its test ranks, a row a session (see `skiprec.run.Run.finish`).

    Returns:
        None where no seed is complete in every arm that has runs.
    """
    attrs = study.user_attrs
    recipe, configs = attrs["recipe"], attrs["finalists"]
    trials = study.get_trials(deepcopy=False)
    cells = done_cells(trials)
    runs = {arm: by_seed for arm, by_seed in runs_by_arm(cells, configs).items() if by_seed}
    seeds = [s for s in recipe["seeds"] if runs and all(s in by_seed for by_seed in runs.values())]
    if not seeds:
        return None
    own = {arm: tuple(by_seed[seed] for seed in seeds) for arm, by_seed in runs.items()}
    twin = {arm: next(other for other in own if own[other] == own[arm]) for arm in own}
    read = {arm: ranks_of(own[arm], read_ranks) for arm in dict.fromkeys(twin.values())}
    ranks = {arm: read[twin[arm]] for arm in own}
    claims = claims_from(recipe["claims"], recipe["arms"])
    bases = {arm: base_of(arm, configs, own, claims) for arm in own}
    arms = tuple(
        confirmed_arm(
            arm, configs[arm], own[arm], ranks, same_as=twin[arm] if twin[arm] != arm else None, over=bases[arm]
        )
        for arm in own
    )
    testable = [claim for claim in claims if all(arm in own for arm in claim.arms)]
    any_ranks = next(iter(ranks.values()))
    return Confirmed(
        name=study.study_name,
        attrs=attrs,
        counts=count(trials, attrs),
        failures=failures(trials, attrs),
        cells=cells,
        seeds=tuple(seeds),
        planned_seeds=len(recipe["seeds"]),
        n_sessions=len(any_ranks.sessions),
        n_new=int(any_ranks.among("full_new").sum()),
        worthwhile=recipe["worthwhile"],
        arms=arms,
        without_runs=tuple(arm for arm in configs if arm not in own),
        declared=claims,
        claims=test_claims(testable, ranks, recipe["worthwhile"], family=len(claims)),
        untested=tuple(claim for claim in claims if claim not in testable),
        curves=tuple(curve(arm.name, arm.runs) for arm in arms if arm.same_as is None),
        paper=paper_table({arm: configs[arm] for arm in own}, {arm.name: arm.validation for arm in arms}, ranks),
        baselines=attrs["baselines"],
    )


def runs_by_arm(cells: Iterable[DoneCell], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, DoneCell]]:
    """Each arm's runs by seed. Arms that chose the same settings share theirs."""
    cells = list(cells)
    return {
        arm: {cell.seed: cell for cell in cells if settings(cell.config) == settings(config)}
        for arm, config in configs.items()
    }


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what differs between the seeds of one finalist."""
    return {name: value for name, value in config.items() if name not in ("seed", "threads")}


def base_of(
    arm: str, configs: Mapping[str, Mapping[str, Any]], among: Iterable[str], claims: Iterable[Claim]
) -> str | None:
    """The S- arm that an arm's gains are over: that of its claim, else the first of its architecture."""
    is_base = {
        other: use_of_skips(configs[other])[0] == "S-"
        and configs[other]["architecture"] == configs[arm]["architecture"]
        for other in among
    }
    if is_base[arm]:
        return None
    claimed = [claim.than for claim in claims if claim.arm == arm and is_base.get(claim.than)]
    return next(iter([*claimed, *(other for other, fits in is_base.items() if fits)]), None)


def confirmed_arm(
    name: str,
    config: Mapping[str, Any],
    runs: tuple[DoneCell, ...],
    every: Mapping[str, Ranks],
    *,
    same_as: str | None,
    over: str | None,
) -> ConfirmedArm:
    """An arm's rates by every measure, with intervals for other seeds and other sessions."""
    ranks = every[name]
    rates = {m: {k: mean(ranks.hits(m, k), ranks.among(m)) for k in HIT_RATE_AT} for m in MEASURES}
    nothing = np.zeros_like(ranks.hits("sampled", 10))
    gains = None
    if over is not None:
        among = ranks.among("sampled")
        gains = {
            k: relative_gain(ranks.hits("sampled", k)[:, among], every[over].hits("sampled", k)[:, among])
            for k in HIT_RATE_AT
        }
    return ConfirmedArm(
        name=name,
        kind=use_of_skips(config)[0],
        config=config,
        runs=runs,
        same_as=same_as,
        rates=rates,
        over=over,
        gains=gains,
        skip_gap=skip_gap(ranks.hits("sampled", 10), nothing, ranks),
    )


def curve(arm: str, runs: Iterable[DoneCell]) -> Curve:
    """The mean and the range over the seeds, at every epoch that all of them reached."""
    runs = list(runs)
    epochs = [e for e in runs[0].curve if all(e in run.curve for run in runs)]
    values = np.array([[run.curve[e] for e in epochs] for run in runs])
    return Curve(
        arm=arm,
        epochs=tuple(epochs),
        mean=tuple(values.mean(0).tolist()),
        low=tuple(values.min(0).tolist()),
        high=tuple(values.max(0).tolist()),
        chosen_epochs=tuple(run.chosen_epoch for run in runs),
    )


def skip_gap(ours: np.ndarray, other: np.ndarray, ranks: Ranks) -> Effect | None:
    """The difference on heard targets less that on skipped ones; None where either are too few."""
    skipped, asked = ranks.sessions["skipped"].to_numpy(), ranks.among("sampled")
    heard, skipped = asked & ~skipped, asked & skipped
    if min(heard.sum(), skipped.sum()) < FEWEST_IN_GROUP:
        return None
    return gap_difference(ours, other, heard, skipped)


def test_claims(
    claims: Iterable[Claim], ranks: Mapping[str, Ranks], worthwhile: float, *, family: int
) -> tuple[TestedClaim, ...]:
    """Every claim by every measure, corrected for the number of claims.

    Args:
        claims: Those that can be tested.
        ranks: By arm.
        worthwhile: The smallest difference that would matter.
        family: How many claims were declared.
    """
    claims = list(claims)
    effects = [effects_of(claim, ranks) for claim in claims]
    # A claim that cannot be tested may still come: until then it counts as one that shows nothing.
    rest = [1.0] * (family - len(claims))
    adjusted = {
        m: holm([found[m][claim.k].p for claim, found in zip(claims, effects, strict=True)] + rest) for m in MEASURES
    }
    # The declared family: each claim by its own measure.
    declared = holm([found[claim.measure][claim.k].p for claim, found in zip(claims, effects, strict=True)] + rest)
    tested = []
    for i, (claim, found) in enumerate(zip(claims, effects, strict=True)):
        p = {m: adjusted[m][i] for m in MEASURES} | {claim.measure: declared[i]}
        ours, other = ranks[claim.arm], ranks[claim.than]
        tested.append(
            TestedClaim(
                claim=claim,
                effects=found,
                adjusted_p=p,
                verdicts={m: verdict(found[m][claim.k], p[m], worthwhile=worthwhile) for m in MEASURES},
                groups=tuple(group_effects(claim, ours, other)) if claim.beyond is None else (),
                skip_gap=skip_gap(*pair(claim, ranks, "sampled", 10), ours),
            )
        )
    return tuple(tested)


def effects_of(claim: Claim, ranks: Mapping[str, Ranks]) -> Rates:
    """A claim's difference by every measure at every K."""
    among = {m: ranks[claim.arm].among(m) for m in MEASURES}
    return {m: {k: difference(*pair(claim, ranks, m, k), among[m]) for k in HIT_RATE_AT} for m in MEASURES}


def pair(claim: Claim, ranks: Mapping[str, Ranks], measure: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What a claim compares, by seed and session: hits of two arms, or two differences of hits."""
    hits = [ranks[arm].hits(measure, k) for arm in claim.arms]
    if claim.beyond is None:
        return hits[0], hits[1]
    ours, than, other, others_than = (h.astype(np.int8) for h in hits)
    return ours - than, other - others_than


def group_effects(claim: Claim, ours: Ranks, other: Ranks) -> Iterable[GroupEffect]:
    """A claim's difference in every group with enough sessions."""
    among = ours.among(claim.measure)
    hits = ours.hits(claim.measure, claim.k), other.hits(claim.measure, claim.k)
    for grouping, group, members in groups(ours.sessions):
        members = members & among
        if members.sum() >= FEWEST_IN_GROUP:
            yield GroupEffect(
                grouping=grouping,
                group=group,
                n_sessions=int(members.sum()),
                ours=float(hits[0][:, members].mean()),
                other=float(hits[1][:, members].mean()),
                effect=difference(*hits, members),
            )
