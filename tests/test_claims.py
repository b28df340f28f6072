"""What a recipe may claim, and what it claims where it says nothing."""

import re

import pytest

from study.claims import Claim, claims_from

ARMS = ("S-", "S+ item", "control")
ABOVE = {"arm": "S+ item", "than": "S-"}


def test_without_claims_each_arm_is_claimed_to_be_above_the_first():
    """By the metric that the paper reports, on test."""
    assert claims_from([], ARMS) == (Claim(arm="S+ item", than="S-"), Claim(arm="control", than="S-"))
    assert Claim(arm="S+ item", than="S-").metric == "test/hr_at_10"


@pytest.mark.parametrize(
    ("metric", "measure", "k"),
    [("test/hr_at_1", "sampled", 1), ("test/full_hr_at_10", "full", 10), ("test/full_new_hr_at_20", "full_new", 20)],
)
def test_a_metric_names_the_measure_and_k(metric, measure, k):
    """And the claim gives the same name back."""
    (claim,) = claims_from([{"arm": "S+ item", "than": "S-", "metric": metric}], ARMS)
    assert (claim.measure, claim.k, claim.metric) == (measure, k, metric)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([{"arm": "S+", "than": "S-"}], "claim 1: arm is 'S+', expected one of the arms 'S-', 'S+ item', 'control'"),
        ([{"arm": "control", "than": "no"}], "claim 1: than is 'no', expected one of the arms 'S-', 'S+ item', 'con"),
        ([{"arm": "S-", "than": "S-"}], "claim 1 compares arm 'S-' with itself, expected two arms"),
        ([{"arm": "S-"}], "claim 1 is {'arm': 'S-'}, expected { arm = ..., than = ..., metric = ... }"),
        (["S+ > S-"], "claim 1 is 'S+ > S-', expected { arm = ..., than = ..., metric = ... }"),
        ([{"arm": "S+ item", "than": "S-", "metrik": 1}], "claim 1 is {'arm': 'S+ item', 'than': 'S-', 'metrik': 1}, "),
        ([ABOVE, ABOVE | {"beyond": 3}], "claim 2: beyond is 3, expected { arm = ..., than = ... }"),
        ([ABOVE, ABOVE | {"beyond": {"arm": "no", "than": "S-"}}], "claim 2: beyond: arm is 'no', expected one of the"),
        ([ABOVE | {"beyond": {"arm": "control", "than": "S-"}}], "claim 1 has a beyond, expected two arms alone"),
        (
            [ABOVE, ABOVE | {"beyond": {"arm": "control", "than": "S-"}}],
            "claim 2: beyond has the same than, so both differ by 'S+ item' less 'control' alone; expected that as a ",
        ),
        (
            [ABOVE, ABOVE | {"beyond": {"arm": "S+ item", "than": "control"}}],
            "claim 2: beyond has the same arm, so both differ by 'control' less 'S-' alone; expected that as a claim ",
        ),
        ([{"arm": "S+ item", "than": "S-"}] * 2, "two claims are the same, expected each once"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused(claims, message):
    """By its number, with what was found and what was expected."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        claims_from(claims, ARMS)


@pytest.mark.parametrize(
    "metric", ["val/hr_at_10", "test/hr_at_3", "test/ndcg_at_10", "hr_at_10", 10, "test/hr_at_10 "]
)
def test_a_claim_is_about_a_hit_rate_on_test(metric):
    """Validation chooses, so it can confirm nothing."""
    with pytest.raises(ValueError, match=r"claim 1: metric is .* expected test/hr_at_K, test/full_hr_at_K or"):
        claims_from([{"arm": "S+ item", "than": "S-", "metric": metric}], ARMS)


def test_a_claim_may_be_that_one_difference_is_beyond_another():
    """Named with both, and written out as it was declared."""
    table = ABOVE | {"metric": "test/full_hr_at_1", "beyond": {"arm": "S+ 10%", "than": "S- 10%"}}
    _, claim = claims_from([ABOVE, table], (*ARMS, "S- 10%", "S+ 10%"))
    assert claim.arms == ("S+ item", "S-", "S+ 10%", "S- 10%")
    assert claim.named(str.upper) == "S+ ITEM less S-, beyond S+ 10% less S- 10%"
    assert claim.table == table
