"""What a study's trials show, on studies made by hand whose answers can be worked out."""

import copy
from math import sqrt

import pytest
from fake_study import AWKWARD, SESSIONS, FakeStudy, metrics_at, mixed_study
from optuna.trial import TrialState

from skiprec.errors import StudyError
from study.analysis import PAPER_TEST, analyse, done_cells, margin, points, rate, trials_table


def two_cells(minus, plus, **changes):
    """A study of one S- cell and one S+ cell."""
    fake = FakeStudy(**changes)
    fake.add(minus, arm="S-", fixed={"alpha": 0.0}, learning_rate=0.001)
    fake.add(plus, arm="S+ item", alpha=0.5, learning_rate=0.001)
    return fake


def row(found, architecture, label):
    """A row of Table 1."""
    return next(r for r in found.table1 if (r.architecture, r.label) == (architecture, label))


def test_the_margin_is_that_of_a_binomial():
    """1.96 standard errors; the variances of a difference add."""
    assert margin([0.5], 2500) == pytest.approx(1.96 * 0.5 / 50)
    assert margin([0.5, 0.2], 100) == pytest.approx(1.96 * sqrt(0.25 + 0.16) / 10)


def test_a_difference_within_the_margin_is_not_shown():
    """+1 point where the margin of the difference is 2.8."""
    found = analyse(two_cells(0.45, 0.46).study)
    (comparison,) = found.verdict.comparisons
    assert comparison.difference == pytest.approx(0.01)
    assert comparison.margin == pytest.approx(1.96 * sqrt((0.45 * 0.55 + 0.46 * 0.54) / SESSIONS))
    assert comparison.outcome == "no difference shown"
    assert found.verdict.answer == "Not shown"
    assert found.verdict.because == (
        "Unidirectional: the best S+ cell has .4600, the best S- cell .4500, +1.0 points with a 95% margin of 2.8: "
        "no difference shown."
    )


def test_a_difference_at_the_margin_is_not_shown_and_one_beyond_it_is():
    """The border belongs to "not shown"."""
    base = 0.45
    within = analyse(two_cells(base, base + 0.0276).study).verdict.comparisons[0]
    beyond = analyse(two_cells(base, base + 0.0280).study).verdict.comparisons[0]
    assert within.margin == pytest.approx(0.0277, abs=1e-4)
    assert (within.outcome, beyond.outcome) == ("no difference shown", "higher")


def test_s_plus_above_s_minus_without_a_control_is_a_perhaps():
    """No control, so nothing is said of the session's own skips."""
    assert analyse(two_cells(0.45, 0.50).study).verdict.answer == (
        "Perhaps: S+ is above S-, but no control was tried beside it"
    )


def test_s_plus_that_does_not_beat_its_control_is_not_shown_to_help():
    """Other sessions' skips do as well as the own ones."""
    fake = two_cells(0.45, 0.50)
    fake.add(0.495, arm="control", fixed={"negative_scope": "other_session"}, alpha=0.5, learning_rate=0.001)
    found = analyse(fake.study)
    assert found.verdict.answer == "Not shown: S+ is above S-, but not above its control"
    assert "the best control (other_session, item) has .4950" in " ".join(found.verdict.remarks)


def test_s_plus_above_s_minus_and_its_control_is_still_a_perhaps():
    """Single runs suggest, and do not show."""
    fake = two_cells(0.45, 0.50)
    fake.add(0.45, arm="control", fixed={"negative_scope": "random"}, alpha=0.5, learning_rate=0.001)
    assert analyse(fake.study).verdict.answer == "Perhaps: S+ is above S- and its control, in single runs"


def test_s_plus_below_s_minus_is_said():
    """By five points, against a margin of some three."""
    assert analyse(two_cells(0.50, 0.45).study).verdict.answer == "Not shown: S+ is below S-"


def test_models_below_session_popular_say_nothing_about_skips():
    """S+ is ten points above S-, and both below .39."""
    found = analyse(two_cells(0.20, 0.30).study)
    assert found.verdict.answer == "Not shown: no model here is above session-popular"
    assert "9.0 points below the strongest baseline" in found.verdict.remarks[0]
    assert "learnt nothing worth having" in found.verdict.remarks[0]


