"""What confirming runs show, in words: the answer first, then a sentence for each claim. No more than they can bear."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from study.analysis._confirmed import Confirmed, TestedClaim
from study.analysis._words import interval, listed, p_value, percent, rate, rate_interval, shown, some

MEASURE_NAMES = {
    "sampled": "against 1,000 drawn tracks",
    "full": "against the whole catalogue",
    "full_new": "for new tracks among new tracks",
}
"""As they stand in a sentence; 'all' in place of 1,000 where the catalogue is smaller is said once in the report."""
SHORT_NAMES = {"sampled": "sampled", "full": "full", "full_new": "full, new"}
"""As they stand in a table or a figure."""
NEEDED_CONTROLS = {
    "other_session": "the skips of other sessions",
    "random": "random tracks",
    "in_batch": "in-batch tracks",
}
"""By negative_scope: what a session's own skips must beat before they are what helps (semantics: section 5)."""
WHY_MEASURES_DIFFER = (
    "The drawn tracks are ones that nobody played in the session, so that measure never sees a model that puts the "
    "session's own tracks first; the whole catalogue does see it, and a service that does not replay should go by the "
    "measure for new tracks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a study's question."""

    headline: str
    """The first sentence: what the first claim's arm comes to, by its declared measure."""
    figures: str
    """The second sentence: the first claim in figures."""
    measures: str
    """What the other two measures say of it; and, where measures disagree about any claim, that, and why."""
    measures_disagree: bool
    """Whether two measures give some claim's difference opposite signs, each beyond what chance explains."""
    warnings: tuple[str, ...]
    """What weakens the answer."""
    claims: tuple[str, ...]
    """Each claim as one sentence."""


def answer(found: Confirmed) -> Answer:
    """The answer in words.

    "Skips help" means that an arm beats S-, and every control that it is claimed to be above (semantics: section 5).
    """
    warned = tuple(warnings(found))
    if not found.declared:
        (arm,) = found.arms
        return Answer(
            headline=f"Nothing was compared: the study has one arm, {shown(arm.name)}.",
            figures=f"Its HR@10 against 1,000 drawn tracks is {rate_interval(arm.rates['sampled'][10])} on test.",
            measures="",
            measures_disagree=False,
            warnings=warned,
            claims=(),
        )
    if not found.claims:
        return Answer(
            headline=f"Nothing can be said yet: {listed(map(shown, found.without_runs))} has no complete run.",
            figures="Every claim needs confirming runs of both its arms.",
            measures="",
            measures_disagree=False,
            warnings=warned,
            claims=(),
        )
    first = found.claims[0]
    return Answer(
        headline=headline(found, first),
        figures=figures(found, first),
        measures=other_measures(found, first),
        measures_disagree=any(map(disagree, found.claims)),
        warnings=warned,
        claims=tuple(map(in_words, found.claims)),
    )


def headline(found: Confirmed, first: TestedClaim) -> str:
    """What the claims of the first claim's arm come to, as one sentence."""
    if (declared := found.declared[0]) in found.untested:
        return f"Not settled: {shown(declared.arm)} against {shown(declared.than)}, claimed first, could not be tested."
    text = own_claims(found, first) + other_arms(found, first.claim.arm) + "".join(map(larger, found.claims))
    if disagree(first):
        text += f" ({SHORT_NAMES[first.claim.measure]} measure, as declared; another measure says the opposite)"
    return f"{text}."


def own_claims(found: Confirmed, first: TestedClaim) -> str:
    """What the arm of the first claim comes to against S- and the controls."""
    name = first.claim.arm
    arm = shown(name)
    own = [c for c in found.claims if c.claim.arm == name and c.claim.beyond is None]
    without = [c for c in own if found.arm(c.claim.than).kind == "S-"]
    controls = [c for c in own if found.arm(c.claim.than).kind == "control"]
    if found.arm(name).kind not in ("S+", "use") or not without:
        return f"{arm} against {shown(first.claim.than)}: {first.verdict.text}"
    against = without[0]
    base = shown(against.claim.than)
    worse = [shown(c.claim.than) for c in controls if c.verdict.word == "hurts"]
    others = "every control" if len(worse) == len(controls) > 1 else listed(worse) if worse else ""
    if against.verdict.word == "hurts":
        return f"No: {arm} is worse than {base}" + (f", and than {others}" if worse else "")
    if against.verdict.word == "no effect":
        text = f"No: {arm} and {base} differ by no more than {against.verdict.bound_points} points"
        return f"{text}; {arm} is worse than {others}" if worse else text
    if against.verdict.word == "not enough runs":
        if worse:
            return f"No: {arm} is not shown to beat {base}, and is worse than {others}"
        if against.verdict.note:
            return f"Not settled: {arm} less {base} is {against.verdict.note}"
        return f"Not settled: {arm} may be better or worse than {base}"
    beats = f"{arm} beats {base}"
    small = f", {against.verdict.note}" if against.verdict.note else ""
    yes = "Hardly" if small else "Yes"
    if found.arm(name).kind == "use":
        return f"{yes}: {beats}{small}"
    left = [shown(c.claim.than) for c in controls if c.verdict.word != "helps"]
    left += [shown(claim.than) for claim in found.untested if claim.arm == name and claim.beyond is None]
    if left:
        return f"Not shown to be due to these skips: {beats}{small}, but is not shown to beat {listed(left)}"
    asked = {found.arm(c.claim.than).config["negative_scope"] for c in controls}
    if missing := [NEEDED_CONTROLS[scope] for scope in NEEDED_CONTROLS if scope not in asked]:
        return f"Not shown to be due to these skips: {beats}{small}, but was not to be tested against {listed(missing)}"
    return f"{yes}: {beats} and every control{small}"


def larger(tested: TestedClaim) -> str:
    """What became of a claim that an effect is larger in one place than in another; nothing for other claims."""
    claim = tested.claim
    if claim.beyond is None:
        return ""
    what = {
        "helps": "is larger than",
        "hurts": "is smaller than",
        "no effect": f"is within {tested.verdict.bound_points} points of",
        "not enough runs": "is not shown to differ from",
    }[tested.verdict.word]
    first, second = (f"{shown(arm)} less {shown(than)}" for arm, than in ((claim.arm, claim.than), claim.beyond))
    return f"; {first} {what} {second}"


def other_arms(found: Confirmed, arm: str) -> str:
    """What became of other uses of skips that were claimed to be above S-."""
    rest = [
        c
        for c in found.claims
        if c.claim.arm != arm
        and c.claim.beyond is None
        and found.arm(c.claim.than).kind == "S-"
        and found.arm(c.claim.arm).kind in ("S+", "use")
    ]
    if not rest:
        return ""
    better = list(dict.fromkeys(shown(c.claim.arm) for c in rest if c.verdict.word == "helps"))
    if not better:
        return "; no other use of skips is shown to beat S-"
    return f"; of the other uses, {listed(better)} {'beat' if len(better) > 1 else 'beats'} S-"


def figures(found: Confirmed, tested: TestedClaim) -> str:
    """The first claim's figures in one sentence."""
    claim, effect = tested.claim, tested.effect
    ours, other = (found.arm(name).rates[claim.measure][claim.k].estimate for name in (claim.arm, claim.than))
    return (
        f"{shown(claim.arm)} has the next track among its first {claim.k} in {percent(ours)} of the test sessions "
        f"({MEASURE_NAMES[claim.measure]}), {shown(claim.than)} in {percent(other)}: {interval(effect)}, over "
        f"{some(effect.n_seeds, 'paired seed')} and {some(effect.n_sessions, 'session')}."
    )


def other_measures(found: Confirmed, tested: TestedClaim) -> str:
    """What the other two measures say of a claim, and where measures disagree why they can."""
    claim = tested.claim
    said = "; ".join(
        f"{MEASURE_NAMES[m]}: {interval(effects[claim.k])}, {tested.verdicts[m].text}"
        for m, effects in tested.effects.items()
        if m != claim.measure
    )
    turned = sum(map(disagree, found.claims))
    text = f"By the other measures, {said}."
    if turned:
        n = len(found.claims)
        where = "the claim" if n == 1 else f"{turned} of {n} claims"
        text += f" The measures disagree: for {where}, two of them point in opposite directions, each beyond chance."
    elif len({v.word for v in tested.verdicts.values()}) > 1:
        text += " The measures do not all say the same, though no two point in opposite directions beyond chance."
    else:
        return text
    return f"{text} {WHY_MEASURES_DIFFER}"


def disagree(tested: TestedClaim) -> bool:
    """Whether two measures give a claim opposite signs, each with an interval that leaves 0 out."""
    effects = [by_k[tested.claim.k] for by_k in tested.effects.values()]
    return any(e.low > 0 for e in effects) and any(e.high < 0 for e in effects)


def in_words(tested: TestedClaim) -> str:
    """A claim as one sentence."""
    claim = tested.claim
    return (
        f"{claim.named(shown)}, HR@{claim.k} {MEASURE_NAMES[claim.measure]}: "
        f"{interval(tested.effect)}, p {p_value(tested.adjusted_p[claim.measure])} after Holm's correction: "
        f"{tested.verdict.text}."
    )


def warnings(found: Confirmed) -> Iterable[str]:
    """What a reader must know before acting on the answer."""
    if len(found.seeds) < found.planned_seeds:
        counts = found.counts
        what = "Incomplete" if not counts.is_finished else "Fewer seeds than planned"
        yield (
            f"{what}: {len(found.seeds)} of {some(found.planned_seeds, 'planned seed')} are complete in every arm "
            f"({counts.complete} of {counts.planned} runs complete, {counts.running} running, {counts.waiting} "
            f"waiting, {counts.failed} failed)."
        )
    if len(found.seeds) == 1:
        yield "One seed alone says nothing of how others would come out, so there are no intervals and no verdicts yet."
    if found.without_runs:
        yield (
            f"No confirming run is complete of {listed(map(shown, found.without_runs))}: "
            f"{some(len(found.untested), 'claim')} could not be tested."
        )
    for arm in found.arms:
        if arm.same_as:
            yield (f"{shown(arm.name)} and {shown(arm.same_as)} chose the same settings, so they are the same runs.")
    if text := below_baseline(found):
        yield text
    if text := above_unclaimed(found):
        yield text
    if found.attrs["recipe"].get("unequal"):
        yield (
            "The arms had unequal chances (unequal = true): the settings of those with more cells were picked from "
            "more draws, which favours them."
        )


def above_unclaimed(found: Confirmed) -> str | None:
    """Which arms are above that of the first claim, by its measure, without a claim between the two."""
    if not found.claims:
        return None
    first = found.claims[0].claim
    compared = {arm for claim in found.declared if first.arm in claim.arms for arm in claim.arms}
    rates = {arm.name: arm.rates[first.measure][first.k].estimate for arm in found.arms}
    above = [arm for arm in rates if arm not in compared and rates[arm] > rates[first.arm]]
    if not above:
        return None
    return (
        f"Above {shown(first.arm)} (HR@{first.k} {rate(rates[first.arm])}) without a claim between the two, so not "
        f"tested: {listed(f'{shown(arm)} ({rate(rates[arm])})' for arm in above)}."
    )


def below_baseline(found: Confirmed) -> str | None:
    """Whether a baseline is above every arm, by the measure of the first claim."""
    if not found.claims or not found.baselines:
        return None
    claim = found.claims[0].claim
    name, floor = strongest(found.baselines, claim.metric)
    best = max(found.arms, key=lambda arm: arm.rates[claim.measure][claim.k].estimate)
    value = best.rates[claim.measure][claim.k].estimate
    if value > floor:
        return None
    return (
        f"No model here is above the baseline {shown(name)} (HR@{claim.k} {rate(floor)}, the best model "
        f"{rate(value)}): until one is, what skips change in these models matters little."
    )


def strongest(baselines: Mapping[str, Mapping[str, float]], metric: str) -> tuple[str, float]:
    """The best baseline by a metric."""
    return max(((name, metrics[metric]) for name, metrics in baselines.items()), key=lambda item: item[1])
