"""Intervals of crossed seeds and sessions, Holm, power and verdicts, each beside an independent way to the value."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.statistics import (
    Effect,
    Verdict,
    around,
    averaged_power,
    detectable,
    difference,
    gap_difference,
    holm,
    mean,
    power,
    seeds_needed,
    verdict,
)

INF = math.inf


@st.composite
def arms(draw, seeds=(2, 6), sessions=(2, 12)):
    """Hits of two arms for the same seeds and sessions."""
    shape = draw(st.integers(*seeds)), draw(st.integers(*sessions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rate = draw(st.sampled_from([0.05, 0.3, 0.5, 0.9]))
    return rng.random(shape) < rate, rng.random(shape) < 0.4


def random_arms(shape, seed=1):
    """Two arms of which one hits more often."""
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.5, rng.random(shape) < 0.4


def mean_squares(values):
    """Of seeds, of sessions and of the rest, as the residuals of least squares on indicator columns give them."""
    K, S = values.shape
    of_seed = np.repeat(np.eye(K), S, axis=0)
    of_session = np.tile(np.eye(S), (K, 1))
    y = values.astype(float).ravel()

    def left_over(columns):
        return np.square(y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]).sum()

    both = left_over(np.hstack([of_seed, of_session]))
    seeds, sessions = left_over(of_session) - both, left_over(of_seed) - both
    return seeds / (K - 1), sessions / (S - 1), both / ((K - 1) * (S - 1))


def slow_effect(values):
    """Estimate, standard error and degrees of freedom from those mean squares, written out."""
    K, S = values.shape
    a, b, e = mean_squares(values)
    variance = max(a + b - e, a, b, e) / (K * S)
    parts = ((a, K - 1), (b, S - 1), (e, (K - 1) * (S - 1)))
    below = sum((square / (K * S)) ** 2 / freedom for square, freedom in parts)
    return values.mean(), math.sqrt(max(0, variance)), variance**2 / below if below > 1e-20 else INF


def assert_same(found: Effect, expected: Effect):
    """But for the last digits, of which the root of a difference near 0 has lost half."""
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected), rel=1e-6, abs=1e-7, nan_ok=True)


class TestDifference:
    @given(arms())
    def test_is_what_least_squares_gives(self, pair):
        """Estimate, error and degrees of freedom, and the interval by Student's t with them."""
        D = pair[0].astype(int) - pair[1]
        estimate, error, freedom = slow_effect(D)
        found = difference(*pair)
        assert found.estimate == pytest.approx(estimate, abs=1e-12)
        assert found.standard_error == pytest.approx(error, abs=1e-7)
        if error > 1e-6:
            assert found.degrees_of_freedom == pytest.approx(freedom, rel=1e-5)
            low, high = stats.t(freedom, estimate, error).interval(0.95)
            assert (found.low, found.high) == pytest.approx((low, high), rel=1e-5, abs=1e-7)
            assert found.p == pytest.approx(2 * stats.t(freedom).sf(abs(estimate / error)), rel=1e-5)

    def test_seeds_alone_give_the_paired_t_test_over_seeds(self):
        """Where every session of a seed is alike, there are as many observations as seeds."""
        ours, other = np.zeros((2, 5, 40), bool)
        ours[[0, 1, 3]] = True
        other[4] = True
        found = difference(ours, other)
        test = stats.ttest_rel(ours.mean(1), other.mean(1))
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
        assert found.degrees_of_freedom == pytest.approx(4)
        assert found.seed_sd == pytest.approx(np.std([1, 1, 0, 1, -1], ddof=1))
        assert (found.session_sd, found.residual_sd) == pytest.approx((0, 0), abs=1e-12)

    def test_seeds_that_are_alike_give_the_paired_t_test_over_sessions(self):
        """Where every seed gives the same, more seeds tell nothing more."""
        one, two = random_arms((1, 300))
        found = difference(one.repeat(7, 0), two.repeat(7, 0))
        test = stats.ttest_rel(one[0].astype(int), two[0].astype(int))
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
        assert found.degrees_of_freedom == pytest.approx(299)
        assert found.seed_sd == pytest.approx(0, abs=1e-12)
        assert found.session_sd == pytest.approx(np.std(one[0].astype(int) - two[0], ddof=1))

    def test_many_sessions_leave_the_paired_t_test_over_seeds(self):
        """As their own noise is averaged away."""
        rng = np.random.default_rng(3)
        rates = 0.3 + 0.05 * rng.standard_normal(5)
        ours, other = rng.random((5, 200_000)) < rates[:, None], rng.random((5, 200_000)) < 0.3
        found, test = difference(ours, other), stats.ttest_rel(ours.mean(1), other.mean(1))
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()), rel=0.01)
        assert found.p == pytest.approx(test.pvalue, rel=0.01)

    def test_the_parts_of_the_noise_are_found(self):
        """Seeds, sessions and the rest, put there on purpose."""
        rng = np.random.default_rng(5)
        K, S = 400, 400
        ours = rng.random((K, S)) < 0.4 + 0.1 * rng.choice([-1, 1], (K, 1)) + 0.2 * rng.choice([-1, 1], S)
        found = difference(ours, np.zeros((K, S), bool))
        assert (found.seed_sd, found.session_sd) == pytest.approx((0.1, 0.2), rel=0.1)
        assert found.residual_sd == pytest.approx(math.sqrt(0.4 * 0.6 - 0.1**2 - 0.2**2), rel=0.02)

    @given(arms())
    def test_identical_arms_give_an_interval_around_zero(self, pair):
        """Exactly 0, and nothing to claim."""
        found = difference(pair[0], pair[0].copy())
        assert found.estimate == 0
        assert found.low <= 0 <= found.high
        assert found.p == 1

    def test_where_nothing_varies_the_interval_is_that_of_the_rule_of_three(self):
        """Of 100 sessions that are alike, at 97.5%: 1 - .025^(1/100); with 3 of 100 that would be missed once in 40."""
        nothing = np.zeros((5, 100), bool)
        found = difference(nothing, nothing)
        assert (found.estimate, found.low, found.high) == (0, -found.high, pytest.approx(0.03622, abs=1e-5))
        assert (mean(nothing).low, mean(nothing).high) == (0, found.high)
        assert verdict(difference(nothing, nothing), 1.0, worthwhile=0.01).word == "not enough runs"

    @given(arms(seeds=(1, 6), sessions=(1, 12)))
    def test_swapping_the_arms_flips_the_sign(self, pair):
        """To the last digit."""
        one, two = difference(*pair), difference(*reversed(pair))
        assert two == dataclasses.replace(one, estimate=-one.estimate, low=-one.high, high=-one.low)

    @given(arms(), st.randoms(use_true_random=False))
    def test_the_order_of_seeds_and_of_sessions_does_not_matter(self, pair, random):
        """As long as it is the same for both arms."""
        K, S = pair[0].shape
        seeds, sessions = random.sample(range(K), K), random.sample(range(S), S)
        assert_same(difference(*(hits[seeds][:, sessions] for hits in pair)), difference(*pair))

    def test_another_order_of_one_arm_alone_does_matter(self):
        """It would no longer be paired."""
        ours, _ = random_arms((5, 60))
        assert difference(ours, ours).standard_error == 0
        assert difference(ours, ours[:, ::-1]).standard_error > 0

    @given(arms())
    def test_hits_of_both_arms_or_of_none_are_alike(self, pair):
        """Only where the arms disagree do they tell anything."""
        ours, other = pair
        assert_same(difference(ours & ~other, other & ~ours), difference(ours, other))

    def test_sessions_that_are_not_asked_about_do_not_count(self):
        """As if they were not there."""
        ours, other = random_arms((5, 60))
        among = np.arange(60) % 3 == 0
        assert difference(ours, other, among) == difference(ours[:, ::3], other[:, ::3])

    @pytest.mark.parametrize("shape", [(1, 30), (5, 1), (1, 1)])
    def test_one_seed_or_one_session_tells_nothing_of_others(self, shape):
        """However large the difference is, the interval is infinite."""
        found = difference(np.ones(shape, bool), np.zeros(shape, bool))
        assert (found.estimate, found.low, found.high, found.p) == (1, -INF, INF, 1)
        assert (found.n_seeds, found.n_sessions) == shape
        assert verdict(found, found.p, worthwhile=1).word == "not enough runs"

    @pytest.mark.parametrize(
        ("rows", "largest"), [(("11111110", "00000001"), 0), (("111000", "110100"), 1), (("1100", "0011"), 2)]
    )
    def test_the_error_is_no_less_than_any_mean_square_alone_gives(self, rows, largest):
        """Where seeds undo each other in a session, seeds and sessions less the rest would say that there is less."""
        ours = np.array([list(map(int, row)) for row in rows], bool)
        a, b, e = mean_squares(ours)
        assert a + b - e < max(a, b, e) - 0.01
        assert np.argmax([a, b, e]) == largest
        found = difference(ours, np.zeros_like(ours))
        assert found.standard_error == pytest.approx(math.sqrt(max(a, b, e) / ours.size))
        assert found.p > 0.05

    def test_seventy_seeds_are_no_different(self):
        """More than the bits of an integer."""
        ours, other = random_arms((70, 30))
        estimate, error, freedom = slow_effect(ours.astype(int) - other)
        found = difference(ours, other)
        assert (found.estimate, found.standard_error) == pytest.approx((estimate, error))
        assert found.degrees_of_freedom == pytest.approx(freedom)

    def test_nothing_to_compare_is_refused(self):
        """With what was given."""
        ours, other = random_arms((5, 60))
        with pytest.raises(ValueError, match=r"hits are \(5, 60\) and \(4, 60\), expected the same seeds and sessions"):
            difference(ours, other[:4])
        with pytest.raises(ValueError, match="5 seeds and 0 sessions are asked about, expected some"):
            difference(ours, other, np.zeros(60, bool))


