"""Recipes: what is refused, and what a point in one becomes."""

import dataclasses
from importlib.resources import files

import optuna
import pytest

from skiprec.config import flatten, from_flat
from skiprec.errors import ConfigError
from study.cells import SEED_STEP, plan
from study.space import (
    Recipe,
    budget,
    choices,
    claims_of,
    configuration,
    differences,
    experiment,
    grid,
    load_recipe,
    suggest,
)

SMALL = """
name = "small"
sampler = "exhaustive"
unequal = true
[settings]
learning_rate = [0.001, 0.003]
[arms."S-"]
alpha = 0.0
[arms."S+"]
alpha = [0.25, 0.5]
"""


def refused(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "small"\n', ""), "missing name; expected at least name, sampler, arms"),
        (('name = "small"', 'name = "small"\nsampel = 3'), "unknown setting 'sampel', did you mean 'sampler'?"),
        (("exhaustive", "grid"), "sampler is 'grid', expected 'exhaustive' or 'tpe' or 'random'"),
        (("[0.001, 0.003]", "[]"), "arm 'S-': learning_rate is [], expected a list of different values"),
        (("[0.001, 0.003]", "[1, 1]"), "arm 'S-': learning_rate is [1, 1], expected a list of different values"),
        (
            ("[0.001, 0.003]", "{ low = 0.1, high = 0.2 }"),
            "arm 'S-': learning_rate is a range, which an exhaustive recipe cannot try in full; expected a list",
        ),
        (("alpha = 0.0", "alhpa = 0.0"), "arm 'S-': unknown setting 'alhpa', did you mean 'alpha'?"),
        (("alpha = 0.0", "seed = 3"), "arm 'S-': seed is set by `seeds` at the top of the recipe, not in an arm"),
        (("alpha = 0.0", 'alpha = "none"'), "arm 'S-': alpha is 'none', expected a number"),
        (("[0.25, 0.5]", "[0.25, -0.5]"), "arm 'S+': alpha is -0.5, expected 0 or more"),
        (("alpha = 0.0", 'negative_scope = "future"'), "arm 'S-': negative_scope is 'future', expected 'session' or "),
    ],
)
def test_what_a_recipe_cannot_say_is_refused_by_name(tmp_path, change, message):
    """The file, the arm, the setting, what was found and what was expected stand in the message."""
    assert refused(tmp_path, SMALL.replace(*change)).startswith(message)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("{ low = 0.01, high = 0.001 }", "goes from 0.01 to 0.001, expected low below high"),
        ("{ low = 0, high = 0.1, log = true }", "is logarithmic from 0, expected low above 0"),
        ("{ low = 0.1, hihg = 0.2 }", "unknown setting 'hihg', did you mean 'high'?"),
        ("{ low = 0.1 }", "is {'low': 0.1}, expected { low = number, high = number, log = true or false }"),
    ],
)
def test_a_range_the_wrong_way_round_is_refused(tmp_path, domain, message):
    """A searched range must have a low end below its high end."""
    text = SMALL.replace("[0.001, 0.003]", domain).replace('"exhaustive"', '"tpe"\ncells_per_arm = 2')
    assert message in refused(tmp_path, text)


def test_a_recipe_that_does_not_exist_is_refused_with_the_ones_that_do():
    """A name without .toml is one of those that come with the program."""
    with pytest.raises(
        ConfigError, match=r"recipe 'dmeo': unknown, expected one of controls, data_size, demo, .*, or a TOML file"
    ):
        load_recipe("dmeo")
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read"):
        load_recipe("nowhere.toml")


def test_the_paper_recipe_has_every_cell_of_the_paper():
    """128 cells for each architecture (section 3.6), and S- at the same four learning rates."""
    cells = plan(load_recipe("paper"), "0" * 64, threads=1)
    arms = [cell.arm for cell in cells]
    assert len(cells) == 2 * (128 + 4)
    assert {arm: arms.count(arm) for arm in arms} == {
        "S- unidirectional": 4,
        "S+ session unidirectional": 64,
        "S+ item unidirectional": 64,
        "S- bidirectional": 4,
        "S+ session bidirectional": 64,
        "S+ item bidirectional": 64,
    }
    assert len({cell.id for cell in cells}) == len(cells)


