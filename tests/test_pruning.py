"""Cells of a search that are behind: compared with their own arm, at the same epoch, and never in a grid."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from study.pruning import FIRST_CELLS, FIRST_EPOCHS, is_behind
from study.space import Recipe

ARMS = {"a": {"alpha": 0.0}, "b": {"alpha": {"low": 0.1, "high": 1.0}}}


def recipe(**changes):
    return Recipe(**({"name": "r", "sampler": "tpe", "cells_per_arm": 9, "pruner": "median", "arms": ARMS} | changes))


def study_with(arm, *curves):
    """A trial at work with the last curve, after complete ones of the arm with the others."""
    study = optuna.create_study(direction="maximize")
    for i, curve in enumerate(curves):
        is_last = i == len(curves) - 1
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING if is_last else TrialState.COMPLETE,
                value=None if is_last else max(curve),
                intermediate_values=dict(enumerate(curve, start=1)),
                user_attrs={"arm": arm},
            )
        )
    return study


GOOD = [[0.1, 0.2, 0.3, 0.4, 0.5]] * FIRST_CELLS


@pytest.mark.parametrize(
    ("curve", "behind"),
    [
        ([0.1, 0.2, 0.29], True),
        ([0.1, 0.2, 0.31], False),
        ([0.1, 0.2, 0.30, 0.31], True),  # by what the others had at this epoch
        ([0.0, 0.0], False),  # too early to say
    ],
)
def test_a_cell_is_behind_where_it_is_below_the_median_at_its_epoch(curve, behind):
    """All others have .3 after three epochs, and .4 after four."""
    assert len(curve) != 2 or FIRST_EPOCHS == 2
    assert is_behind(recipe(), study_with("a", *GOOD, curve), FIRST_CELLS) == behind


def test_the_first_cells_of_an_arm_and_other_arms_are_no_measure():
    """However good the others are."""
    bad = [0.0, 0.0, 0.01]
    assert not is_behind(recipe(), study_with("a", *GOOD[1:], bad), FIRST_CELLS - 1)
    study = study_with("a", *GOOD, bad)
    study.add_trial(
        create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(bad, 1)), user_attrs={"arm": "b"})
    )
    assert is_behind(recipe(), study, FIRST_CELLS)
    assert not is_behind(recipe(), study, FIRST_CELLS + 1)


def test_nothing_is_ended_early_where_the_recipe_does_not_say_so():
    """Nor may a grid say so."""
    assert not is_behind(recipe(pruner="none"), study_with("a", *GOOD, [0.0, 0.0, 0.0]), FIRST_CELLS)
    with pytest.raises(ValueError, match="pruner is 'median' with sampler 'exhaustive', expected 'none'"):
        recipe(sampler="exhaustive", cells_per_arm=0, arms={"a": {"alpha": 0.0}})
