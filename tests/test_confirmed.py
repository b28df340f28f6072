"""What confirming runs show, on ranks made by hand: claims, groups, the paper's table, and the answer in words."""

import math

import numpy as np
import pytest
from fake_study import AWKWARD, CONTROL, FakeConfirming, confirming_study

from study.analysis import PAPER_TEST, answer, confirmed
from study.analysis._table1 import difference_of_gains, relative_gain
from study.analysis._words import one_line, shown
from study.claims import Claim
from study.statistics import crossed_effect, difference, holm

MINUS = {"alpha": 0.0}
PLUS = {"alpha": 0.5}
OTHER = {"alpha": 0.5, "negative_scope": "other_session"}
BEATS_S_MINUS = {"arm": "S+", "than": "S-"}
BEATS_CONTROL = {"arm": "S+", "than": CONTROL}


def three_arms(rates, claims=(BEATS_S_MINUS, BEATS_CONTROL), **more):
    """S-, S+ and a control with these hit rates, every run complete."""
    return FakeConfirming({"S-": MINUS, "S+": PLUS, CONTROL: OTHER}, claims, rates=rates, **more).run_all()


OTHERS = "random tracks and in-batch tracks"
CONTROLS = {f"control: {scope}": {"alpha": 0.5, "negative_scope": scope} for scope in ("random", "in_batch")}


def found_in(runs):
    return confirmed(runs.study, runs.read_ranks)


@pytest.fixture(scope="module")
def whole():
    """The five arms of the mixed study, and their runs."""
    runs = confirming_study().run_all()
    return found_in(runs), runs


def hits(runs, arm, measure="sampled", k=10):
    """Straight from the tables: a row a seed."""
    found = [t for t in runs.study.trials if t.user_attrs["arm"] == arm]
    ranks = [runs.tables[t.user_attrs["run_id"]][measure] for t in sorted(found, key=lambda t: t.user_attrs["seed"])]
    return np.stack(ranks) <= k


def test_a_claims_effect_is_the_paired_difference_of_its_arms_hits(whole):
    """The mean of hit less hit, over seeds and the sessions that the measure asks about."""
    found, runs = whole
    tested = found.claims[2]
    assert tested.claim == Claim(arm="S+ session", than="S-", measure="full")
    gap = hits(runs, "S+ session", "full").mean() - hits(runs, "S-", "full").mean()
    assert tested.effect.estimate == pytest.approx(gap, abs=1e-6)
    new = ~next(iter(runs.tables.values()))["repeated"].to_numpy()
    gap = hits(runs, "S+ session", "full_new")[:, new].mean() - hits(runs, "S-", "full_new")[:, new].mean()
    assert tested.effects["full_new"][10].estimate == pytest.approx(gap, abs=1e-6)
    assert (found.n_sessions, found.n_new) == (1200, 800)


def test_p_values_are_corrected_over_the_declared_family(whole):
    """Each claim by its own measure; by another one, all by that one."""
    found, _ = whole
    declared = [t.effects[t.claim.measure][t.claim.k].p for t in found.claims]
    assert [t.adjusted_p[t.claim.measure] for t in found.claims] == pytest.approx(holm(declared))
    by_full = holm([t.effects["full"][t.claim.k].p for t in found.claims])
    assert found.claims[0].adjusted_p["full"] == pytest.approx(by_full[0])


def test_groups_divide_the_sessions_and_their_differences_average_to_the_whole(whole):
    """Weighted by their sizes, within each way to divide them."""
    tested = whole[0].claims[0]
    for grouping in ("target", "target's track", "context type", "popularity", "session length"):
        members = [g for g in tested.groups if g.grouping == grouping]
        assert sum(g.n_sessions for g in members) == 1200
        total = sum(g.n_sessions * g.effect.estimate for g in members) / 1200
        assert total == pytest.approx(tested.effect.estimate, abs=1e-6)
        assert all(g.ours - g.other == pytest.approx(g.effect.estimate, abs=1e-6) for g in members)