def test_cells_that_are_the_same_experiment_get_different_seeds():
    """The paper's 16 (alpha, beta) pairs are 11 ratios: 4 of them on the diagonal are one experiment."""
    cells = [c for c in plan(load_recipe("paper"), "0" * 64, threads=1) if c.arm == "S+ item unidirectional"]
    diagonal = [c for c in cells if c.params["alpha"] == c.params["beta"] and c.params["learning_rate"] == 0.001]
    assert sorted(c.seed for c in diagonal) == [1, 1 + SEED_STEP, 1 + 2 * SEED_STEP, 1 + 3 * SEED_STEP]
    firsts = [c for c in cells if c.params["learning_rate"] == 0.001 and c.seed == 1]
    assert len(firsts) == 11


def test_a_cell_is_known_by_its_whole_configuration_and_its_data():
    """Data, threads and seeds are in the id; the order of a recipe's lines is not."""
    recipe = load_recipe("demo")
    ids = {c.id for c in plan(recipe, "0" * 64, threads=1)}
    turned = dataclasses.replace(recipe, settings=dict(reversed(recipe.settings.items())))
    assert {c.id for c in plan(turned, "0" * 64, threads=1)} == ids
    assert not ids & {c.id for c in plan(recipe, "1" * 64, threads=1)}
    assert not ids & {c.id for c in plan(recipe, "0" * 64, threads=2)}
    assert not ids & {c.id for c in plan(dataclasses.replace(recipe, seeds=[2]), "0" * 64, threads=1)}


def test_a_point_becomes_a_complete_configuration():
    """What the arm fixes, what varies, the seed and the threads; everything else by default."""
    recipe = Recipe(
        name="r",
        sampler="exhaustive",
        settings={"learning_rate": [0.1, 0.2], "dim": 64},
        arms={"a": {"alpha": 0.0, "dim": 32}},
    )
    assert grid(recipe, "a") == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    flat = flatten(configuration(recipe, "a", {"learning_rate": 0.2}, seed=7, threads=3))
    assert {k: flat[k] for k in ("learning_rate", "dim", "alpha", "seed", "threads", "batch_size")} == {
        "learning_rate": 0.2,
        "dim": 32,
        "alpha": 0.0,
        "seed": 7,
        "threads": 3,
        "batch_size": 128,
    }


def test_alpha_and_beta_count_by_their_ratio():
    """Adam divides by the size of the gradient, so (.25, .5) and (.5, 1) are one experiment and (.5, .5) is another."""
    recipe = Recipe(name="r", sampler="exhaustive", arms={"a": {}})
    a, b, c = (
        experiment(configuration(recipe, "a", {"alpha": x, "beta": y}, seed=1, threads=1))
        for x, y in ((0.25, 0.5), (0.5, 1.0), (0.5, 0.5))
    )
    assert a == b
    assert a != c


def test_a_searched_range_is_proposed_within_its_ends():
    """Each setting that varies is asked of the trial; a list that arms share is one domain."""
    recipe = load_recipe("search")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    params = suggest(recipe, "S+", trial)
    assert set(params) == {"alpha", "beta", "context", "learning_rate"}
    assert 0.0001 <= params["learning_rate"] <= 0.01
    assert choices(load_recipe("paper"), "alpha") == [0.25, 0.5, 0.75, 1.0]


def test_arms_may_list_different_choices_where_all_are_tried():
    """Optuna knows a name by one domain: the union."""
    arms = {"a": {"learning_rate": [0.1]}, "b": {"learning_rate": [0.2, 0.1]}}
    recipe = Recipe(name="r", sampler="exhaustive", arms=arms, unequal=True)
    assert choices(recipe, "learning_rate") == [0.1, 0.2]
    with pytest.raises(ConfigError, match="a searched list must be the same in every arm"):
        Recipe(name="r", sampler="tpe", cells_per_arm=2, arms=arms)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": {"dim": {"low": 16, "high": 32}}}, "arm 'a': dim is a range, expected a list"),
        (
            {
                "a": {"learning_rate": {"low": 0.1, "high": 0.2}},
                "b": {"learning_rate": {"low": 0.1, "high": 0.2, "log": True}},
            },
            "and ranges alike in log",
        ),
        ({"a": {"max_epochs": [3, 10], "patience": [2, 5]}}, r"patience \(5\) must be smaller than max_epochs \(3\)"),
    ],
)
def test_what_no_worker_could_try_is_refused_before_a_study_is_made(arms, message):
    """Every combination is a whole configuration, and every name has one domain."""
    with pytest.raises(ConfigError, match=message):
        Recipe(name="r", sampler="tpe", cells_per_arm=2, arms=arms)


