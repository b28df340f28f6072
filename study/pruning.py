"""Ends cells of a search early that are behind: by the median of their arm at the same epoch."""

import optuna
from optuna.trial import TrialState

from study.queue import FIRST_AGAIN
from study.space import Recipe

FIRST_CELLS = 4
"""Of an arm, that must have come to an epoch before another is ended there: a median of fewer says little."""
FIRST_EPOCHS = 2
"""Of a cell: all models are poor then."""


def is_behind(recipe: Recipe, study: optuna.Study, number: int) -> bool:
    """Whether a trial's best epoch so far is below the median of its arm's complete trials at this epoch.

    Like with like: another arm may learn more slowly and go further.

    Args:
        recipe: The study's. Exhaustive ones, so confirming runs too, never end a cell early.
        study: With the trials.
        number: Of the trial that has just reported an epoch.
    """
    if recipe.pruner != "median":
        return False
    trials = study.get_trials(deepcopy=False)
    if trials[number].user_attrs.get(FIRST_AGAIN):  # a repeat shows chance: if only lucky ones went on, it would not
        return False
    arm = trials[number].user_attrs["arm"]
    seen = optuna.create_study(direction="maximize")
    seen.add_trials(t for t in trials if t.state == TrialState.COMPLETE and t.user_attrs.get("arm") == arm)
    # Its steps count from 0.
    settings = {"n_startup_trials": FIRST_CELLS, "n_min_trials": FIRST_CELLS, "n_warmup_steps": FIRST_EPOCHS + 1}
    pruner = optuna.pruners.MedianPruner(**settings)
    return bool(pruner.prune(seen, trials[number]))
