"""Settings from files, presets and the command line -> one checked TrainConfig, and back to a flat table.

Every setting has one name, whatever config holds it, so that a TOML file, `--set`, MLflow's parameters and a recipe
all say `learning_rate = 0.001`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from skiprec.checking import checked, unknown
from skiprec.errors import ConfigError
from skiprec.model import ModelConfig
from skiprec.train_config import TrainConfig
from skiprec.training_loss import LossConfig

Value = bool | int | float | str

PRESETS: dict[str, dict[str, Value]] = {
    # The paper's literal text, the defaults where it is silent (semantics: section 9).
    "paper": {"alpha": 0.5, "beta": 0.5, "learning_rate": 0.005, "init": "paper", "visible_positive": True},
    # The authors' public code, as far as settings reach.
    "released": {
        "norm": "post",
        "activation": "relu",
        "init": "torch",
        "positions": "from_start",
        "anchors": "heard",
        "negative_scope": "released",
        "alpha": 1.0,
        "beta": 1.0,
        "learning_rate": 0.005,
        "batch_size": 64,
        "max_epochs": 12,
        "visible_positive": True,
    },
}
"""Named settings laid over the defaults."""


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table.

    Raises:
        ConfigError: If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}), expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def parse_setting(text: str) -> tuple[str, Value]:
    """`learning_rate=0.001` -> ("learning_rate", 0.001). A value that is not TOML is taken as text.

    Raises:
        ConfigError: If there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected NAME=VALUE, for example --set learning_rate=0.001")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def flatten(config: TrainConfig) -> dict[str, Value]:
    """Every setting by its one name, defaults written out."""
    flat: dict[str, Value] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat |= dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flat


def names_of(cls: type) -> set[str]:
    """The names of a config's fields."""
    return {field.name for field in dataclasses.fields(cls)}


SETTINGS = frozenset((names_of(TrainConfig) | names_of(ModelConfig) | names_of(LossConfig)) - {"model", "loss"})
"""Every name that a configuration file may hold."""


def from_flat(values: Mapping[str, Any], where: str = "settings") -> TrainConfig:
    """A checked TrainConfig from a flat table; what is not named has its default.

    Raises:
        ConfigError: With where, what was found and what was expected.
    """
    for name in values.keys() - SETTINGS:
        if name in ("min_length", "max_length", "only_sessions_with_skips", "split"):
            raise ConfigError(f"{where}: '{name}' is settled when the logs are prepared: give it to `skiprec prepare`")
        raise ConfigError(f"{where}: {unknown(name, SETTINGS)}")
    parts = {
        cls: {k: v for k, v in values.items() if k in names_of(cls)} for cls in (ModelConfig, LossConfig, TrainConfig)
    }
    rest = parts[TrainConfig] | {
        "model": checked(ModelConfig, parts[ModelConfig], where),
        "loss": checked(LossConfig, parts[LossConfig], where),
    }
    return checked(TrainConfig, rest, where)


def resolve(preset: str | None, file: Path | None, settings: list[str], **fallback: Value) -> TrainConfig:
    """Lay the defaults, a preset, a file and single settings over each other, in that order.

    Args:
        preset: A name in PRESETS, or None.
        file: A TOML file of settings, or None.
        settings: Texts like `learning_rate=0.001`; the last of a name counts.
        fallback: Settings that count where nothing else names them.

    Raises:
        ConfigError: With where, what was found and what was expected.
    """
    values: dict[str, Any] = dict(fallback)
    wheres = []
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"--preset {preset}: unknown, expected one of {', '.join(PRESETS)}")
        values |= PRESETS[preset]
        wheres.append(f"--preset {preset}")
    if file is not None:
        values |= read_toml(file)
        wheres.append(str(file))
    if settings:
        values |= dict(map(parse_setting, settings))
        wheres.append("--set")
    return from_flat(values, " with ".join(wheres) or "settings")


def to_toml(config: TrainConfig) -> str:
    """The configuration as a file that `skiprec train --config` takes."""
    return tomli_w.dumps(dict(sorted(flatten(config).items())))