def test_the_skip_gap_is_heard_less_skipped(whole):
    """Of an arm, and of a claim's difference; a quarter of the targets is skipped."""
    found, runs = whole
    skipped = np.arange(1200) % 4 == 0
    gaps = {a: hits(runs, a)[:, ~skipped].mean() - hits(runs, a)[:, skipped].mean() for a in ("S-", "S+ item")}
    assert found.arm("S-").skip_gap.estimate == pytest.approx(gaps["S-"], abs=1e-6)
    assert found.claims[0].skip_gap.estimate == pytest.approx(gaps["S+ item"] - gaps["S-"], abs=1e-6)


def test_small_groups_are_left_out():
    """Forty sessions: none of their groups has fifty."""
    found = found_in(three_arms({}, sessions=40))
    assert found.claims[0].groups == ()
    assert found.arm("S-").skip_gap is None


def test_a_relative_gain_has_the_spread_of_the_ratio():
    """The delta method beside a bootstrap over sessions, of two runs that hardly differ by their seed."""
    random = np.random.default_rng(1)
    other = np.repeat(random.random((1, 4000)) < 0.3, 2, axis=0)
    ours = other ^ (random.random((2, 4000)) < 0.05)
    gain = relative_gain(ours, other)
    assert gain.estimate == pytest.approx(ours.mean() / other.mean() - 1)
    drawn = random.integers(4000, size=(2000, 4000))
    ratios = ours.mean(0)[drawn].mean(1) / other.mean(0)[drawn].mean(1)
    assert gain.standard_error == pytest.approx(ratios.std(), rel=0.15)
    assert gain.low + gain.high == pytest.approx(2 * gain.estimate)


def test_a_difference_of_gains_is_that_and_is_surer_than_two_apart():
    """The same hits at both ends differ by exactly 0; others by the difference of the two gains."""
    random = np.random.default_rng(2)
    other, ours = random.random((2, 5, 500)) < 0.4
    first, last = (ours, other), (ours | (random.random((5, 500)) < 0.1), other)
    assert difference_of_gains(first, first).high == 0
    gap = difference_of_gains(first, last)
    assert gap.estimate == pytest.approx(relative_gain(*first).estimate - relative_gain(*last).estimate)
    assert gap.high - gap.low < sum(g.high - g.low for g in (relative_gain(*first), relative_gain(*last)))


def test_a_gain_over_nothing_is_not_a_number():
    """The other arm never hits: no error, and no interval."""
    gain = relative_gain(np.ones((2, 9), bool), np.zeros((2, 9), bool))
    assert math.isinf(gain.estimate)
    assert not math.isfinite(gain.low)


def paper_arms(rates):
    """An arm for each column of the paper, with a rate each."""
    settings = {
        f"{label} {a}": {"architecture": a, "alpha": 0.0 if label == "S-" else 0.5}
        | ({"context": label.split()[1]} if label != "S-" else {})
        for a, label in PAPER_TEST
    }
    named = {f"{label} {a}": rates.get((a, label), 0.4) for a, label in PAPER_TEST}
    return FakeConfirming(settings, rates=named)


def test_the_papers_table_is_there_where_the_arms_cover_its_columns(whole):
    """Six rows in its order, each with its arm; none where one column has no arm."""
    assert whole[0].paper is None
    rates = {("unidirectional", "S-"): 0.4, ("unidirectional", "S+ item"): 0.5, ("bidirectional", "S-"): 0.3}
    runs = paper_arms(rates).run_all()
    found = found_in(runs)
    assert [(r.architecture, r.label) for r in found.paper.rows] == list(PAPER_TEST)
    item = found.paper.rows[2]
    ratio = hits(runs, "S+ item unidirectional").mean() / hits(runs, "S- unidirectional").mean()
    assert item.gains[10].estimate == pytest.approx(ratio - 1, abs=1e-5)
    assert item.paper_gains[1] == pytest.approx(0.3073 / 0.2821 - 1)
    assert found.paper.rows[0].gains is None