def test_settings_without_effect_do_not_make_another_experiment():
    """S- has no context; so its two cells are one experiment, and get different seeds."""
    recipe = Recipe(name="r", sampler="exhaustive", arms={"a": {"alpha": 0.0, "context": ["session", "item"]}})
    assert [c.seed for c in plan(recipe, "0" * 64, threads=1)] == [1, 1 + SEED_STEP]


def test_derived_seeds_do_not_meet_the_recipes_own():
    """With seeds 1 and 1001 the two ratios that are alike still get four seeds."""
    arms = {"a": {"alpha": [0.25, 0.5], "beta": 0.5}, "b": {"alpha": [0.5], "beta": 1.0}}
    cells = plan(
        Recipe(name="r", sampler="exhaustive", seeds=[1, 1 + SEED_STEP], arms=arms, unequal=True), "0" * 64, threads=1
    )
    same = [c.seed for c in cells if c.arm == "b" or c.params["alpha"] == 0.25]
    assert len(set(same)) == len(same) == 4
    assert len({c.id for c in cells}) == 6


def test_what_differs_between_two_recipes_is_said_key_by_key():
    """Within tables too; what is in one alone is absent from the other; what is equal is not said."""
    was = {"name": "a", "seeds": [1], "settings": {"dim": 64, "beta": 0.5}, "arms": {"S-": {"alpha": 0.0}}}
    now = {"name": "a", "seeds": [1, 2], "settings": {"dim": 32, "beta": 0.5}, "arms": {"S-": {"alpha": 0.0}, "S+": {}}}
    assert differences(was, now) == [
        "seeds was [1], now [1, 2]",
        "settings.dim was 64, now 32",
        "arms.S+ was absent, now {}",
    ]
    assert differences(now, was)[-1] == "arms.S+ was {}, now absent"
    assert differences(now, now) == []


EQUAL = SMALL.replace("unequal = true\n", "").replace("[0.25, 0.5]", "0.5")


@pytest.mark.parametrize(
    ("change", "first", "other"),
    [
        (("alpha = 0.5", "alpha = [0.25, 0.5]"), "2 cells of 48 epochs", "4 cells of 96 epochs"),
        (("alpha = 0.5", "alpha = 0.5\nmax_epochs = 25"), "2 cells of 48 epochs", "2 cells of 50 epochs"),
        (("alpha = 0.5", "alpha = 0.5\npatience = 6"), "patience 5", "patience 6"),
    ],
)
def test_arms_of_unequal_chances_are_refused_unless_the_recipe_says_so(tmp_path, change, first, other):
    """Cells, epochs, and how an epoch is chosen: what an arm has more of favours it."""
    (tmp_path / "equal.toml").write_text(EQUAL)
    load_recipe(str(tmp_path / "equal.toml"))
    message = refused(tmp_path, EQUAL.replace(*change))
    assert message.startswith("arm 'S-' may try ")
    assert first in message.split("arm 'S+'")[0]
    assert other in message.split("arm 'S+'")[1]
    (tmp_path / "unequal.toml").write_text(EQUAL.replace(*change).replace("[settings]", "unequal = true\n[settings]"))
    assert load_recipe(str(tmp_path / "unequal.toml")).unequal


@pytest.mark.parametrize("value", ['"heard"', '["all", "heard"]'])
def test_arms_that_are_asked_about_other_targets_are_not_compared(tmp_path, value):
    """Not even as unequal ones: the rates are of different questions."""
    text = EQUAL.replace("alpha = 0.5", f"alpha = 0.5\nonly_targets = {value}")
    message = refused(tmp_path, text.replace("[settings]", "unequal = true\n[settings]"))
    assert "only_targets" in message
    assert "'S+'" in message


