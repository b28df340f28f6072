"""Confirming runs -> what they show on test: rates, differences with intervals, claims tested, groups. No words."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd

from skiprec.evaluation import HIT_RATE_AT
from study.analysis._ranks import Ranks
from study.analysis._table1 import Table1, table1_of
from study.analysis._tables import DoneCell, done_cells, use_of_skips
from study.claims import MEASURES, Claim, claims_from
from study.statistics import Effect, Verdict, difference, gap_difference, holm, mean, verdict

# K seeds, S sessions.

FEWEST_IN_GROUP = 50
"""Sessions: of smaller groups nothing is said."""
THIRDS = ("most played third", "second third", "least played third")
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
    rates: Rates
    skip_gap: Effect | None
    """HR@10 on heard targets less HR@10 on skipped ones, sampled; None where either are too few."""


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
    """By the claim's own measure; their intervals are not corrected for the number of groups."""
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

    seeds: tuple[int, ...]
    """For which every arm is complete."""
    planned_seeds: int
    n_sessions: int
    n_new: int
    """Sessions whose target is new: those that the measure `full_new` asks about."""
    worthwhile: float
    arms: tuple[ConfirmedArm, ...]
    claims: tuple[TestedClaim, ...]
    table1: Table1 | None
    baselines: Mapping[str, Mapping[str, float]]
    """Metrics by name, of both splits."""

    def arm(self, name: str) -> ConfirmedArm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)


def confirmed(study: optuna.Study, read_ranks: Callable[[str], pd.DataFrame]) -> Confirmed | None:
    """What a study's confirming runs show so far.

    Args:
        study: The confirming one.
        read_ranks: MLflow run id -> its test ranks, a row a session (see `skiprec.run.Run.finish`).

    Returns:
        None where no seed is complete in every arm.
    """
    attrs = study.user_attrs
    recipe, configs = attrs["recipe"], attrs["finalists"]
    runs = runs_by_arm(done_cells(study.get_trials(deepcopy=False)), configs)
    seeds = [s for s in recipe["seeds"] if all(s in by_seed for by_seed in runs.values())]
    if not seeds:
        return None
    tables: dict[str, pd.DataFrame] = {}
    ranks = {}
    for arm, by_seed in runs.items():
        ids = [by_seed[seed].run_id for seed in seeds]
        tables |= {run_id: read_ranks(run_id) for run_id in ids if run_id not in tables}
        by_measure = {m: np.stack([tables[i][m].to_numpy(dtype=np.float32) for i in ids]) for m in MEASURES}
        ranks[arm] = Ranks(by_measure, tables[ids[0]])
    arms = tuple(
        confirmed_arm(arm, configs[arm], [by_seed[seed] for seed in seeds], ranks[arm]) for arm, by_seed in runs.items()
    )
    any_ranks = next(iter(ranks.values()))
    return Confirmed(
        seeds=tuple(seeds),
        planned_seeds=len(recipe["seeds"]),
        n_sessions=len(any_ranks.sessions),
        n_new=int(any_ranks.among("full_new").sum()),
        worthwhile=recipe["worthwhile"],
        arms=arms,
        claims=test_claims(claims_from(recipe["claims"], recipe["arms"]), ranks, recipe["worthwhile"]),
        table1=table1_of(configs, ranks),
        baselines=attrs["baselines"],
    )


def runs_by_arm(cells: Iterable[DoneCell], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, DoneCell]]:
    """Each arm's runs by seed. Arms that chose the same settings share theirs."""

    def settings(config: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in config.items() if name not in ("seed", "threads")}

    cells = list(cells)
    return {
        arm: {cell.seed: cell for cell in cells if settings(cell.config) == settings(config)}
        for arm, config in configs.items()
    }


def confirmed_arm(name: str, config: Mapping[str, Any], runs: list[DoneCell], ranks: Ranks) -> ConfirmedArm:
    """An arm's rates by every measure, with intervals for other seeds and other sessions."""
    rates = {m: {k: mean(ranks.hits(m, k), ranks.among(m)) for k in HIT_RATE_AT} for m in MEASURES}
    nothing = np.zeros_like(ranks.hits("sampled", 10))
    return ConfirmedArm(
        name=name,
        kind=use_of_skips(config)[0],
        config=config,
        runs=tuple(runs),
        rates=rates,
        skip_gap=skip_gap(ranks.hits("sampled", 10), nothing, ranks.sessions),
    )


def skip_gap(ours: np.ndarray, other: np.ndarray, sessions: pd.DataFrame) -> Effect | None:
    """The difference on heard targets less that on skipped ones; None where either are too few."""
    skipped = sessions["skipped"].to_numpy()
    asked = ~np.isnan(sessions["sampled"].to_numpy())
    heard, skipped = asked & ~skipped, asked & skipped
    if min(heard.sum(), skipped.sum()) < FEWEST_IN_GROUP:
        return None
    return gap_difference(ours, other, heard, skipped)


def test_claims(claims: Iterable[Claim], ranks: Mapping[str, Ranks], worthwhile: float) -> tuple[TestedClaim, ...]:
    """Every claim by every measure, corrected for the number of claims."""
    claims = list(claims)
    effects = [effects_of(ranks[claim.arm], ranks[claim.than]) for claim in claims]
    adjusted = {m: holm([found[m][claim.k].p for claim, found in zip(claims, effects, strict=True)]) for m in MEASURES}
    # The declared family: each claim by its own measure.
    declared = holm([found[claim.measure][claim.k].p for claim, found in zip(claims, effects, strict=True)])
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
                groups=tuple(group_effects(claim, ours, other)),
                skip_gap=skip_gap(ours.hits("sampled", 10), other.hits("sampled", 10), ours.sessions),
            )
        )
    return tuple(tested)


def effects_of(ours: Ranks, other: Ranks) -> Rates:
    """The difference of two arms by every measure at every K."""
    return {m: {k: difference(ours.hits(m, k), other.hits(m, k), ours.among(m)) for k in HIT_RATE_AT} for m in MEASURES}


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


def groups(sessions: pd.DataFrame) -> Iterable[tuple[str, str, np.ndarray]]:
    """Every way to divide the sessions by their targets: grouping, group, members (semantics: section 6)."""
    skipped, repeated = sessions["skipped"].to_numpy(), sessions["repeated"].to_numpy()
    yield "target", "heard", ~skipped
    yield "target", "skipped", skipped
    yield "target's track", "new in the session", ~repeated
    yield "target's track", "a repeat", repeated
    contexts = sessions["context"].astype(str)
    for name in contexts.value_counts().index:
        yield "context type", name, (contexts == name).to_numpy()
    for i, name in enumerate(THIRDS):
        yield "popularity", name, (sessions["popularity"] == i).to_numpy()
    length = sessions["length"].to_numpy()
    edges = np.linspace(length.min(), length.max() + 1, 4).round().astype(int)
    for low, after in itertools.pairwise(edges.tolist()):
        if low < after:
            name = f"{low} to {after - 1} tracks" if after - 1 > low else f"{low} tracks"
            yield "session length", name, (length >= low) & (length < after)
