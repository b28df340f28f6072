"""What proposes the points of a searching study: each arm by its own trials alone, so that none gets better ones."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from skiprec.config import Value
from skiprec.seeds import derive_seed
from study.queue import FIRST_AGAIN
from study.space import Recipe, suggest

MOST_AT_RANDOM = 10
"""Points that an arm tries before TPE proposes; a third of them where an arm has few."""


class WithinArm(optuna.samplers.BaseSampler):
    """Proposes one trial's point as a stock sampler would in a study that holds the trials of its arm and no others.

    By itself that would learn from all of them, and crowd the points of every arm around the best of the leading one.

    Args:
        recipe: The study's.
        number: The trial's. It seeds the sampler: two workers with one seed would propose the same first points, and so
            would a study that is continued.
    """

    def __init__(self, recipe: Recipe, number: int) -> None:
        self.recipe = recipe
        self.seed = derive_seed(recipe.name, recipe.seeds[0], number) % 2**32
        self._point: dict[str, Value] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: the arm is not known before the trial is claimed."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Value:
        """A setting of the point, which is chosen whole when the first one is asked for."""
        if self._point is None:
            self._point = self._propose(study, trial)
        return self._point[param_name]

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Value]:
        """A whole point; that of the arm's first complete trial where this one is to repeat it.

        Not that of the best: what was picked for its value was lucky, and its repeats would show more than chance does.
        """
        arm = trial.user_attrs["arm"]
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        own = [t for t in study.get_trials(deepcopy=False, states=states) if t.user_attrs.get("arm") == arm]
        complete = [t for t in own if t.state == TrialState.COMPLETE]
        if complete and trial.user_attrs.get(FIRST_AGAIN):
            return min(complete, key=lambda t: t.number).params
        seen = optuna.create_study(direction="maximize", sampler=stock_sampler(self.recipe, self.seed))
        seen.add_trials(t for t in own if t.number != trial.number)
        return suggest(self.recipe, arm, seen.ask())


def stock_sampler(recipe: Recipe, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of a recipe, for one arm."""
    if recipe.sampler == "tpe":
        at_random = min(MOST_AT_RANDOM, max(1, recipe.cells_per_arm // 3))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=at_random)
    return optuna.samplers.RandomSampler(seed=seed)