def test_weight_decay_makes_the_size_of_the_losses_count():
    """Its gradient is added to theirs; without it only alpha / beta matters under Adam."""
    halved = {"alpha": 0.25, "beta": 0.5, "weight_decay": 0.01}
    whole = halved | {"alpha": 0.5, "beta": 1.0}
    assert experiment(from_flat(halved)) != experiment(from_flat(whole))
    assert experiment(from_flat(halved | {"weight_decay": 0.0})) == experiment(from_flat(whole | {"weight_decay": 0.0}))


def test_repeats_are_the_middle_cell_again_with_other_seeds():
    """In every arm; after its grid."""
    arms = {"S-": {"alpha": 0.0, "learning_rate": [0.1, 0.2, 0.3]}, "S+": {"alpha": [0.1, 0.2, 0.3]}}
    cells = plan(Recipe(name="r", sampler="exhaustive", repeats=2, seeds=[4], arms=arms), "0" * 64, threads=1)
    assert [(c.seed, c.params["alpha"]) for c in cells if c.arm == "S+"] == [
        (4, 0.1), (4, 0.2), (4, 0.3), (4 + SEED_STEP, 0.2), (4 + 2 * SEED_STEP, 0.2),
    ]  # fmt: skip
    assert [c.params["learning_rate"] for c in cells if c.arm == "S-"] == [0.1, 0.2, 0.3, 0.2, 0.2]


def test_a_search_repeats_the_first_point_of_each_arm():
    """Which is known when their places in the queue are reached: last."""
    arms = {"S-": {"alpha": 0.0}, "S+": {"alpha": {"low": 0.1, "high": 1.0}}}
    cells = plan(Recipe(name="r", sampler="tpe", cells_per_arm=2, repeats=1, arms=arms), "0" * 64, threads=1)
    assert [(c.arm, c.first_again) for c in cells] == [
        ("S-", False), ("S+", False), ("S-", False), ("S+", False), ("S-", True), ("S+", True),
    ]  # fmt: skip
    assert len({c.id for c in cells}) == 6


def test_a_search_gives_every_arm_the_same_number_of_points(tmp_path):
    """So nothing but the epochs can be unequal."""
    text = EQUAL.replace('"exhaustive"', '"random"\ncells_per_arm = 3').replace("alpha = 0.5", "alpha = [0.25, 0.5]")
    (tmp_path / "search.toml").write_text(text)
    recipe = load_recipe(str(tmp_path / "search.toml"))
    assert {budget(recipe, arm).cells for arm in recipe.arms} == {3}
    assert "3 cells of 72 epochs" in refused(tmp_path, text.replace('[arms."S+"]', '[arms."S+"]\nmax_epochs = 9'))


@pytest.mark.parametrize("name", sorted(entry.name for entry in files("study").joinpath("recipes").iterdir()))
def test_every_shipped_recipe_is_whole_and_says_what_it_asks(name):
    """A question, claims, and equal chances, but for the paper's own."""
    recipe = load_recipe(name.removesuffix(".toml"))
    assert recipe.name == name.removesuffix(".toml")
    assert recipe.asks.endswith("?")
    assert claims_of(recipe)
    assert recipe.unequal == (recipe.name == "paper")
    cells = sum(budget(recipe, arm).cells + recipe.repeats for arm in recipe.arms)
    assert len(plan(recipe, "0" * 64, threads=1)) == cells
    assert recipe.repeats or recipe.name == "paper"  # which has equal ratios: how noisy seeds are is always seen


def test_controls_differ_in_whose_items_are_pushed_away_alone():
    """Or something else might be what makes the difference."""
    recipe = load_recipe("controls")
    scopes = {name: own for name, own in recipe.arms.items() if name != "S-"}
    assert sorted(arm["negative_scope"] for arm in scopes.values()) == [
        "in_batch", "other_session", "popular", "random", "session",
    ]  # fmt: skip
    assert all(set(own) == {"negative_scope"} for own in scopes.values())
    assert {claim.than for claim in claims_of(recipe)} == set(recipe.arms) - {"S+ own skips"}