def test_the_papers_observations_are_judged_by_their_intervals():
    """By hand: item far above S- and session with one architecture, the reverse with the other one."""
    rates = {
        ("unidirectional", "S-"): 0.40, ("unidirectional", "S+ session"): 0.40, ("unidirectional", "S+ item"): 0.60,
        ("bidirectional", "S-"): 0.30, ("bidirectional", "S+ session"): 0.30, ("bidirectional", "S+ item"): 0.20,
    }  # fmt: skip
    runs = paper_arms(rates).run_all()
    above, architectures, wanes, item, _ = found_in(runs).paper.observations
    assert [c.outcome for c in above.checks] == ["not shown", "holds", "not shown", "reversed"]
    assert above.verdict == "holds in 1 of 4, the reverse in 1 of 4"
    assert architectures.verdict == "holds"
    assert [c.outcome for c in item.checks] == ["holds", "reversed"]
    assert above.checks[1].paper == pytest.approx(0.5867 - 0.5593)
    # Hits at 1 are a tenth of those at 10 here, so the gap is widest at 20: the paper's is widest at 1.
    assert wanes.verdict == "the reverse holds"
    gaps = [(hits(runs, "S- unidirectional", k=k).mean() - hits(runs, "S- bidirectional", k=k).mean()) for k in (1, 20)]
    assert wanes.checks[0].effect.estimate == pytest.approx(gaps[0] - gaps[1], abs=1e-6)


def test_the_released_codes_negatives_are_what_it_calls_s_plus():
    """Its columns are covered, and the table says that they are misaligned."""
    runs = paper_arms({})
    for arm in runs.settings:
        if arm.startswith("S+"):
            runs.settings[arm]["negative_scope"] = "released"
    again = FakeConfirming(runs.settings).run_all()
    assert found_in(again).paper.is_misaligned
    assert not found_in(paper_arms({}).run_all()).paper.is_misaligned


def test_only_seeds_that_every_arm_has_are_compared():
    """The control lacks the second of five: four pairs are left, and the answer says so."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS, CONTROL: OTHER}, [BEATS_S_MINUS]).run_all(but=[(CONTROL, 1)])
    found = found_in(runs)
    assert found.seeds == (100_001, 100_003, 100_004, 100_005)
    assert found.claims[0].effect.n_seeds == 4
    assert "4 of 5 planned seeds are complete in every arm" in answer(found).warnings[0]


def test_one_seed_gives_rates_and_no_verdict():
    """Its interval is infinite, which no text shows."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS}, [BEATS_S_MINUS], rates={"S-": 0.2, "S+": 0.8}, seeds=1).run_all()
    found = found_in(runs)
    said = answer(found)
    assert found.claims[0].verdict.word == "not enough runs"
    assert said.headline == "Not settled: S+ may be better or worse than S-."
    assert any(w.startswith("One seed alone") for w in said.warnings)
    assert "inf" not in " ".join((said.figures, said.measures, *said.claims)).replace("infer", "")


def test_nothing_is_said_before_a_seed_is_complete_in_every_arm():
    """Two arms whose runs have no seed in common."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS}, [BEATS_S_MINUS])
    runs.run("S-", 100_001)
    runs.run("S+", 100_002)
    assert found_in(runs) is None
    assert found_in(FakeConfirming({"S-": MINUS, "S+": PLUS}, [BEATS_S_MINUS])) is None


def test_a_claim_about_an_arm_without_runs_is_said_and_still_counts_in_the_family():
    """The other claim's p is doubled, as if both had been tested."""
    runs = FakeConfirming(
        {"S-": MINUS, "S+": PLUS, CONTROL: OTHER}, [BEATS_S_MINUS, BEATS_CONTROL], rates={"S-": 0.45, "S+": 0.452}
    ).run_all(but=[(CONTROL, i) for i in range(5)])
    found = found_in(runs)
    assert found.without_runs == (CONTROL,)
    assert [c.than for c in found.untested] == [CONTROL]
    assert found.claims[0].adjusted_p["sampled"] == pytest.approx(min(1.0, 2 * found.claims[0].effect.p))
    assert f"No confirming run is complete of {CONTROL}: 1 claim could not be tested." in answer(found).warnings


