"""Recipes: which settings vary, how far, in which arm. A recipe and a point in it -> a complete configuration."""

import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import optuna

from skiprec.checking import checked, unknown
from skiprec.config import SETTINGS, Value, flatten, from_flat, read_toml
from skiprec.errors import ConfigError
from skiprec.model import ModelConfig
from skiprec.train_config import TrainConfig
from skiprec.trainer import SELECTED_BY
from skiprec.training_loss import LossConfig
from study.claims import Claim, claims_from

KINDS = {
    name: kind for cls in (TrainConfig, ModelConfig, LossConfig) for name, kind in typing.get_type_hints(cls).items()
}
"""The type of every setting."""
NOT_IN_RECIPES = {"seed": "`seeds` at the top of the recipe", "threads": "the study, from the number of workers"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named, complete study, as its TOML file says."""

    name: str
    """Of the study, unless --name says otherwise."""
    description: str = ""
    """One line for people."""
    asks: str = ""
    """The question that the study answers, as one sentence."""
    sampler: Literal["exhaustive", "tpe", "random"]
    """Every combination, or points that are proposed one after the other."""
    pruner: Literal["none", "median"] = "none"
    """Whether a search ends cells that are below the median of their arm at the same epoch."""
    metric: str = SELECTED_BY
    """What is optimised."""
    cells_per_arm: int = 0
    """Points that a searching sampler gets in each arm: an equal tuning budget for all."""
    seeds: list = field(default_factory=lambda: [1])
    """The whole grid, or search, once for each."""
    repeats: int = 0
    """Cells that each arm tries beyond these, of one point with other seeds: how far chance alone moves a result. The
    middle point of a grid, the first one of a search."""
    max_attempts: int = 2
    """How often a cell may be tried before it is set aside with its error."""
    max_seconds: float = 0.0
    """Wall-clock time that an attempt may take; 0 for any. A cell that hangs fails then, and its worker is replaced."""
    unequal: bool = False
    """Whether arms may have unequal budgets. The best of more cells is higher by luck alone, so the report says so."""
    worthwhile: float = 0.01
    """The smallest difference of a hit rate that would matter: effects shown to be smaller are called none."""
    claims: list = field(default_factory=list)
    """Tables {arm, than, metric} that confirming runs test; by default that each arm is above the first."""
    settings: dict = field(default_factory=dict)
    """Of every arm: a value, a list of choices, or a range {low, high, log}."""
    arms: dict
    """Groups of cells that are compared as one thing, each with settings of its own over the common ones."""

    def __post_init__(self) -> None:
        if not self.name or not self.arms:
            raise ValueError("a recipe needs a name and at least one arm")
        if self.metric != SELECTED_BY:
            raise ValueError(
                f"metric is {self.metric!r}, expected '{SELECTED_BY}', by which each run's epoch is chosen"
            )
        if not self.seeds or not all(type(s) is int and s >= 0 for s in self.seeds):
            raise ValueError(f"seeds is {self.seeds}, expected a list of whole numbers")
        if self.max_seconds < 0:
            raise ValueError(f"max_seconds is {self.max_seconds}, expected 0 or more")
        if self.repeats < 0:
            raise ValueError(f"repeats is {self.repeats}, expected 0 or more")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}, expected at least 1")
        if (self.sampler == "exhaustive") != (self.cells_per_arm == 0):
            raise ValueError(
                f"cells_per_arm is {self.cells_per_arm} with sampler '{self.sampler}', expected 0 for exhaustive "
                "and at least 1 for a search"
            )
        if self.pruner != "none" and self.sampler == "exhaustive":
            raise ValueError(
                f"pruner is {self.pruner!r} with sampler 'exhaustive', expected 'none': every cell of a grid is "
                "measured to its end"
            )
        if not 0 < self.worthwhile < 1:
            raise ValueError(f"worthwhile is {self.worthwhile}, expected a difference of hit rates, such as 0.01")
        check_same_targets(self)
        for name in self.arms:
            for setting, value in arm_settings(self, name).items():
                check_domain(self, name, setting, value)
                check_shared_name(self, name, setting, value)
            # Whole configurations of the arm, so that a wrong value is refused before anything is made.
            for point in corners(arm_settings(self, name)):
                from_flat(point, f"arm '{name}'")


def load_recipe(recipe: str) -> Recipe:
    """A recipe by the name of one that comes with the program, or by the path of a TOML file.

    Raises:
        ConfigError: With where, what was found and what was expected.
    """
    shipped = {entry.name.removesuffix(".toml"): entry for entry in files("study").joinpath("recipes").iterdir()}
    if recipe in shipped:
        path = Path(str(shipped[recipe]))
    elif recipe.endswith(".toml") or Path(recipe).exists():
        path = Path(recipe)
    else:
        raise ConfigError(f"recipe '{recipe}': unknown, expected one of {', '.join(sorted(shipped))}, or a TOML file")
    where = str(path.name if recipe in shipped else path)
    found = checked(Recipe, read_toml(path), where)
    try:
        check_equal_chances(found)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return found


def arm_settings(recipe: Recipe, arm: str) -> dict[str, Any]:
    """What an arm fixes and varies: the common settings, and its own over them."""
    own = recipe.arms[arm]
    if not isinstance(own, dict):
        raise ConfigError(f"arm '{arm}' is {own!r}, expected a table of settings")
    return recipe.settings | own


def check_domain(recipe: Recipe, arm: str, name: str, value: Any) -> None:
    """Refuse what cannot be tried: unknown names, empty lists, ranges that are the wrong way round.

    Raises:
        ConfigError: With where, what was found and what was expected.
    """
    where = f"arm '{arm}': {name}"
    if name in NOT_IN_RECIPES:
        raise ConfigError(f"{where} is set by {NOT_IN_RECIPES[name]}, not in an arm")
    if name not in SETTINGS:
        raise ConfigError(f"arm '{arm}': {unknown(name, SETTINGS)}")
    if isinstance(value, list):
        if not value or any(isinstance(v, list | dict) for v in value) or len(set(map(repr, value))) < len(value):
            raise ConfigError(f"{where} is {value}, expected a list of different values")
    elif isinstance(value, dict):
        if recipe.sampler == "exhaustive":
            raise ConfigError(f"{where} is a range, which an exhaustive recipe cannot try in full; expected a list")
        for key in value.keys() - {"low", "high", "log"}:
            raise ConfigError(f"{where}: {unknown(key, ('low', 'high', 'log'))}")
        if KINDS[name] is not float:
            raise ConfigError(f"{where} is a range, expected a list: only numbers with fractions have one")
        low, high, log = value.get("low"), value.get("high"), value.get("log", False)
        if type(low) not in (int, float) or type(high) not in (int, float) or type(log) is not bool:
            raise ConfigError(f"{where} is {value}, expected {{ low = number, high = number, log = true or false }}")
        if not low < high:
            raise ConfigError(f"{where} goes from {low} to {high}, expected low below high")
        if log and low <= 0:
            raise ConfigError(f"{where} is logarithmic from {low}, expected low above 0")


def check_shared_name(recipe: Recipe, arm: str, name: str, value: Any) -> None:
    """Refuse a setting that arms search over differently: in Optuna a name has one domain in the whole study.

    Raises:
        ConfigError: With the two arms.
    """
    if recipe.sampler == "exhaustive" or not isinstance(value, list | dict):
        return
    for other in recipe.arms:
        theirs = arm_settings(recipe, other).get(name)
        both_ranges = isinstance(theirs, dict) and isinstance(value, dict)
        if both_ranges and theirs.get("log", False) == value.get("log", False):
            continue
        if isinstance(theirs, list | dict) and theirs != value:
            raise ConfigError(
                f"arms '{arm}' and '{other}' search {name} over {value} and {theirs}; "
                "a searched list must be the same in every arm that varies it, and ranges alike in log"
            )


def check_same_targets(recipe: Recipe) -> None:
    """Refuse claims between arms that are asked about different targets: nothing can be said of their difference.

    Raises:
        ValueError: With the two arms; or if a claim is wrong.
        ConfigError: If an arm is no table.
    """
    targets = {arm: arm_settings(recipe, arm).get("only_targets", "all") for arm in recipe.arms}
    if varied := [arm for arm, value in targets.items() if isinstance(value, list)]:
        raise ValueError(
            f"arm {varied[0]!r} varies only_targets, expected one value: rates of other targets are others"
        )
    for claim in claims_of(recipe):
        for arm in claim.arms[1:]:
            if targets[arm] != targets[claim.arm]:
                raise ValueError(
                    f"claim {claim.named()!r}: arm {claim.arm!r} is asked about {targets[claim.arm]} targets and arm "
                    f"{arm!r} about {targets[arm]}, expected the same only_targets"
                )


def claims_of(recipe: Recipe) -> tuple[Claim, ...]:
    """What a recipe claims, declared or by default."""
    return claims_from(recipe.claims, recipe.arms)


@dataclass(frozen=True, slots=True)
class Budget:
    """What an arm may spend on finding its settings."""

    cells: int
    max_epochs: int
    """Of all cells together."""
    stopping: frozenset[tuple[Any, Any]]
    """The patience and the targets by which epochs are chosen."""

    def __str__(self) -> str:
        stopping = ", ".join(f"patience {patience}, {targets} targets" for patience, targets in sorted(self.stopping))
        return f"{self.cells} cells of {self.max_epochs} epochs in all ({stopping})"


def budget(recipe: Recipe, arm: str) -> Budget:
    """What an arm may spend."""
    defaults = flatten(TrainConfig())
    settings = {name: arm_settings(recipe, arm).get(name, defaults[name]) for name in BUDGETED}
    if recipe.sampler == "exhaustive":
        cells = [settings | params for params in grid(recipe, arm)] * len(recipe.seeds)
    else:  # which point is proposed is not known, so what counts is the largest
        largest = {name: max(value) if isinstance(value, list) else value for name, value in settings.items()}
        cells = [largest] * recipe.cells_per_arm * len(recipe.seeds)
    return Budget(
        len(cells),
        sum(cell["max_epochs"] for cell in cells),
        frozenset((cell["patience"], cell["only_targets"]) for cell in cells),
    )


BUDGETED = ("max_epochs", "patience", "only_targets")
"""Settings that say how much an arm may try, and by what it chooses."""


def check_equal_chances(recipe: Recipe) -> None:
    """Refuse arms that are compared after unequal tuning, unless the recipe says that they are.

    Raises:
        ConfigError: With two arms and what each may spend.
    """
    first, *others = recipe.arms
    for other in others:
        if not recipe.unequal and budget(recipe, other) != budget(recipe, first):
            raise ConfigError(
                f"arm '{first}' may try {budget(recipe, first)} and arm '{other}' {budget(recipe, other)}: the best of "
                "more is higher by luck alone. Give every arm the same (beta as a list repeats a cell with another "
                "seed where alpha is 0), or say unequal = true, and the report will say so"
            )


def corners(settings: dict[str, Any]) -> Iterator[dict[str, Value]]:
    """Every combination of an arm's choices and of the ends of its ranges."""
    ends = (
        (v["low"], v["high"]) if isinstance(v, dict) else v if isinstance(v, list) else (v,) for v in settings.values()
    )
    return (dict(zip(settings, values, strict=True)) for values in itertools.product(*ends))


def grid(recipe: Recipe, arm: str) -> list[dict[str, Value]]:
    """Every combination of an arm's choices, as params: the settings that vary."""
    choices = {k: v for k, v in arm_settings(recipe, arm).items() if isinstance(v, list)}
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def choices(recipe: Recipe, name: str) -> list[Value]:
    """Every value of a setting that some arm lists, each once: what Optuna is told of, since a name has one domain."""
    listed = (arm_settings(recipe, arm).get(name) for arm in recipe.arms)
    every = [value for values in listed if isinstance(values, list) for value in values]
    return [value for i, value in enumerate(every) if repr(value) not in map(repr, every[:i])]


def suggest(recipe: Recipe, arm: str, trial: optuna.Trial) -> dict[str, Value]:
    """Ask the trial for every setting that varies in its arm: proposed, or as the queue fixed it."""
    params: dict[str, Value] = {}
    for name, value in arm_settings(recipe, arm).items():
        if isinstance(value, list):
            params[name] = trial.suggest_categorical(name, choices(recipe, name))
        elif isinstance(value, dict):
            params[name] = trial.suggest_float(name, value["low"], value["high"], log=value.get("log", False))
    return params


def configuration(recipe: Recipe, arm: str, params: dict[str, Value], *, seed: int, threads: int) -> TrainConfig:
    """The complete configuration of a point in an arm."""
    fixed = {k: v for k, v in arm_settings(recipe, arm).items() if not isinstance(v, list | dict)}
    return from_flat(fixed | params | {"seed": seed, "threads": threads}, f"arm '{arm}'")


def differences(was: Mapping[str, Any], now: Mapping[str, Any], table: str = "") -> list[str]:
    """What differs between two recipes as plain tables, key by key.

    Args:
        was: One.
        now: The other.
        table: The names of the tables that these are in, each with a dot after it.
    """
    found = []
    for key in dict.fromkeys((*was, *now)):
        before, after = was.get(key, "absent"), now.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{table}{key}.")
        elif before != after:
            found.append(f"{table}{key} was {before}, now {after}")
    return found


ONLY_WITH_ALPHA = {"context", "temperature", "negative_scope", "anchors", "visible_positive"}
ONLY_BIDIRECTIONAL = {"mask_rate", "mask_last_only", "visible_positive"}
ONLY_WITH_SKIPS = {"skip_threshold"}
ONLY_SAMPLED = {"n_negatives"}


def effective(flat: Mapping[str, Value]) -> dict[str, Value]:
    """The settings of a flat configuration that do something in it."""
    idle = ONLY_WITH_ALPHA if flat["alpha"] == 0 else set()
    idle = idle | ONLY_BIDIRECTIONAL if flat["architecture"] == "unidirectional" else idle
    # Skip input reads levels; who is skipped matters to the losses alone.
    idle = idle | ONLY_WITH_SKIPS if flat["alpha"] == 0 and flat.get("skipped_target_weight", 1.0) == 1 else idle
    idle = idle | ONLY_SAMPLED if flat["negatives"] == "full" else idle
    idle = idle | {"visible_positive"} if flat["context"] == "item" else idle
    return {name: value for name, value in flat.items() if name not in idle}


def experiment(config: TrainConfig) -> dict[str, Value]:
    """What a cell measures, its seed apart: the settings that do something in it.

    Alpha and beta count by their ratio alone, without weight decay: Adam divides out their size.
    """
    flat = effective(flatten(config))
    if flat["weight_decay"]:  # which adds to the gradient, so the size of the losses counts
        return {k: v for k, v in flat.items() if k != "seed"}
    ratio = round(flat["alpha"] / flat["beta"], 9) if flat["beta"] else float("inf")
    return {k: v for k, v in flat.items() if k not in ("seed", "alpha", "beta")} | {"alpha/beta": str(ratio)}