class TestMean:
    def test_is_the_difference_to_an_arm_without_hits(self):
        """But for its p, which would be of a rate of 0."""
        ours, _ = random_arms((5, 60))
        assert math.isnan(mean(ours).p)
        assert_same(mean(ours), dataclasses.replace(difference(ours, np.zeros_like(ours)), p=math.nan))
        among = np.arange(60) < 20
        assert_same(mean(ours, among), mean(ours[:, :20]))

    def test_seeds_alone_give_the_t_interval_over_seeds(self):
        """Of the seeds' rates; cut where it would leave what a rate can be."""
        hits = np.zeros((6, 9), bool)
        hits[:2] = True
        test = stats.ttest_1samp([1, 1, 0, 0, 0, 0], 0)
        low, high = test.confidence_interval()
        assert low < 0 < high < 1
        assert (mean(hits).low, mean(hits).high) == pytest.approx((0, high))
        assert (mean(~hits).low, mean(~hits).high) == pytest.approx((1 - high, 1))


class TestGapDifference:
    @given(arms(sessions=(5, 12)))
    def test_its_estimate_is_what_two_differences_give(self, pair):
        """And the groups the other way round give the other sign."""
        S = pair[0].shape[1]
        plus, minus = np.arange(S) < 2, np.arange(S) >= 3
        found, back = gap_difference(*pair, plus, minus), gap_difference(*pair, minus, plus)
        expected = difference(*pair, plus).estimate - difference(*pair, minus).estimate
        assert found.estimate == pytest.approx(expected, abs=1e-12)
        assert (back.estimate, back.low, back.high) == pytest.approx((-found.estimate, -found.high, -found.low))

    def test_seeds_alone_give_the_t_test_over_the_seeds_gaps(self):
        """A seed's part in both groups cancels before its spread is taken."""
        plus = np.arange(50) < 30
        ours = np.zeros((5, 50), bool)
        ours[:3] = True  # in both groups
        ours[3:4, plus] = True
        found = gap_difference(ours, np.zeros_like(ours), plus, ~plus)
        test = stats.ttest_1samp([0, 0, 0, 1, 0], 0)
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))

    def test_seeds_that_are_alike_give_welchs_t_test_over_sessions(self):
        """Two groups of sessions that are unlike in number and spread."""
        ours, other = random_arms((1, 90))
        plus = np.arange(90) < 25
        found = gap_difference(ours.repeat(4, 0), other.repeat(4, 0), plus, ~plus)
        D = ours[0].astype(int) - other[0]
        test = stats.ttest_ind(D[plus], D[~plus], equal_var=False)
        assert found.p == pytest.approx(test.pvalue)
        assert found.degrees_of_freedom == pytest.approx(test.df)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))

    def test_a_group_of_one_session_tells_nothing_of_others(self):
        """However many are in the other group."""
        ours, other = random_arms((5, 60))
        plus = np.arange(60) == 7
        found = gap_difference(ours, other, plus, ~plus)
        assert (found.low, found.high, found.p) == (-INF, INF, 1)

    def test_a_session_in_both_groups_is_refused(self):
        """It cannot count for and against."""
        ours, other = random_arms((5, 6))
        with pytest.raises(ValueError, match="2 sessions are in both groups, expected none"):
            gap_difference(ours, other, np.arange(6) < 4, np.arange(6) > 1)


