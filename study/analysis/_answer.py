"""What confirming runs show, in words: two sentences first, then one for each claim. No more than they can bear."""

from collections.abc import Iterable
from dataclasses import dataclass

from study.analysis._confirmed import Confirmed, TestedClaim
from study.analysis._tables import points, rate
from study.statistics import Effect

MEASURE_NAMES = {
    "sampled": "against 1,000 sampled tracks",
    "full": "against the whole catalogue",
    "full_new": "for new tracks among new tracks",
}
"""As they stand in a sentence; 'all' in place of 1,000 where the catalogue is smaller is said once in the report."""
WHY_MEASURES_DIFFER = (
    "The sampled measure asks whether the next track beats 1,000 tracks that nobody played in the session, so it never "
    "sees a model that puts the session's own tracks first; the whole catalogue does, and a service that does not "
    "replay needs the measure for new tracks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a study's question."""

    headline: str
    """A few words."""
    sentences: tuple[str, str]
    """With the figures of the first claim; and what the other measures say of it."""
    measures_disagree: bool
    """Whether two measures give the first claim's difference another sign, beyond what chance explains in either."""
    claims: tuple[str, ...]
    """Each claim as one sentence."""


def answer(found: Confirmed) -> Answer:
    """The answer in words.

    "Skips help" means that an arm beats S-, and every control that it is claimed to be above (semantics: section 5).
    """
    first = found.claims[0]
    return Answer(
        headline=headline(found, first),
        sentences=(figures(found, first), other_measures(first)),
        measures_disagree=disagree(first),
        claims=tuple(map(in_words, found.claims)),
    )


def headline(found: Confirmed, first: TestedClaim) -> str:
    """What the claims of the first claim's arm come to."""
    arm = first.claim.arm
    own = [c for c in found.claims if c.claim.arm == arm]
    against = {c.claim.than: c for c in own}
    without = [c for name, c in against.items() if found.arm(name).kind == "S-"]
    controls = [c for name, c in against.items() if found.arm(name).kind == "control"]
    if found.arm(arm).kind not in ("S+", "use") or not without:
        return f"{arm} against {first.claim.than}: {first.verdict.text}"
    said = without[0].verdict
    others = other_arms(found, arm)
    if said.word != "helps":
        short = {
            "hurts": f"No: {arm} is worse than {without[0].claim.than}",
            "no effect": f"No: skips change HR@{first.claim.k} by no more than {said.bound_points} points",
            "not enough runs": f"Not settled: {arm} may be better or worse than {without[0].claim.than}",
        }[said.word]
        return short + others
    beaten = [c for c in controls if c.verdict.word == "helps"]
    if not controls:
        return f"{arm} beats {without[0].claim.than}; whether it must be the session's own skips was not asked{others}"
    if len(beaten) == len(controls):
        return f"Yes: {arm} beats {without[0].claim.than} and every control{others}"
    left = [c.claim.than for c in controls if c not in beaten]
    return (
        f"Not because of whose skips they are: {arm} beats {without[0].claim.than}, but is not shown to beat "
        f"{listed(left)}{others}"
    )


def other_arms(found: Confirmed, arm: str) -> str:
    """What became of other arms that were claimed to be above S-."""
    rest = [
        c
        for c in found.claims
        if c.claim.arm != arm and found.arm(c.claim.than).kind == "S-" and found.arm(c.claim.arm).kind in ("S+", "use")
    ]
    better = [c.claim.arm for c in rest if c.verdict.word == "helps"]
    if not rest:
        return ""
    return f"; of the other uses, {listed(better)} helps" if better else "; no other use is shown to help"


def figures(found: Confirmed, tested: TestedClaim) -> str:
    """The first claim's figures in one sentence."""
    claim, effect = tested.claim, tested.effect
    ours, other = (found.arm(name).rates[claim.measure][claim.k].estimate for name in (claim.arm, claim.than))
    return (
        f"On test, {MEASURE_NAMES[claim.measure]}, {claim.arm} has HR@{claim.k} {rate(ours)} and {claim.than} "
        f"{rate(other)}: {interval(effect)}, over {effect.n_seeds} paired seeds and {effect.n_sessions:,} sessions."
    )


def other_measures(tested: TestedClaim) -> str:
    """What the other two measures say of a claim, and why they may say something else."""
    claim = tested.claim
    parts = [
        f"{MEASURE_NAMES[m]} it is {interval(effects[claim.k])} ({tested.verdicts[m].text})"
        for m, effects in tested.effects.items()
        if m != claim.measure
    ]
    said = " and ".join(parts)
    start = "The measures do not agree: " if disagree(tested) else "By the other measures: "
    return start + said + ("" if not disagree(tested) else ". " + WHY_MEASURES_DIFFER.removesuffix(".")) + "."


def disagree(tested: TestedClaim) -> bool:
    """Whether two measures give a claim opposite signs, each with an interval that leaves 0 out."""
    effects = [by_k[tested.claim.k] for by_k in tested.effects.values()]
    return any(e.low > 0 for e in effects) and any(e.high < 0 for e in effects)


def in_words(tested: TestedClaim) -> str:
    """A claim as one sentence."""
    claim = tested.claim
    return (
        f"{claim.arm} less {claim.than}, HR@{claim.k} {MEASURE_NAMES[claim.measure]}: {interval(tested.effect)}, "
        f"p {p_value(tested.adjusted_p[claim.measure])} after Holm's correction: {tested.verdict.text}."
    )


def interval(effect: Effect) -> str:
    """`+0.8 points (95% interval +0.2 to +1.4)`."""
    return f"{points(effect.estimate)} points (95% interval {points(effect.low)} to {points(effect.high)})"


def p_value(p: float) -> str:
    """`0.03`, `under 0.001`."""
    return "under 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.1g}" if p < 1 else "1"


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