def test_where_the_first_claim_could_not_be_tested_no_other_one_answers():
    """The question was about the first; where none could be tested nothing is said."""
    arms, claims = {"S-": MINUS, "S+": PLUS, CONTROL: OTHER}, [BEATS_CONTROL, BEATS_S_MINUS]
    runs = FakeConfirming(arms, claims, rates={"S+": 0.9}).run_all(but=[(CONTROL, i) for i in range(5)])
    assert answer(found_in(runs)).headline == f"Not settled: S+ against {CONTROL}, claimed first, could not be tested."
    runs = FakeConfirming(arms, claims[:1]).run_all(but=[(CONTROL, i) for i in range(5)])
    assert answer(found_in(runs)).headline == f"Nothing can be said yet: {CONTROL} has no complete run."


def test_arms_with_one_finalist_share_its_runs_and_differ_by_nothing():
    """Read once; a difference of 0; said."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS, "twin": PLUS}, [{"arm": "twin", "than": "S+"}]).run_all()
    found = found_in(runs)
    assert found.claims[0].effect.estimate == 0.0
    assert (found.arm("twin").same_as, found.arm("S+").same_as) == ("S+", None)
    assert len(runs.reads) == len(set(runs.reads)) == 10
    assert [c.arm for c in found.curves] == ["S-", "S+"]
    assert any("chose the same settings" in w for w in answer(found).warnings)


def test_learning_curves_go_as_far_as_every_seed_came():
    """Mean, lowest and highest by epoch; one run stopped after two."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS}, [BEATS_S_MINUS], seeds=2)
    for arm in ("S-", "S+"):
        runs.run(arm, 100_001, curve={1: 0.1, 2: 0.2, 3: 0.3})
        runs.run(arm, 100_002, curve={1: 0.3, 2: 0.6})
    curve = found_in(runs).curves[0]
    assert curve.epochs == (1, 2)
    assert (curve.mean, curve.low, curve.high) == (pytest.approx((0.2, 0.4)), (0.1, 0.2), (0.3, 0.6))


def test_gains_are_over_the_s_minus_arm_of_the_claim_and_of_its_architecture(whole):
    """Not over the awkward arm, which is bidirectional; S- arms have none."""
    found, _ = whole
    assert [(arm.name, arm.over) for arm in found.arms] == [
        ("S-", None), ("S+ session", "S-"), ("S+ item", "S-"), ("other skips", "S-"), (AWKWARD, None),
    ]  # fmt: skip
    two = {"S- 10%": MINUS | {"session_share": 0.1}, "S- all": MINUS, "S+ all": PLUS}
    runs = FakeConfirming(two, [{"arm": "S+ all", "than": "S- all"}]).run_all()
    assert found_in(runs).arm("S+ all").over == "S- all"


@pytest.mark.parametrize(
    ("rates", "headline"),
    [
        (
            {"S-": 0.40, "S+": 0.60, CONTROL: 0.40},
            f"Not shown to be due to these skips: S+ beats S-, but was not to be tested against {OTHERS}.",
        ),
        (
            {"S-": 0.40, "S+": 0.60, CONTROL: 0.60},
            f"Not shown to be due to these skips: S+ beats S-, but is not shown to beat {CONTROL}.",
        ),
        ({"S-": 0.60, "S+": 0.40, CONTROL: 0.40}, "No: S+ is worse than S-."),
        ({"S-": 0.40, "S+": 0.40, CONTROL: 0.40}, "No: S+ and S- differ by no more than 0.4 points."),
        ({"S-": 0.60, "S+": 0.40, CONTROL: 0.60}, f"No: S+ is worse than S-, and than {CONTROL}."),
        (
            {"S-": 0.40, "S+": 0.40, CONTROL: 0.60},
            f"No: S+ and S- differ by no more than 0.4 points; S+ is worse than {CONTROL}.",
        ),
    ],
)
def test_the_first_sentence_says_what_the_claims_come_to(rates, headline):
    """Above S- and the control; not above the control; below; the very same hits."""
    assert answer(found_in(three_arms(rates))).headline == headline


