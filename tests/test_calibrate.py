"""The calibration's own sums: populations whose truth is counted, ways to an interval, and the naive way."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.statistics import crossed_effect, difference

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "calibrate.py"


@pytest.fixture(scope="module")
def calibrate():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("calibrate", SCRIPT)
    module = sys.modules["calibrate"] = importlib.util.module_from_spec(spec)  # its dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibrate"]


def some_hits(P=8, S=300, seed=1, spread=0.1):
    """A population whose seeds and sessions are unlike."""
    rng = np.random.default_rng(seed)
    rates = 0.4 + spread * rng.standard_normal((P, 1)) + 0.2 * rng.standard_normal(S)
    return rng.random((P, S)) < rates


def some_differences(K, n, seed):
    """-1, 0 and 1, with repeats among short columns."""
    return np.random.default_rng(seed).integers(-1, 2, (K, n)).astype(np.int8)


class TestPopulation:
    @pytest.mark.parametrize("is_paired", [True, False])
    def test_error_and_truth_are_those_of_many_drawn_studies(self, calibrate, is_paired):
        """The mean and the spread of 4,000 estimates, within three standard errors of theirs."""
        population = calibrate.Population(
            name="", ours=some_hits(), other=some_hits(seed=2, spread=0.02), is_paired=is_paired
        )
        K, n, rng = 3, 50, np.random.default_rng(3)
        estimates = [ours.mean() - other.mean() for ours, other in (population.draw(K, n, rng) for _ in range(4000))]
        error = calibrate.standard_error(population.noise(), K, n)
        assert np.mean(estimates) == pytest.approx(population.truth, abs=3 * error / np.sqrt(4000))
        assert np.std(estimates) == pytest.approx(error, rel=3 / np.sqrt(2 * 4000))

    def test_a_paired_draw_takes_the_same_seeds_and_sessions_of_both_arms(self, calibrate):
        """So an arm does not differ from itself; drawn apart, it does."""
        hits = some_hits()
        rng = np.random.default_rng(3)
        ours, other = calibrate.Population(name="", ours=hits, other=hits, is_paired=True).draw(5, 40, rng)
        assert (ours == other).all()
        ours, other = calibrate.Population(name="", ours=hits, other=hits, is_paired=False).draw(5, 40, rng)
        assert (ours != other).any()

    def test_hits_are_turned_on_and_none_off(self, calibrate):
        """Exactly as many as asked for, anywhere."""
        hits = some_hits()
        more = calibrate.turn_on(hits, 77, np.random.default_rng(1))
        assert more.sum() == hits.sum() + 77
        assert (more | hits == more).all()
        changed = more & ~hits
        assert (changed.any(1).sum(), changed.any(0).sum() > 50) == (8, True)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_without_a_plant_the_truth_is_exactly_zero(self, calibrate, swapped):
        """Whichever arm is better; and two arms still differ in single sessions."""
        arms = {"S+/long/test": some_hits(), "S-/long/test": some_hits(seed=2)[:, ::-1] & some_hits(seed=3)}
        if swapped:
            arms = dict(zip(arms, reversed(arms.values()), strict=True))
        twice, two = calibrate.populations(arms, "long", np.random.default_rng(1))
        assert (twice.truth, two.truth) == (0, 0)
        assert (twice.is_paired, two.is_paired) == (False, True)
        assert (twice.ours == arms["S+/long/test"]).all()
        assert two.noise()["session_sd"] > 0.1

    def test_a_plant_is_two_standard_errors(self, calibrate):
        """Of studies of that size, to the nearest hit."""
        hits = some_hits()
        nothing = calibrate.Population(name="", ours=hits, other=hits[::-1], is_paired=True)
        error = calibrate.standard_error(nothing.noise(), 5, 200)
        found = calibrate.planted(nothing, 5, 200, np.random.default_rng(1)).truth
        assert found == pytest.approx(2 * error, abs=1 / hits.size)


class TestWays:
    @given(st.integers(1, 80), st.integers(1, 60), st.integers(0, 99))
    def test_patterns_and_their_counts_are_the_plain_matrix(self, calibrate, K, n, seed):
        """More than the 62 seeds that an integer would hold, too."""
        D = some_differences(K, n, seed)
        values, counts = calibrate.patterns(D)
        assert sorted(map(tuple, np.repeat(values, counts, axis=1).T)) == sorted(map(tuple, D.T))
        assert len({tuple(column) for column in values.T}) == values.shape[1]

    def test_replicates_are_what_drawn_rows_and_columns_give(self, calibrate):
        """Mean and standard error of each, from the whole matrix of what was drawn."""
        D = some_differences(4, 90, 1)
        found = calibrate.resample(D, 30, np.random.default_rng(5))
        rng = np.random.default_rng(5)
        values, counts = calibrate.patterns(D)
        seeds = rng.multinomial(4, [1 / 4] * 4, size=30)
        sessions = rng.multinomial(90, counts / 90, size=30)
        for r in range(30):
            drawn = np.repeat(np.repeat(values, seeds[r], axis=0), sessions[r], axis=1)
            effect = crossed_effect([(1.0, drawn)])
            assert found.means[r] == pytest.approx(effect.estimate, abs=1e-12)
            assert found.errors[r] == pytest.approx(effect.standard_error, abs=1e-9)

    def test_bootstrap_intervals_by_hand(self, calibrate):
        """Of 201 replicates, 5 lie below the interval's low end and 5 above its high one."""
        resampled = calibrate.Resampled(np.arange(201) / 100, np.full(201, 0.5))
        assert calibrate.percentile(resampled) == pytest.approx((0.05, 1.95))
        effect = difference(some_hits(2, 9), some_hits(2, 9, seed=4))
        low, high = calibrate.studentised(effect, resampled)
        largest, least = (1.95 - effect.estimate) / 0.5, (0.05 - effect.estimate) / 0.5
        expected = (
            effect.estimate - largest * effect.standard_error,
            effect.estimate - least * effect.standard_error,
        )
        assert (low, high) == pytest.approx(expected)

    def test_replicates_without_an_error_have_no_t(self, calibrate):
        """They are left out; where all are, there is no width."""
        effect = difference(some_hits(2, 9), some_hits(2, 9, seed=4))
        some = calibrate.Resampled(np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.5, 0.0]))
        t = (0.2 - effect.estimate) / 0.5
        assert calibrate.studentised(effect, some) == pytest.approx([effect.estimate - t * effect.standard_error] * 2)
        none = calibrate.Resampled(np.array([0.1]), np.array([0.0]))
        assert calibrate.studentised(effect, none) == (effect.estimate, effect.estimate)

    def test_two_way_clusters_are_sums_over_pairs(self, calibrate):
        """Products of every two residuals that share a seed or a session, with the usual factors for few clusters."""
        D = some_differences(3, 7, 2) + np.array([[1], [0], [-1]], np.int8) + np.arange(-3, 4, dtype=np.int8)
        u = D - D.mean()
        by_seed = sum(u[s, i] * u[s, j] for s in range(3) for i in range(7) for j in range(7))
        by_session = sum(u[s, i] * u[t, i] for i in range(7) for s in range(3) for t in range(3))
        by_both = sum(u[s, i] ** 2 for s in range(3) for i in range(7))
        error = np.sqrt(by_seed * 3 / 2 + by_session * 7 / 6 - by_both) / 21
        assert by_seed * 3 / 2 + by_session * 7 / 6 - by_both > max(by_seed * 3 / 2, by_session * 7 / 6)
        assert calibrate.cluster_robust(D) == pytest.approx(stats.t(2, D.mean(), error).interval(0.95))

    def test_seeds_or_sessions_alone_are_scipys(self, calibrate):
        """One factor's means, as if the other were fixed."""
        D = some_differences(5, 40, 1)
        test = stats.ttest_1samp(D.mean(1), 0)
        assert calibrate.over_seeds(D) == pytest.approx(tuple(test.confidence_interval()))
        error = stats.sem(D.mean(0))
        assert calibrate.over_sessions(D) == pytest.approx(stats.norm(D.mean(), error).interval(0.95))


