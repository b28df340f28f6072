"""How sure a difference of hit rates is, where both the seeds and the sessions could have been others.

Every run of an arm answers the same sessions, and the runs of two arms are paired by seed. So a difference is

    D[s, i] = hit of one arm - hit of the other = mu + a[s] + b[i] + e[s, i]

with a seed's part, a session's part, and what is left: two crossed random factors. Five seeds are few, so what matters
is how the seeds' part is estimated. `difference` says how; `scripts/calibrate.py` measures how often it is right.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import optimize, stats

# K seeds, S sessions.

LEVEL = 0.05
MOST_SEEDS = 1000
"""More are never planned for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An estimated mean, or a difference of means, of hits."""

    estimate: float
    low: float
    """Of the 95% interval, for other seeds and other sessions. Infinite where there is one seed or one session."""
    high: float
    p: float
    """Two-sided, of no difference."""
    standard_error: float
    degrees_of_freedom: float
    seed_sd: float
    """Standard deviation of the seeds' part a. NaN, as the next two, where the interval is infinite."""
    session_sd: float
    """Of the sessions' part b; of a gap, in its first group."""
    residual_sd: float
    """Of what is left, e; likewise."""
    n_seeds: int
    n_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an effect comes to."""

    word: Literal["helps", "hurts", "no effect", "not enough runs"]
    bound: float
    """The end of the interval that is further from 0."""
    note: str = ""
    """What else is to be said of it."""

    @property
    def bound_points(self) -> str:
        """The bound in hundredths, rounded up, so that what is said with it is true."""
        return f"{math.ceil(1000 * self.bound - 1e-9) / 10:g}" if math.isfinite(self.bound) else "any"

    @property
    def text(self) -> str:
        """As a report says it."""
        word = f"no effect larger than {self.bound_points} points" if self.word == "no effect" else self.word
        return f"{word} ({self.note})" if self.note else word


def difference(
    ours: Shaped[np.ndarray, "K S"], other: Shaped[np.ndarray, "K S"], among: Bool[np.ndarray, " S"] | None = None
) -> Effect:
    """The mean difference of two arms' hits, paired by seed and by session.

    The variance of the mean is (MS_seeds + MS_sessions - MS_rest) / (K S), from the mean squares of a two-way layout
    with one observation a cell, and no less than any of the three alone. The interval is Student's, with degrees of
    freedom by Satterthwaite (1946, Biometrics Bulletin 2, 110-114): near K - 1 where seeds decide, many where sessions
    do. One seed, or one session, tells nothing of others: the interval is infinite then, and p is 1.

    Args:
        ours: Hits by seed and session, or differences of hits.
        other: Of the other arm, for the same seeds and sessions.
        among: The sessions that are asked about; all if None.

    Raises:
        ValueError: If the two do not match, or nothing is asked about.
    """
    if ours.shape != other.shape:
        raise ValueError(f"hits are {ours.shape} and {other.shape}, expected the same seeds and sessions")
    return of_hits([(1.0, selected(ours, among) - selected(other, among))])


def mean(hits: Bool[np.ndarray, "K S"], among: Bool[np.ndarray, " S"] | None = None) -> Effect:
    """An arm's hit rate, as `difference`, within 0 and 1; its p is NaN, as nobody asks whether it is 0."""
    found = of_hits([(1.0, selected(hits, among))])
    low, high = (end if math.isinf(end) else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return dataclasses.replace(found, low=low, high=high, p=math.nan)


def gap_difference(
    ours: Shaped[np.ndarray, "K S"],
    other: Shaped[np.ndarray, "K S"],
    plus: Bool[np.ndarray, " S"],
    minus: Bool[np.ndarray, " S"],
) -> Effect:
    """The difference among some sessions less that among others, such as heard and skipped targets.

    Args:
        ours: Hits by seed and session.
        other: Of the other arm; all False for the gap of one arm.
        plus: Sessions whose mean counts.
        minus: Sessions whose mean is taken off; none of them in `plus`.
    """
    if (plus & minus).any():
        raise ValueError(f"{(plus & minus).sum()} sessions are in both groups, expected none")
    return of_hits(
        [(sign, selected(ours, members) - selected(other, members)) for sign, members in ((1.0, plus), (-1.0, minus))]
    )


def of_hits(parts: Sequence[tuple[float, Float[np.ndarray, "K _"]]]) -> Effect:
    """As `crossed_effect`, with an interval also where nothing is seen to vary, which is not to say that nothing does.

    Of n sessions that are all alike, the share that is not may be up to 1 - 0.025^(1/n) (the "rule of three": Hanley &
    Lippman-Hand 1983, JAMA 249, 1743-1745; here two-sided).
    """
    found = crossed_effect(parts)
    if found.standard_error > 0:
        return found
    unseen = 1 - (LEVEL / 2) ** (1 / min(values.shape[1] for _, values in parts))
    return dataclasses.replace(found, low=found.estimate - unseen, high=found.estimate + unseen)


def selected(hits: Shaped[np.ndarray, "K S"], among: Bool[np.ndarray, " S"] | None) -> Float[np.ndarray, "K n"]:
    """Hits of the sessions that are asked about, as numbers.

    Raises:
        ValueError: If there are none.
    """
    chosen = (hits if among is None else hits[:, among]).astype(np.float32)
    if 0 in chosen.shape:
        raise ValueError(f"{chosen.shape[0]} seeds and {chosen.shape[1]} sessions are asked about, expected some")
    return chosen


def crossed_effect(parts: Sequence[tuple[float, Float[np.ndarray, "K _"]]]) -> Effect:
    """A sum of means, each over sessions of its own and the same seeds.

    Args:
        parts: The factor of each mean, and what it is the mean of, by seed and session.
    """
    K, sizes = len(parts[0][1]), [values.shape[1] for _, values in parts]
    by_seed = sum(factor * values.mean(1, dtype=np.float64) for factor, values in parts)
    estimate = float(by_seed.mean())
    if 1 in (K, *sizes):
        inf, nan = math.inf, math.nan
        return Effect(estimate=estimate, low=-inf, high=inf, p=1.0, standard_error=inf, degrees_of_freedom=0.0,
                      seed_sd=nan, session_sd=nan, residual_sd=nan, n_seeds=K, n_sessions=sum(sizes))  # fmt: skip
    # Each a variance of the estimate: by the spread of seeds, and for each part by that of sessions and of the rest.
    by_seeds = by_seed.var(ddof=1) / K
    squares = [session_squares(values) for _, values in parts]
    by_sessions = sum(sessions / (K * n) for (sessions, _), n in zip(squares, sizes, strict=True))
    by_rest = sum(rest / (K * n) for (_, rest), n in zip(squares, sizes, strict=True))
    variance = max(by_seeds + by_sessions - by_rest, by_seeds, by_sessions, by_rest)
    spread = by_seeds**2 / (K - 1)  # half the variance of the variance
    for (sessions, rest), n in zip(squares, sizes, strict=True):
        spread += (sessions / (K * n)) ** 2 / (n - 1) + (rest / (K * n)) ** 2 / ((K - 1) * (n - 1))
    freedom = variance**2 / spread if spread > 0 else math.inf
    error = math.sqrt(variance)
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error if error else 0.0
    first_sessions, first_rest = squares[0]
    return Effect(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p=two_sided_p(estimate, error, freedom),
        standard_error=error,
        degrees_of_freedom=float(freedom),
        seed_sd=math.sqrt(max(0.0, K * (by_seeds - by_rest))),
        session_sd=math.sqrt(max(0.0, first_sessions - first_rest) / K),
        residual_sd=math.sqrt(first_rest),
        n_seeds=K,
        n_sessions=sum(sizes),
    )


def session_squares(values: Float[np.ndarray, "K n"]) -> tuple[float, float]:
    """Mean squares of sessions and of the rest in a two-way layout without repeats; K and n are 2 or more."""
    K, n = values.shape
    by_session, by_seed = values.mean(0, dtype=np.float64), values.mean(1, dtype=np.float64)
    grand = by_session.mean()
    # Not the total less the other sums: of a rest that is 0 that would leave rounding, of either sign.
    rest = values - (by_session - grand) - by_seed[:, None]
    return K * np.square(by_session - grand).sum() / (n - 1), np.square(rest).sum() / ((K - 1) * (n - 1))


def two_sided_p(estimate: float, error: float, freedom: float) -> float:
    """By Student's t; without any noise 0 or 1, and 1 where nothing is known of it."""
    if error == 0 or math.isinf(error):
        return float(estimate == 0 or error > 0)
    return float(2 * stats.t.sf(abs(estimate) / error, freedom))


def around(effect: Effect, estimate: float) -> Effect:
    """The same noise around another estimate: for one whose noise is that of a linear form."""
    half = effect.high - effect.estimate
    p = two_sided_p(estimate, effect.standard_error, effect.degrees_of_freedom)
    return dataclasses.replace(effect, estimate=estimate, low=estimate - half, high=estimate + half, p=p)


def holm(p: Iterable[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false claim stays below the level.

    Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    p = list(p)
    adjusted, largest = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def verdict(effect: Effect, adjusted_p: float, *, worthwhile: float, level: float = LEVEL) -> Verdict:
    """What an effect comes to.

    Args:
        effect: The difference.
        adjusted_p: Its p, corrected for the family of claims.
        worthwhile: The smallest difference that would matter; an interval within it is no effect.
        level: Of the family.
    """
    bound = max(abs(effect.low), abs(effect.high))
    found = Verdict(word="no effect" if bound <= worthwhile else "not enough runs", bound=bound)
    if adjusted_p < level and effect.estimate:
        found = Verdict(word="helps" if effect.estimate > 0 else "hurts", bound=bound)
        if bound <= worthwhile:
            found = dataclasses.replace(found, note=f"by {found.bound_points} points at most, too little to matter")
    elif found.word == "not enough runs" and not effect.low <= 0 <= effect.high:
        sign = "above" if effect.low > 0 else "below"
        found = dataclasses.replace(found, note=f"{sign} 0 by itself, not when all claims are counted")
    return found


def power(
    effect: float, n_seeds: int, *, seed_sd: float, session_sd: float, residual_sd: float, n_sessions: int,
    level: float = LEVEL,
) -> float:  # fmt: skip
    """How often a difference of this size is found, of one kind or the other, by the noncentral t distribution.

    Args:
        effect: The true difference.
        n_seeds: Paired seeds, 2 or more.
        seed_sd: Of a paired difference's seeds' part.
        session_sd: Of its sessions' part.
        residual_sd: Of what is left.
        n_sessions: That every run answers.
        level: Of the test.
    """
    by_seeds = (seed_sd**2 + residual_sd**2 / n_sessions) / n_seeds
    by_sessions = session_sd**2 / n_sessions
    variance = by_seeds + by_sessions
    if variance == 0:
        return float(effect != 0)
    freedom = variance**2 / (by_seeds**2 / (n_seeds - 1) + by_sessions**2 / max(1, n_sessions - 1))
    limit = stats.t.ppf(1 - level / 2, freedom)
    shift = effect / math.sqrt(variance)
    found = float(stats.nct.sf(limit, freedom, abs(shift)) + stats.nct.cdf(-limit, freedom, abs(shift)))
    return found if math.isfinite(found) else averaged_power(limit, freedom, abs(shift))


def averaged_power(limit: float, freedom: float, shift: float) -> float:
    """How often a noncentral t is beyond a limit, as a mean over its denominator: where SciPy's sum gives up."""
    shares = (np.arange(2000) + 0.5) / 2000
    limits = limit * np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return float((stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)).mean())


def seeds_needed(
    detect: float, *, seed_sd: float, session_sd: float, residual_sd: float, n_sessions: int, wanted: float = 0.8,
    level: float = LEVEL,
) -> int | None:  # fmt: skip
    """The fewest paired seeds that find a difference as often as wanted; None where no number of them does.

    Args:
        detect: The difference.
        seed_sd: As of `power`; likewise the next ones.
        session_sd: Standard deviation.
        residual_sd: Standard deviation.
        n_sessions: That every run answers: their own part of the noise stays, however many seeds there are.
        wanted: The power.
        level: Of the test.
    """
    noise = {"seed_sd": seed_sd, "session_sd": session_sd, "residual_sd": residual_sd, "n_sessions": n_sessions}
    noise["level"] = level
    low, high = 2, MOST_SEEDS
    if power(detect, high, **noise) < wanted:
        return None
    while low < high:  # power rises with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if power(detect, middle, **noise) >= wanted else (middle + 1, high)
    return low


def detectable(
    n_seeds: int, *, seed_sd: float, session_sd: float, residual_sd: float, n_sessions: int, wanted: float = 0.8
) -> float:
    """The smallest difference that so many paired seeds find as often as wanted; see `power`."""
    noise = {"seed_sd": seed_sd, "session_sd": session_sd, "residual_sd": residual_sd, "n_sessions": n_sessions}
    scale = math.sqrt(seed_sd**2 + (session_sd**2 + residual_sd**2) / n_sessions)
    if scale == 0:
        return 0.0
    return float(optimize.brentq(lambda effect: power(effect, n_seeds, **noise) - wanted, 0.0, 100 * scale))