def test_an_architecture_below_the_baseline_does_not_count_in_the_answer():
    """Its models differ by ten points, and have learnt nothing."""
    fake = two_cells(0.45, 0.46)
    for alpha, value in ((0.0, 0.20), (0.5, 0.30)):
        fake.add(value, arm="bi", fixed={"architecture": "bidirectional", "alpha": alpha}, learning_rate=0.001)
    found = analyse(fake.study)
    assert found.verdict.answer == "Not shown"
    assert "Bidirectional: no model is above session-popular" in " ".join(found.verdict.remarks)


def test_a_best_model_within_the_margin_of_the_baseline_is_not_shown_to_have_learnt():
    """One point above .39, with a margin of 2.7."""
    found = analyse(two_cells(0.39, 0.40).study)
    assert "within the margin of 2.7: not shown to have learnt more" in found.verdict.remarks[0]


def test_without_s_minus_the_study_cannot_say():
    """One S+ cell alone is still a report."""
    fake = FakeStudy()
    fake.add(0.45, alpha=0.5, learning_rate=0.001)
    found = analyse(fake.study)
    assert found.verdict.answer == "This study cannot say"
    assert found.verdict.comparisons == ()
    assert found.varying == ()
    assert found.repeats is None
    assert found.importance.reason == "the study has 1 complete S+ cells, and at least 10 are needed"


def test_the_numbers_of_cells_are_said_with_whom_they_favour():
    """28 cells against 4 in the mixed study."""
    remarks = " ".join(analyse(mixed_study().study).verdict.remarks)
    assert "Unidirectional: S+ is the best of 28 cells, S- of 4 cells." in remarks
    assert "which favours S+ here" in remarks
    assert "Bidirectional: S+ is the best of 1 cell, S- of 1 cell. " in remarks


def test_table1_has_the_papers_rows_and_the_controls_below_them():
    """In the paper's order; rows that the study has not are there, empty."""
    found = analyse(mixed_study().study)
    assert [(r.architecture, r.label, len(r.cells)) for r in found.table1] == [
        ("unidirectional", "S-", 4),
        ("unidirectional", "S+ session", 18),
        ("unidirectional", "S+ item", 10),
        ("unidirectional", "control other_session, item", 1),
        ("bidirectional", "S-", 1),
        ("bidirectional", "S+ session", 0),
        ("bidirectional", "S+ item", 1),
    ]
    assert row(found, "bidirectional", "S+ session").best is None
    assert row(found, "bidirectional", "S+ session").paper == PAPER_TEST["bidirectional", "S+ session"]
    assert row(found, "unidirectional", "control other_session, item").paper is None


def test_the_best_of_a_row_has_its_highest_value():
    """S+ item: .46 at the lowest rate, and .004 more for alpha 1 (the third)."""
    found = analyse(mixed_study().study)
    best = row(found, "unidirectional", "S+ item").best
    assert best.value == pytest.approx(0.464)
    assert (best.config["alpha"], best.config["learning_rate"]) == (1.0, 0.0005)
    assert found.best is best


def test_of_equal_cells_the_earliest_is_the_best():
    """So a report made again names the same one."""
    fake = FakeStudy()
    for alpha in (0.25, 0.5, 1.0):
        fake.add(0.45, alpha=alpha, learning_rate=0.001)
    assert analyse(fake.study).best.trial == 0


def test_settings_without_effect_do_not_vary():
    """The context of an S- cell is there on paper only; alpha/beta is an axis where both vary."""
    found = analyse(two_cells(0.45, 0.46).study)
    assert found.varying == ("alpha",)
    assert "context" not in found.cells[0].settings
    assert "alpha/beta" in analyse(mixed_study().study).varying