def test_around_moves_an_effect_and_keeps_its_noise():
    """With the p of where it is now."""
    effect = difference(*random_arms((5, 200)))
    moved = around(effect, 0.5)
    t = stats.t(effect.degrees_of_freedom, 0.5, effect.standard_error)
    assert (moved.low, moved.high) == pytest.approx(t.interval(0.95))
    assert moved.p == pytest.approx(2 * t.cdf(0))
    assert_same(around(moved, effect.estimate), effect)
    nothing = difference(np.ones((1, 5), bool), np.zeros((1, 5), bool))
    assert (around(nothing, 0.5).low, around(nothing, 0.5).high, around(nothing, 0.5).p) == (-INF, INF, 1)


class TestHolm:
    def test_a_textbook_example(self):
        """The smallest times 4, the next times 3, and none below the one before it."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []
        assert holm([0.2]) == [0.2]

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_is_what_bonferroni_in_every_subset_gives(self, p):
        """The closed testing procedure: a claim stands if every set of claims that holds it does."""
        indices = range(len(p))
        sets = list(itertools.chain.from_iterable(itertools.combinations(indices, n + 1) for n in indices))
        expected = [max(min(1, len(s) * min(p[i] for i in s)) for s in sets if claim in s) for claim in indices]
        assert holm(p) == pytest.approx(expected)


def an_effect(estimate, low, high):
    """With an interval, and nothing else that a verdict reads."""
    return dataclasses.replace(difference(*random_arms((2, 9))), estimate=estimate, low=low, high=high)


class TestVerdict:
    @pytest.mark.parametrize(
        ("estimate", "low", "high", "p", "text"),
        [
            (0.02, 0.01, 0.03, 0.01, "helps"),
            (-0.02, -0.03, -0.01, 0.01, "hurts"),
            (0.002, 0.001, 0.003, 0.01, "helps (by 0.3 points at most, too little to matter)"),
            (-0.002, -0.003, -0.001, 0.01, "hurts (by 0.3 points at most, too little to matter)"),
            (0.002, 0.0001, 0.0041, 0.06, "no effect larger than 0.5 points"),  # not after Holm; rounded up
            (-0.001, -0.01, 0.008, 0.7, "no effect larger than 1 points"),
            (0.001, -0.008, 0.0101, 0.7, "not enough runs"),
            # The level itself is not enough.
            (0.02, 0.001, 0.04, 0.05, "not enough runs (above 0 by itself, not when all claims are counted)"),
            (-0.02, -0.04, -0.001, 0.2, "not enough runs (below 0 by itself, not when all claims are counted)"),
            (0.0, -0.5, 0.5, 1.0, "not enough runs"),
        ],
    )
    def test_is_by_p_after_holm_and_else_by_the_interval(self, estimate, low, high, p, text):
        """What is there is named; what is not is bounded, or open."""
        assert verdict(an_effect(estimate, low, high), p, worthwhile=0.01).text == text

    def test_the_level_is_of_the_family(self):
        """A stricter one takes more."""
        effect = an_effect(0.02, 0.001, 0.039)
        assert verdict(effect, 0.03, worthwhile=0.01).word == "helps"
        assert verdict(effect, 0.03, worthwhile=0.01, level=0.01).word == "not enough runs"

    def test_an_infinite_bound_is_said_in_a_word(self):
        """Not as `inf points`."""
        assert Verdict(word="not enough runs", bound=INF).bound_points == "any"


SEEDS_ALONE = {"seed_sd": 1.0, "session_sd": 0.0, "residual_sd": 0.0, "n_sessions": 1000}
MIXED = {"seed_sd": 0.006, "session_sd": 0.3, "residual_sd": 0.4, "n_sessions": 6000}


class TestPower:
    @pytest.mark.parametrize(("limit", "freedom", "shift"), [(2.78, 4.0, 2.0), (12.7, 1.0, 20.0), (2.0, 57.3, 3.1)])
    def test_the_mean_over_the_denominator_is_the_noncentral_t(self, limit, freedom, shift):
        """Where SciPy's sum is good."""
        expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        assert averaged_power(limit, freedom, shift) == pytest.approx(expected, abs=2e-4)

    @pytest.mark.parametrize(("effect", "n", "found"), [(0.5, 34, 0.8078), (0.8, 15, 0.8213)])
    def test_of_seeds_alone_is_that_of_the_paired_t_test(self, effect, n, found):
        """The usual tables: an effect of half a standard deviation takes 34 pairs, one of .8 takes 15."""
        assert power(effect, n, **SEEDS_ALONE) == pytest.approx(found, abs=1e-4)
        assert power(-effect, n, **SEEDS_ALONE) == power(effect, n, **SEEDS_ALONE)
        assert seeds_needed(effect, **SEEDS_ALONE) == n
        assert detectable(n, **SEEDS_ALONE) <= effect < detectable(n - 1, **SEEDS_ALONE)

    def test_of_sessions_alone_is_that_of_the_normal_distribution(self):
        """Many of them, whatever the number of seeds."""
        noise = {"seed_sd": 0.0, "session_sd": 0.5, "residual_sd": 0.0, "n_sessions": 100_000}
        error = 0.5 / math.sqrt(100_000)
        expected = stats.norm.sf(1.96 - 2.8) + stats.norm.cdf(-1.96 - 2.8)
        assert power(2.8 * error, 5, **noise) == power(2.8 * error, 50, **noise) == pytest.approx(expected, abs=1e-3)

    def test_is_how_often_simulated_studies_find_the_effect(self):
        """Of 2,000 with five seeds, whose own rates vary."""
        rng = np.random.default_rng(11)
        n, effect = 400, 0.12
        found = 0
        for _ in range(2000):
            rates = 0.4 + effect + 0.05 * rng.standard_normal((5, 1))
            found += difference(rng.random((5, n)) < rates, rng.random((5, n)) < 0.4).p < 0.05
        residual_sd = math.sqrt(0.4 * 0.6 + 0.52 * 0.48)
        expected = power(effect, 5, seed_sd=0.05, session_sd=0.0, residual_sd=residual_sd, n_sessions=n)
        assert 0.5 < expected < 0.95
        assert found / 2000 == pytest.approx(expected, abs=0.03)  # three standard errors of 2,000 studies

    def test_of_no_effect_is_the_level(self):
        """Found by chance alone."""
        assert power(0.0, 5, **MIXED) == pytest.approx(0.05)
        assert power(0.0, 5, **MIXED, level=0.01) == pytest.approx(0.01)

    def test_without_noise_whatever_is_there_is_found(self):
        """And nothing else."""
        noise = {"seed_sd": 0.0, "session_sd": 0.0, "residual_sd": 0.0, "n_sessions": 10}
        assert (power(0.001, 2, **noise), power(0.0, 2, **noise)) == (1, 0)
        assert (seeds_needed(0.001, **noise), detectable(2, **noise)) == (2, 0)

    def test_of_a_huge_effect_is_one(self):
        """Where SciPy's series gives up."""
        assert power(1e4, 300, **SEEDS_ALONE) == 1

    @pytest.mark.parametrize("detect", [0.012, 0.013, 0.02, 0.05])
    def test_no_fewer_seeds_are_enough(self, detect):
        """One less finds it in fewer than 4 studies of 5."""
        n = seeds_needed(detect, **MIXED)
        assert power(detect, n, **MIXED) >= 0.8
        assert n == 2 or power(detect, n - 1, **MIXED) < 0.8
        assert detectable(n, **MIXED) <= detect

    def test_sessions_can_be_too_few_for_any_number_of_seeds(self):
        """Their own noise stays."""
        assert 2.8 * MIXED["session_sd"] / math.sqrt(MIXED["n_sessions"]) > 0.0105
        assert seeds_needed(0.0105, **MIXED) is None
        assert seeds_needed(0.0105, **MIXED | {"n_sessions": 60_000}) is not None

    @pytest.mark.parametrize("n_seeds", [2, 5, 30])
    def test_what_is_detectable_is_found_as_often_as_wanted(self, n_seeds):
        """The inverse of power."""
        assert power(detectable(n_seeds, **MIXED), n_seeds, **MIXED) == pytest.approx(0.8)
        assert power(detectable(n_seeds, **MIXED, wanted=0.9), n_seeds, **MIXED) == pytest.approx(0.9)