def test_a_win_over_s_minus_without_a_control_says_what_was_not_asked():
    """And what became of other uses."""
    runs = FakeConfirming(
        {"S-": MINUS, "S+": PLUS, "told": MINUS | {"skip_input": True}},
        [BEATS_S_MINUS, {"arm": "told", "than": "S-"}],
        rates={"S-": 0.4, "S+": 0.6, "told": 0.4},
    ).run_all()
    assert answer(found_in(runs)).headline == (
        "Not shown to be due to these skips: S+ beats S-, but was not to be tested against the skips of other "
        f"sessions, {OTHERS}; no other use of skips is shown to beat S-."
    )


def test_yes_takes_every_control_that_the_method_names():
    """Another session's skips, random and in-batch tracks: beaten all three, or one not shown to be."""
    arms = {"S-": MINUS, "S+": PLUS, CONTROL: OTHER} | CONTROLS
    claims = [{"arm": "S+", "than": arm} for arm in arms if arm != "S+"]
    rates = {"S+": 0.6} | dict.fromkeys(["S-", CONTROL, *CONTROLS], 0.4)
    assert answer(found_in(FakeConfirming(arms, claims, rates=rates).run_all())).headline == (
        "Yes: S+ beats S- and every control."
    )
    rates["control: in_batch"] = 0.6
    assert answer(found_in(FakeConfirming(arms, claims, rates=rates).run_all())).headline == (
        "Not shown to be due to these skips: S+ beats S-, but is not shown to beat control: in_batch."
    )


def test_an_effect_too_small_to_matter_is_hardly_a_yes():
    """Twenty points, where half of all would matter."""
    arms = {"S-": MINUS, "S+": PLUS, CONTROL: OTHER} | CONTROLS
    claims = [{"arm": "S+", "than": arm} for arm in arms if arm != "S+"]
    rates = {"S+": 0.6} | dict.fromkeys(["S-", CONTROL, *CONTROLS], 0.4)
    said = answer(found_in(FakeConfirming(arms, claims, rates=rates, worthwhile=0.5).run_all())).headline
    assert said.startswith("Hardly: S+ beats S- and every control, by ")
    assert said.endswith(" points at most, too little to matter.")


def test_an_arm_above_the_claimed_one_is_said_where_no_claim_compares_them():
    """The control has .6; with a claim between them the claim says it."""
    rates = {"S-": 0.4, "S+": 0.5, CONTROL: 0.6}
    (warning,) = answer(found_in(three_arms(rates, [BEATS_S_MINUS]))).warnings
    assert warning == f"Above S+ (HR@10 .4948) without a claim between the two, so not tested: {CONTROL} (.5915)."
    assert answer(found_in(three_arms(rates))).warnings == ()


def test_one_arm_is_said_to_be_compared_with_nothing():
    """Its rate is all there is."""
    said = answer(found_in(FakeConfirming({"S-": MINUS}, rates={"S-": 0.4}).run_all()))
    assert said.headline == "Nothing was compared: the study has one arm, S-."
    assert said.figures.startswith("Its HR@10 against 1,000 drawn tracks is .3950 (")


GROWS = {"arm": "S+", "than": "S-", "beyond": {"arm": "S+ 10%", "than": "S- 10%"}}


def four_arms(rates):
    """An effect with all the sessions, and with a tenth of them."""
    share = {"session_share": 0.1}
    arms = {"S-": MINUS, "S+": PLUS, "S- 10%": MINUS | share, "S+ 10%": PLUS | share}
    return FakeConfirming(arms, [BEATS_S_MINUS, GROWS], rates=rates).run_all()