def test_counts_tell_failures_from_interruptions():
    """Three attempts failed, one was stopped; one cell is complete after a failure, one was set aside."""
    counts = analyse(mixed_study(planned=60).study).counts
    assert (counts.planned, counts.complete, counts.failed, counts.waiting) == (60, 35, 1, 24)
    assert (counts.failed_attempts, counts.interrupted_attempts, counts.recovered) == (3, 1, 1)
    assert not counts.is_finished
    assert analyse(mixed_study().study).counts.is_finished


def test_a_cell_that_has_attempts_left_is_waiting():
    """One failure of two: not set aside, and listed as such; one that would fail again is set aside at once."""
    fake = two_cells(0.45, 0.46)
    fake.add(arm="S-", error="out of memory", fixed={"alpha": 0.0}, learning_rate=0.005)
    found = analyse(fake.study)
    assert (found.counts.waiting, found.counts.failed) == (1, 0)
    assert [(f.status, f.attempts, f.error) for f in found.failures] == [("to be tried again", 1, "out of memory")]


def test_running_and_retried_cells_are_not_failures_yet():
    """A failed cell that runs again says so; a running one that never failed is not in the list."""
    fake = two_cells(0.45, 0.46)
    cell = fake.add(arm="S-", error="disk", fixed={"alpha": 0.0}, learning_rate=0.005)
    fake.add(arm="S-", cell=cell, attempt=2, state=TrialState.RUNNING, fixed={"alpha": 0.0}, learning_rate=0.005)
    fake.add(arm="S-", state=TrialState.RUNNING, fixed={"alpha": 0.0}, learning_rate=0.0005)
    found = analyse(fake.study)
    assert found.counts.running == 2
    assert [f.status for f in found.failures] == ["running again"]


def test_an_unfinished_study_says_so_in_its_answer():
    """Whatever the answer is."""
    assert analyse(two_cells(0.45, 0.46, planned=9).study).verdict.answer == "So far: not shown"


def test_a_study_without_a_complete_cell_is_refused():
    """With how many cells stand where."""
    fake = FakeStudy(planned=3)
    fake.add(error="boom", alpha=0.5, learning_rate=0.001)
    with pytest.raises(StudyError, match=r"'demo-0123abcd': none of its 3 cells is complete \(0 running, 3 waiting"):
        analyse(fake.study)


def test_same_experiments_are_grouped_by_ratio():
    """.25/.25 and .5/.5 are one experiment; the same with another learning rate is another."""
    fake = FakeStudy()
    fake.add(0.45, alpha=0.25, beta=0.25, learning_rate=0.001, seed=1)
    fake.add(0.47, alpha=0.5, beta=0.5, learning_rate=0.001, seed=1001)
    fake.add(0.40, alpha=0.5, beta=0.5, learning_rate=0.005, seed=1)
    found = analyse(fake.study).repeats
    assert [[c.value for c in group] for group in found.groups] == [[0.45, 0.47]]
    assert found.standard_deviation == pytest.approx(0.02 / sqrt(2))
    assert found.largest_range == pytest.approx(0.02)


def test_the_deviation_is_pooled_by_degrees_of_freedom():
    """Two pairs, .02 and .04 apart: variances 2e-4 and 8e-4, mean 5e-4."""
    fake = FakeStudy()
    for rate_, gap in ((0.001, 0.02), (0.005, 0.04)):
        for seed, value in ((1, 0.45), (2, 0.45 + gap)):
            fake.add(value, alpha=0.5, learning_rate=rate_, seed=seed)
    assert analyse(fake.study).repeats.standard_deviation == pytest.approx(sqrt(5e-4))


def test_importance_finds_the_setting_that_decides():
    """The learning rate alone moves the value; alpha does not."""
    fake = FakeStudy()
    for alpha in (0.25, 0.5, 1.0):
        for learning_rate, value in ((0.0005, 0.46), (0.001, 0.42), (0.005, 0.40)):
            for context in ("session", "item"):
                fake.add(value, fixed={"context": context}, alpha=alpha, learning_rate=learning_rate)
    found = analyse(fake.study).importance
    assert found.n_trials == 18
    assert set(found.shares) == {"alpha", "learning_rate", "context"}
    assert found.shares["learning_rate"] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)


