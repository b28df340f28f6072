"""Settings: names, types and ranges are checked and told; layers lie over each other in one order."""

import dataclasses
import tomllib

import pytest

from skiprec.config import PRESETS, SETTINGS, flatten, from_flat, parse_setting, resolve, to_toml
from skiprec.errors import ConfigError
from skiprec.train_config import TrainConfig
from skiprec.trainer import Trainer


def refusal(values: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        from_flat(values, "best.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learnin_rate": 0.1}, "unknown setting 'learnin_rate', did you mean 'learning_rate'?"),
        ({"temprature": 0.1}, "unknown setting 'temprature', did you mean 'temperature'?"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected a number"),
        ({"learning_rate": True}, "learning_rate is True, expected a number"),
        ({"max_epochs": True}, "max_epochs is True, expected an integer"),
        ({"max_epochs": 2.0}, "max_epochs is 2.0, expected an integer"),
        ({"visible_positive": 1}, "visible_positive is 1, expected true or false"),
        ({"context": "both"}, "context is 'both', expected 'session' or 'item'"),
        ({"context": 3}, "context is 3, expected 'session' or 'item'"),
        ({"architecture": "causal"}, "architecture is 'causal', expected 'unidirectional' or 'bidirectional'"),
        ({"norm": "none"}, "norm is 'none', expected 'pre' or 'post'"),
        ({"only_targets": "new"}, "only_targets is 'new', expected 'all' or 'heard'"),
        (
            {"negative_scope": "future"},
            "negative_scope is 'future', expected 'session' or 'past' or 'other_session' or 'released' or 'random' or "
            "'popular' or 'in_batch'",
        ),
        ({"negatives": "none"}, "negatives is 'none', expected 'session' or 'batch' or 'full'"),
        ({"n_heads": 7}, "n_heads (7) must divide dim (128)"),
        ({"alpha": -1}, "alpha is -1.0, expected 0 or more"),
        ({"temperature": 0}, "temperature must be positive, got 0.0"),
        ({"learning_rate": 0}, "learning_rate is 0.0, expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected more than 0"),
        (
            {"patience": 100, "max_epochs": 100},
            "patience (100) must be smaller than max_epochs (100), or early stopping can never act",
        ),
    ],
)
def test_a_bad_setting_is_told_with_place_and_expectation(values, message):
    assert refusal(values) == f"best.toml: {message}"


@pytest.mark.parametrize("name", ["min_length", "max_length", "only_sessions_with_skips", "split"])
def test_settings_of_preparing_are_sent_there(name):
    assert refusal({name: 3}) == (
        f"best.toml: '{name}' is settled when the logs are prepared: give it to `skiprec prepare`"
    )


def test_a_name_unlike_any_other_is_told_all_names():
    message = refusal({"zzz": 1})
    assert message.startswith("best.toml: unknown setting 'zzz', expected one of activation, alpha, anchors, ")
    assert all(name in message for name in SETTINGS)


@pytest.mark.parametrize("name", ["model", "loss"])
def test_a_config_inside_another_is_no_setting(name):
    assert f"unknown setting '{name}'" in refusal({name: {}})


def test_nothing_set_is_the_defaults():
    assert from_flat({}) == TrainConfig()


def test_settings_reach_the_config_that_holds_them():
    config = from_flat({"dim": 64, "alpha": 0, "learning_rate": 1, "negative_scope": "random"})
    assert (config.model.dim, config.loss.alpha, config.learning_rate) == (64, 0.0, 1.0)
    assert config.loss.negative_scope == "random"
    assert (type(config.loss.alpha), type(config.learning_rate)) == (float, float)


def test_each_setting_has_one_home():
    homes = [
        {field.name for field in dataclasses.fields(part)}
        for part in (TrainConfig(), TrainConfig().model, TrainConfig().loss)
    ]
    assert len(homes[0] | homes[1] | homes[2]) == sum(map(len, homes))
    assert flatten(TrainConfig()).keys() == SETTINGS


def test_a_file_lies_over_a_preset_and_single_settings_over_both(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('learning_rate = 0.02\nbeta = 0.75\ncontext = "session"\n')
    config = resolve("paper", file, ["beta=0.25", "beta=1", "seed=7"], threads=3, seed=5)
    assert config.model.init == "paper"  # of the preset
    assert config.learning_rate == 0.02  # of the file, over the preset's 0.005
    assert config.loss.context == "session"
    assert config.loss.beta == 1.0  # the last of two settings, over the file
    assert (config.seed, config.threads) == (7, 3)  # the fallback counts where nothing else is said
    assert resolve(None, None, []) == TrainConfig()


def test_the_paper_preset_is_its_text():
    config = resolve("paper", None, [])
    changed = {k: v for k, v in flatten(config).items() if flatten(TrainConfig())[k] != v}
    assert changed == {"learning_rate": 0.005, "init": "paper", "visible_positive": True}
    assert (config.loss.alpha, config.loss.beta) == (0.5, 0.5)


def test_the_released_preset_is_what_the_authors_code_does():
    """Clipping at 5 is the default."""
    config = resolve("released", None, [])
    changed = {k: v for k, v in flatten(config).items() if flatten(TrainConfig())[k] != v}
    assert changed == {
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
    }
    assert config.max_grad_norm == 5.0


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(dataset, preset, architecture):
    small = ["max_epochs=1", "patience=0", "n_negatives=20", f"architecture={architecture}"]
    (result,) = Trainer(dataset, resolve(preset, None, small), show_progress=False).epochs()
    assert 0 < result.metrics["train/nce"] < 100
    assert 0 < result.metrics["train/nll"] < 100


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError) as caught:
        resolve("best", None, [])
    assert str(caught.value) == f"--preset best: unknown, expected one of {', '.join(PRESETS)}"


def test_the_place_of_a_bad_setting_names_every_layer(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("alpha = -1\n")
    with pytest.raises(ConfigError) as caught:
        resolve("paper", file, ["beta=0.5"])
    assert str(caught.value) == f"--preset paper with {file} with --set: alpha is -1, expected 0 or more".replace(
        "-1,", "-1.0,"
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"learning_rate": 1e-8, "alpha": 0.1, "seed": 2**40}, {"architecture": "bidirectional", "dropout": 0.0}],
)
def test_a_config_survives_its_file(changes, tmp_path):
    config = from_flat(changes)
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert resolve(None, tmp_path / "c.toml", []) == config
    table = tomllib.loads(to_toml(config))
    assert table == flatten(config)
    assert list(table) == sorted(table)
    assert from_flat(flatten(config)) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=0.001", ("learning_rate", 0.001)),
        ("seed = 3", ("seed", 3)),
        ("visible_positive=true", ("visible_positive", True)),
        ("context=session", ("context", "session")),
        ('context="session"', ("context", "session")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_a_setting_is_toml_or_else_text(text, expected):
    assert parse_setting(text) == expected


def test_a_setting_without_equals_is_refused():
    with pytest.raises(ConfigError) as caught:
        parse_setting("alpha")
    assert str(caught.value) == "--set alpha: expected NAME=VALUE, for example --set learning_rate=0.001"


def test_files_that_are_no_toml_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file or directory\), expected a TOML"):
        resolve(None, tmp_path / "none.toml", [])
    (tmp_path / "bad.toml").write_text("alpha = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML: "):
        resolve(None, tmp_path / "bad.toml", [])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: is not TOML: "):
        resolve(None, tmp_path / "binary.toml", [])