def test_a_claim_beyond_is_the_difference_of_two_differences():
    """(.6 - .4) - (.5 - .4), session by session; without groups of its own."""
    runs = four_arms({"S-": 0.4, "S+": 0.6, "S- 10%": 0.4, "S+ 10%": 0.5})
    tested = found_in(runs).claims[1]
    gaps = [hits(runs, a).astype(float) - hits(runs, b) for a, b in (("S+", "S-"), ("S+ 10%", "S- 10%"))]
    same = crossed_effect([(1.0, (gaps[0] - gaps[1]).astype(np.float32))])
    assert tested.effect.estimate == pytest.approx(gaps[0].mean() - gaps[1].mean())
    assert (tested.effect.low, tested.effect.high) == pytest.approx((same.low, same.high))
    assert tested.groups == ()


@pytest.mark.parametrize(
    ("few", "what"),
    [(0.5, "is larger than"), (0.8, "is smaller than"), (0.6, "is within 0.4 points of")],
)
def test_the_headline_says_where_an_effect_is_larger(few, what):
    """Gains of 20 points with all sessions, and of 10, 40 and 20 with a tenth."""
    said = answer(found_in(four_arms({"S-": 0.4, "S+": 0.6, "S- 10%": 0.4, "S+ 10%": few})))
    assert f"; S+ less S- {what} S+ 10% less S- 10%" in said.headline


def test_measures_that_point_in_opposite_directions_are_said_with_why(whole):
    """S+ item is above S- against drawn tracks and below it for new ones; in a claim of its own that is at the top."""
    said = answer(whole[0])
    assert said.measures_disagree
    assert said.headline.endswith("(sampled measure, as declared; another measure says the opposite).")
    assert "two of them point in opposite directions" in said.measures
    assert "nobody played in the session" in said.measures
    alike = answer(found_in(three_arms({"S-": 0.4, "S+": 0.8, CONTROL: 0.4})))
    assert not alike.measures_disagree
    assert "nobody played in the session" not in alike.measures


def test_models_below_a_baseline_are_said_to_be():
    """Session-popular has .39."""
    below = answer(found_in(three_arms({"S-": 0.2, "S+": 0.3, CONTROL: 0.2})))
    assert any("No model here is above the baseline session-popular (HR@10 .3900" in w for w in below.warnings)
    assert answer(found_in(three_arms({"S-": 0.4, "S+": 0.5, CONTROL: 0.4}))).warnings == ()


def test_the_best_arm_is_validations_not_tests():
    """Test says S+, validation says S-."""
    runs = FakeConfirming({"S-": MINUS, "S+": PLUS}, [BEATS_S_MINUS], rates={"S-": 0.3, "S+": 0.6})
    for seed in runs.seeds:
        runs.run("S-", seed, value=0.5)
        runs.run("S+", seed, value=0.4)
    assert found_in(runs).best.name == "S-"


def test_a_name_cannot_turn_the_text_around_it():
    """Lines become one, marks of direction are shown as unknown, text that runs to the left is isolated."""
    assert one_line("a\n b\u202e") == "a b\ufffd"
    assert shown("plain") == "plain"
    assert shown("\u05d0") == "\u2068\u05d0\u2069"


def test_a_measure_asks_about_the_same_sessions_in_both_arms(whole):
    """As `difference` is told: the sessions whose target is new."""
    found, runs = whole
    new = ~next(iter(runs.tables.values()))["repeated"].to_numpy()
    by_hand = difference(hits(runs, "S+ item", "full_new"), hits(runs, "S-", "full_new"), new)
    assert found.claims[0].effects["full_new"][10] == by_hand


def test_a_control_that_could_not_be_tested_counts_as_not_beaten():
    """Of two claims against controls one has no runs: that is no yes."""
    claims = [BEATS_S_MINUS, {"arm": "S+", "than": CONTROL}, {"arm": "S+", "than": "random"}]
    arms = {"S-": MINUS, "S+": PLUS, CONTROL: OTHER, "random": PLUS | {"negative_scope": "random"}}
    runs = FakeConfirming(arms, claims, rates={"S-": 0.4, "S+": 0.6, CONTROL: 0.4, "random": 0.4})
    runs.run_all(but=[("random", i) for i in range(5)])
    assert answer(found_in(runs)).headline.startswith("Not shown to be due to these skips: S+ beats S-, but is not")