def test_importance_is_not_said_where_all_values_are_equal():
    """Then the best tenth is everything."""
    fake = FakeStudy()
    for alpha in (0.25, 0.5, 1.0):
        for learning_rate in (0.0005, 0.001, 0.005, 0.01):
            fake.add(0.45, alpha=alpha, learning_rate=learning_rate)
    assert analyse(fake.study).importance.reason == "the best S+ cells are no better than the worst"


def test_importance_is_not_said_where_nothing_varies():
    """Twelve cells that differ by their seed alone."""
    fake = FakeStudy()
    for seed in range(12):
        fake.add(0.45 + seed / 1000, alpha=0.5, learning_rate=0.001, seed=seed)
    assert analyse(fake.study).importance.reason == "no setting differs between the S+ cells"


def test_the_trials_table_has_every_attempt():
    """Complete or not, with the settings that vary and those that are always listed."""
    trials = analyse(mixed_study().study).trials
    assert len(trials) == 39
    assert trials["state"].value_counts().to_dict() == {"COMPLETE": 35, "FAIL": 4}
    assert list(trials.columns[:12]) == [
        "number", "state", "cell", "arm", "attempt", "seed", "architecture", "context", "alpha", "beta",
        "learning_rate", "negative_scope",
    ]  # fmt: skip
    assert trials["val/hr_at_10"].count() == 35
    assert trials["interrupted"].sum() == 1
    assert "dropout" not in trials


def test_costs_are_summed_by_arm():
    """4 epochs, 40 + 8 seconds a cell; the awkward arm has two cells of three."""
    arms = {arm.arm: arm for arm in analyse(mixed_study().study).arms}
    assert (len(arms[AWKWARD].cells), arms[AWKWARD].planned) == (2, 3)
    assert (arms["S-"].epochs, arms["S-"].train_seconds, arms["S-"].eval_seconds) == (16, 160.0, 32.0)


def test_a_cell_counts_once_by_its_first_complete_trial():
    """A cell that two workers finished is one cell."""
    fake = two_cells(0.45, 0.46)
    cell = fake.add(0.44, alpha=0.25, learning_rate=0.001)
    fake.add(0.48, cell=cell, attempt=2, alpha=0.25, learning_rate=0.001)
    found = analyse(fake.study)
    assert [c.value for c in found.cells] == [0.45, 0.46, 0.44]


def test_a_metric_that_is_missing_is_a_dash():
    """A log whose held-out targets were all heard has no skipped group."""
    metrics = {k: v for k, v in metrics_at(0.45).items() if "full" not in k}
    fake = FakeStudy()
    fake.add(0.45, arm="S-", fixed={"alpha": 0.0}, metrics=metrics, learning_rate=0.001)
    fake.add(0.46, alpha=0.5, learning_rate=0.001)
    assert "full measures" not in " ".join(analyse(fake.study).verdict.remarks)


def test_rates_and_differences_read_as_the_papers():
    """No leading zero; a dash for what there is not; points with their sign."""
    assert [rate(x) for x in (0.47123, 1.0, -0.05, None, float("nan"))] == [".4712", "1.0000", "-.0500", "-", "-"]
    assert (points(0.0123), points(-0.004)) == ("+1.2", "-0.4")


def test_a_result_kept_as_single_attributes_is_read_alike():
    """As studies made before results were kept in one have it."""
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    (new,) = fake.study.get_trials()
    old = copy.deepcopy(new)
    old.user_attrs |= old.user_attrs.pop("result")
    assert "result" not in old.user_attrs
    assert done_cells([old]) == done_cells([new])
    assert trials_table([old]).equals(trials_table([new]))


def test_only_a_finished_study_has_taken_its_time():
    """Two cells of 50 s, of which 20 s are of both; while a third is planned it is not over."""
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    fake.add(0.45, at=30.0, alpha=1.0, learning_rate=0.001)
    assert analyse(fake.study).seconds_taken == 80.0
    fake.planned = 3
    fake.add(0.45, cell="S+ item/1", alpha=1.0, learning_rate=0.001)
    assert analyse(fake.study).seconds_taken is None