class TestSimulate:
    def test_intervals_cover_and_effects_are_found_as_in_theory(self, calibrate):
        """Of 400 studies, within four standard errors: 5 seeds, and an effect of two errors."""
        rng = np.random.default_rng(2)
        hits = some_hits(P=60, S=400, spread=0.05)
        nothing = calibrate.Population(name="here", ours=hits, other=hits, is_paired=False)
        line = calibrate.simulate(calibrate.planted(nothing, 5, 300, rng), 5, 300, 400, rng, ways=True)
        assert line.population == "here"
        assert line.truth == pytest.approx(2, abs=0.1)
        assert line.coverage == pytest.approx(0.95, abs=0.044)
        assert line.helps + line.hurts == pytest.approx(line.theory, abs=0.1)
        assert line.helps > 10 * line.hurts
        assert line.ways["sessions only"][0] < 0.9  # seeds are most of the noise here
        assert 0.3 < line.seed_share < 0.9
        assert set(line.ways) == {
            *("percentile bootstrap", "studentised bootstrap", "two-way clusters", "t over seeds", "sessions only")
        }

    def test_coverage_and_width_by_hand(self, calibrate):
        """The ends are within."""
        assert calibrate.covered([(0, 1), (0.5, 2), (0.6, 0.7), (-1, 0.5)], 0.5) == (0.75, pytest.approx(4.1 / 4))

    def test_arms_that_hardly_differ_are_not_said_to(self, calibrate):
        """Pairs of the same runs, but for one hit of one session."""
        hits = some_hits()
        more = calibrate.turn_on(hits, 1, np.random.default_rng(1))
        population = calibrate.Population(name="", ours=more, other=hits, is_paired=True)
        assert population.truth == 1 / hits.size
        line = calibrate.simulate(population, 5, 50, 20, np.random.default_rng(1))
        assert (line.helps, line.hurts, line.ways) == (0, 0, {})


