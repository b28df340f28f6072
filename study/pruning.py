"""Ends cells of a search early that are behind: by the median of their arm at the same epoch."""

import optuna
from optuna.trial import TrialState

from study.space import Recipe

FIRST_CELLS = 4
"""Of an arm, that are never ended early: a median of fewer says little."""
FIRST_EPOCHS = 2
"""Of a cell: all models are poor then."""


def is_behind(recipe: Recipe, study: optuna.Study, number: int) -> bool:
    """Whether a trial's best epoch so far is below the median of its arm's trials at this epoch.

    Like with like: another arm may learn more slowly and go further.

    Args:
        recipe: The study's. Exhaustive ones, so confirming runs too, never end a cell early.
        study: With the trials.
        number: Of the trial that has just reported an epoch.
    """
    if recipe.pruner != "median":
        return False
    trials = study.get_trials(deepcopy=False)
    arm = trials[number].user_attrs["arm"]
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    seen = optuna.create_study(direction="maximize")
    seen.add_trials(t for t in trials if t.state in ended and t.user_attrs.get("arm") == arm)
    # Its steps count from 0.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_CELLS, n_warmup_steps=FIRST_EPOCHS + 1)
    return bool(pruner.prune(seen, trials[number]))
