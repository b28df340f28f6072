"""What a searching study proposes: each arm from its own trials alone."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from skiprec.seeds import derive_seed
from study.queue import FIRST_AGAIN
from study.sampler import WithinArm
from study.space import Recipe

RANGE = {"low": 0.01, "high": 1.0}
DOMAIN = FloatDistribution(0.01, 1.0)


def recipe(kind):
    arms = {"a": {"alpha": RANGE, "beta": RANGE}, "b": {"alpha": RANGE, "beta": RANGE}}
    return Recipe(name="r", sampler=kind, cells_per_arm=12, arms=arms)


def study_with(best_at):
    """Twenty trials an arm, each the better the nearer it is to the arm's best point; arm a is far ahead."""
    study = optuna.create_study(direction="maximize")
    for i in range(1, 21):
        for arm, best in best_at.items():
            point = {"alpha": i / 20, "beta": i / 20}
            value = 1 - abs(i / 20 - best) + (arm == "a")
            domains = dict.fromkeys(point, DOMAIN)
            study.add_trial(create_trial(params=point, distributions=domains, value=value, user_attrs={"arm": arm}))
    return study


def ask(trial):
    """For both settings."""
    return trial.suggest_float("alpha", 0.01, 1.0), trial.suggest_float("beta", 0.01, 1.0)


def proposed(study, kind, arm, number, **marks):
    """What a new trial of an arm is given."""
    study.sampler = WithinArm(recipe(kind), number)
    trial = study.ask()
    for name, value in {"arm": arm, **marks}.items():
        trial.set_user_attr(name, value)
    return ask(trial)


def test_an_arm_is_given_what_its_own_trials_alone_would_give():
    """The same as TPE of Optuna in a study that has no other arm, and not what it gives with all of them."""
    found = []
    for number in range(100, 110):
        both, alone = study_with({"a": 0.1, "b": 0.9}), study_with({"b": 0.9})
        seed = derive_seed("r", 1, number) % 2**32
        alone.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        found.append(proposed(both, "tpe", "b", number))
        assert found[-1] == ask(alone.ask())
        both.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        assert found[-1] != ask(both.ask())
    assert len(set(found)) == 10


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_repeat_is_given_its_arms_first_point(kind):
    """Not the best, which was lucky, nor one of the other arm; and a new point where nothing is complete yet."""
    study = study_with({"a": 0.1, "b": 0.9})
    assert proposed(study, kind, "b", 50, **{FIRST_AGAIN: True}) == (0.05, 0.05)
    assert proposed(study, kind, "a", 51, **{FIRST_AGAIN: True}) == (0.05, 0.05)
    empty = optuna.create_study(direction="maximize")
    assert all(0 <= value <= 1 for value in proposed(empty, kind, "a", 52, **{FIRST_AGAIN: True}))