class TestNaive:
    def rates(self, order, S=400):
        """Hits of seeds, of which each hits a session more than the one before it in the order."""
        hits = np.zeros((len(order), S), bool)
        for place, seed in enumerate(order):
            hits[seed, : 40 * (place + 1)] = True
        return hits

    def test_the_best_of_many_wins_but_where_the_one_is_the_best(self, calibrate):
        """Where test goes with validation, of 9 cells against 1; where it goes against it, the other way round."""
        rng = np.random.default_rng(1)
        val = self.rates(range(9))
        for test, expected in ((val, 8 / 9), (val[::-1], 1 / 9)):
            found = calibrate.naive(val, test, "long", (8, 1), 5_000, 600, rng)
            assert found.higher == pytest.approx(expected, abs=0.05)
            assert found.beyond_margin == found.higher  # 40 sessions of 400, asked 5,000 times

    def test_runs_that_are_alike_are_never_higher(self, calibrate):
        """A tie is no gain."""
        hits = np.repeat(some_hits(P=1), 8, axis=0)
        found = calibrate.naive(hits, hits, "long", (4, 4), 100, 20, np.random.default_rng(1))
        assert (found.higher, found.beyond_margin) == (0, 0)

    def test_a_difference_within_the_margin_is_higher_and_no_more(self, calibrate):
        """One session in a hundred, asked about a hundred times."""
        val, test = np.zeros((2, 100), bool), np.zeros((2, 100), bool)
        test[0, 0] = True
        found = calibrate.naive(val, test, "long", (1, 1), 100, 500, np.random.default_rng(1))
        assert found.higher == pytest.approx(0.5 * (1 - 0.99**100), abs=0.08)
        assert found.beyond_margin < 0.1


def test_the_script_prints_three_tables_from_hits_that_were_kept(calibrate, tmp_path):
    """Every population and size, without and with an effect; and every naive comparison."""
    names = [
        f"{arm}/{stage}/{split}" for arm in ("S-", "S+") for stage in ("short", "long") for split in ("val", "test")
    ]
    np.savez(tmp_path / "hits.npz", **{name: some_hits(P=24, S=90, seed=i) for i, name in enumerate(names)})
    command = [sys.executable, str(SCRIPT), "--keep", str(tmp_path), "--studies", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines, ways, naive = (part.splitlines() for part in done.stdout.strip().split("\n\n"))
    assert [len(part) - 2 for part in (lines, ways, naive)] == [32, 16, 12]
    for part in (lines, ways, naive):
        assert len({line.count("|") for line in part}) == 1
    assert lines[2].startswith("| short: one arm twice | 5 | 100 | ")
    assert "| 0.00 | " in lines[2]
    assert "| long | 20 and 4 | 10,000 | " in naive[-1]


@pytest.mark.slow
def test_a_population_is_trained_paired_by_seed(calibrate, monkeypatch, tmp_path):
    """Both arms, stages and splits, every seed another row; kept, and read again."""
    monkeypatch.setattr(calibrate, "POPULATION_SEEDS", 2)
    monkeypatch.setattr(calibrate, "STAGES", {"short": 1, "long": 3})
    hits = calibrate.load_population(tmp_path / "kept")
    assert len(hits) == 8
    assert {value.shape for value in hits.values()} == {(2, 2000)}
    rows = [row.tobytes() for value in hits.values() for row in value]
    assert len(set(rows)) == 16
    monkeypatch.setattr(calibrate, "train_population", None)
    again = calibrate.load_population(tmp_path / "kept")
    assert all((again[name] == hits[name]).all() for name in hits)


@pytest.mark.slow
def test_a_real_study_goes_from_logs_to_verdicts(calibrate, monkeypatch):
    """Two claims over paired seeds, each with its word."""
    monkeypatch.setattr(calibrate, "STUDY_SEEDS", range(101, 103))
    monkeypatch.setattr(calibrate, "STUDY_EPOCHS", 2)
    study = calibrate.real_study(0)
    assert [(effect.n_seeds, effect.n_sessions) for effect, _ in study] == [(2, 1000)] * 2
    assert {word for _, word in study} <= {"helps", "hurts", "no effect", "not enough runs"}
    printed = calibrate.about_real([study, study])
    assert printed.count("\n") == 5
    assert "| any of them | " in printed
