"""Confirming runs: which settings are confirmed, over which seeds, in which order, and what is refused."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from fake_study import FakeStudy

from skiprec.config import flatten
from skiprec.errors import StudyError
from study.analysis import done_cells
from study.cells import cell_id
from study.claims import claims_from
from study.confirm import FIRST_SEED, confirming_recipe, expected_noise, finalists, fresh_seeds, paired_plan
from study.objective import choose
from study.queue import enqueue
from study.space import Recipe, configuration, experiment

DIGEST = "d" * 64


def recipe(**more):
    """Two arms, equally tuned."""
    arms = {"S-": {"alpha": 0.0, "learning_rate": [0.001, 0.01]}, "S+ item": {"alpha": [0.25, 0.5]}}
    return Recipe(name="mine", sampler="exhaustive", arms=arms, **more)


def study_of(*cells):
    """A study with complete cells: arm, value, seed, settings."""
    fake = FakeStudy(arms=("S-", "S+ item"))
    for arm, value, seed, settings in cells:
        fixed = {"alpha": 0.0} if arm == "S-" else {}
        fake.add(value, arm=arm, seed=seed, fixed=fixed | {"beta": 0.5}, **settings)
    return done_cells(fake.study.get_trials(deepcopy=False))


def test_the_finalist_has_the_best_mean_over_its_seeds_not_the_best_single_run():
    """One lucky run of .50 beside an unlucky one of .40 is no match for two of .47."""
    cells = study_of(
        ("S-", 0.44, 1, {"learning_rate": 0.001}),
        ("S+ item", 0.50, 1, {"alpha": 0.25, "learning_rate": 0.001}),
        ("S+ item", 0.40, 1001, {"alpha": 0.25, "learning_rate": 0.001}),
        ("S+ item", 0.47, 1, {"alpha": 0.5, "learning_rate": 0.001}),
        ("S+ item", 0.46, 1001, {"alpha": 0.5, "learning_rate": 0.001}),
    )
    chosen = finalists(cells, ["S-", "S+ item"])
    assert chosen["S+ item"].config["alpha"] == 0.5
    assert chosen["S+ item"].seed == 1
    assert chosen["S-"].value == 0.44


def test_equal_ratios_are_one_experiment_when_the_finalist_is_chosen():
    """.25 / .5 and .5 / 1 are repeats of each other under Adam."""
    cells = study_of(
        ("S-", 0.44, 1, {"learning_rate": 0.001}),
        ("S+ item", 0.50, 1, {"alpha": 0.5, "learning_rate": 0.001}),
        ("S+ item", 0.48, 1, {"alpha": 0.25, "learning_rate": 0.001}),
    )
    doubled = study_of(
        ("S-", 0.44, 1, {"learning_rate": 0.001}),
        ("S+ item", 0.50, 1, {"alpha": 0.5, "learning_rate": 0.001}),
        ("S+ item", 0.40, 1001, {"alpha": 0.5, "learning_rate": 0.001}),
        ("S+ item", 0.48, 1, {"alpha": 0.25, "learning_rate": 0.001}),
    )
    assert finalists(cells, ["S-", "S+ item"])["S+ item"].config["alpha"] == 0.5
    assert finalists(doubled, ["S-", "S+ item"])["S+ item"].config["alpha"] == 0.25


def test_an_arm_without_a_result_cannot_be_confirmed():
    """And is named."""
    with pytest.raises(StudyError, match="arm 'S\\+ item' has no complete cell, so nothing to confirm"):
        finalists(study_of(("S-", 0.44, 1, {"learning_rate": 0.001})), ["S-", "S+ item"])


def confirming(seeds=(FIRST_SEED, FIRST_SEED + 1), **more):
    """The confirming recipe of a study."""
    cells = study_of(
        ("S-", 0.44, 1, {"learning_rate": 0.01}), ("S+ item", 0.47, 7, {"alpha": 0.5, "learning_rate": 0.001})
    )
    return confirming_recipe(recipe(**more), "mine-0", finalists(cells, ["S-", "S+ item"]), list(seeds))


def test_every_arm_runs_its_finalists_settings_over_the_same_fresh_seeds():
    """Pairs: only what the arms differ in differs, and no seed of the search is used again."""
    confirmed = confirming()
    cells = paired_plan(confirmed, DIGEST, threads=2)
    assert confirmed.seeds == [FIRST_SEED, FIRST_SEED + 1]
    assert [(c.arm, c.seed) for c in cells] == [(arm, seed) for seed in confirmed.seeds for arm in ("S-", "S+ item")]
    settings = flatten(configuration(confirmed, "S+ item", {}, seed=FIRST_SEED, threads=2))
    assert (settings["alpha"], settings["learning_rate"], settings["seed"]) == (0.5, 0.001, FIRST_SEED)
    assert cells[1].id == cell_id(configuration(confirmed, "S+ item", {}, seed=FIRST_SEED, threads=2), DIGEST)


def test_claims_are_those_that_the_study_was_made_with():
    """Also where they were left to the default."""
    declared = [{"arm": "S-", "than": "S+ item", "metric": "test/full_hr_at_1"}]
    for claims in ([], declared):
        confirmed = confirming(claims=claims)
        assert claims_from(confirmed.claims, confirmed.arms) == claims_from(claims, ["S-", "S+ item"])


def test_arms_with_one_finalist_share_its_runs():
    """The same configuration and seed would give the same numbers, and would be trained twice."""
    same = {"alpha": 0.5, "learning_rate": 0.001}
    cells = study_of(("S+ item", 0.47, 1, same))
    chosen = {"one": cells[0], "other": cells[0]}
    arms = {"one": {"alpha": [0.25, 0.5]}, "other": {"alpha": [0.5, 0.75]}}
    both = confirming_recipe(Recipe(name="m", sampler="exhaustive", arms=arms), "m-0", chosen, [7, 8])
    assert [(c.arm, c.seed) for c in paired_plan(both, DIGEST, threads=1)] == [("one", s) for s in both.seeds]


def test_arms_of_equal_ratio_keep_their_pairs():
    """A search gives them other seeds, as repeats; a confirming run may not, or they would be no pairs."""
    arms = {"one": {"alpha": 0.25, "beta": 0.5}, "other": {"alpha": 0.5, "beta": 1.0}}
    fixed = Recipe(name="m", sampler="exhaustive", arms=arms, seeds=[1, 2])
    first, second, *_ = (configuration(fixed, c.arm, {}, seed=c.seed, threads=1) for c in paired_plan(fixed, DIGEST, 1))
    assert experiment(first) == experiment(second)
    assert first.seed == second.seed == 1


def test_a_planned_cell_keeps_its_seed_where_another_arm_is_the_same_experiment():
    """S- is the same whatever its context; with another seed it would be no pair any more."""
    arms = {"S-": {"alpha": 0.0}, "S- too": {"alpha": 0.0, "context": "session"}}
    fixed = Recipe(name="m", sampler="exhaustive", arms=arms, seeds=[5])
    study = optuna.create_study()
    for cell in paired_plan(fixed, DIGEST, threads=1):
        enqueue(study, cell, attempt=1)
    place = SimpleNamespace(
        study=study,
        recipe=fixed,
        exclusively=nullcontext(),
        about={"threads": 1},
        dataset=SimpleNamespace(digest=DIGEST),
    )
    assert [choose(place, study.ask()).seed for _ in range(2)] == [5, 5]


def test_finalists_with_other_budgets_than_each_other_are_confirmed():
    """Chances were equal when they were searched: each arm tried both numbers of epochs."""
    cells = study_of(("S-", 0.44, 1, {"learning_rate": 0.01}), ("S+ item", 0.47, 7, {"alpha": 0.5}))
    epochs = {"S-": 12, "S+ item": 24}
    cells = [dataclasses.replace(c, config=c.config | {"max_epochs": epochs[c.arm]}) for c in cells]
    confirmed = confirming_recipe(recipe(), "mine-0", finalists(cells, ["S-", "S+ item"]), [5])
    assert [arm["max_epochs"] for arm in confirmed.arms.values()] == [12, 24]


def test_no_seed_of_the_search_is_confirmed_with():
    """Also where a search came as far as the usual ones."""
    cells = study_of(("S-", 0.44, 7, {"learning_rate": 0.01}), ("S+ item", 0.47, 1, {"alpha": 0.5}))
    assert fresh_seeds(cells, 2) == [FIRST_SEED, FIRST_SEED + 1]
    high = [dataclasses.replace(cells[0], seed=FIRST_SEED + 9), cells[1]]
    assert fresh_seeds(high, 2) == [FIRST_SEED + 10, FIRST_SEED + 11]


@pytest.mark.parametrize("factors", [(1, -1), (1, -1, -1, 1), (1, -2, 1)])
def test_the_noise_expected_is_that_of_the_seeds_the_sessions_and_the_rest(factors):
    """Drawn with known spreads: each arm has those below, and the sessions' parts of the arms differ.

    Variances add up by the squares of the factors; the last ones are of a - b beyond b - c.
    """
    random = np.random.default_rng(3)
    n, seed_sd, session_sd, residual_sd = 4000, 0.02, 0.3, 0.4

    def run(of_sessions):
        return random.normal(0, seed_sd) + of_sessions + random.normal(0, residual_sd, n)

    arms = [random.normal(0, session_sd, n) for _ in factors]
    size = sum(factor**2 for factor in factors) ** 0.5
    repeated = [[run(arms[0]) for _ in range(3)] for _ in range(200)]
    found = expected_noise(repeated, [(factor, run(arm)) for factor, arm in zip(factors, arms, strict=True)])
    assert found["n_sessions"] == n
    assert found["seed_sd"] == pytest.approx(seed_sd * size, rel=0.1)
    assert found["session_sd"] == pytest.approx(session_sd * size, rel=0.1)
    assert found["residual_sd"] == pytest.approx(residual_sd * size, rel=0.02)


def test_runs_that_differ_by_the_rest_alone_show_no_noise_of_seeds():
    """Two runs of 100 sessions differ in their mean by what is left, which is not to count twice."""
    random = np.random.default_rng(4)
    repeated = [[random.normal(0, 0.4, 100) for _ in range(2)] for _ in range(3000)]
    assert (
        expected_noise(repeated, [(1, repeated[0][0]), (-1, repeated[0][1])])["seed_sd"] < 2**0.5 * 0.4 / 100**0.5 / 3
    )
