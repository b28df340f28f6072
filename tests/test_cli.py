"""The commands as a user types them: what is printed, exit codes, and what is left behind."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from conftest import hear_ctrl_c

from skiprec.cli import app as skiprec_app
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study.cli import app as study_app

README = Path(__file__).parent.parent / "README.md"
SMALL = ["dim=16", "n_heads=2", "n_negatives=20", "max_epochs=3", "patience=2", "threads=1"]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small dataset."""
    folder = tmp_path_factory.mktemp("cli")
    synthesize_logs(folder / "logs", sessions=150, items=200, seed=1, progress=False)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    return folder / "data"


def run(folder, *arguments, **options):
    """Run a command in a folder and wait for it."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, **options)


def assert_refused(done, message):
    """Exit code 1 and one line."""
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.match(message, done.stderr), done.stderr


def commands(application):
    """The commands that --help shows."""
    return {c.name or c.callback.__name__: c for c in application.registered_commands if not c.hidden}


@pytest.mark.parametrize(("program", "application"), [("skiprec", skiprec_app), ("study", study_app)])
def test_every_command_has_an_example_and_is_in_the_readme(program, application):
    """What --help shows and what the README names are the same commands."""
    text = README.read_text()
    for name, command in commands(application).items():
        assert f"Example: {program} {name}" in command.callback.__doc__
        assert f"`{program} {name}" in text
    named = set(re.findall(rf"`{program} (\w+)", text))
    assert named <= set(commands(application))


def test_from_logs_to_an_evaluated_model(tmp_path):
    """synthesize, prepare, describe, train, evaluate: each says what it wrote and what is next."""
    made = run(tmp_path, "skiprec", "synthesize", "--out", "logs", "--sessions", 150, "--items", 200)
    assert made.stdout == "wrote 1 log files to logs\nnext: skiprec prepare logs --out DIR\n"
    prepared = run(tmp_path, "skiprec", "prepare", "logs", "--out", "data")
    assert prepared.returncode == 0, prepared.stderr
    assert prepared.stdout.startswith("150 sessions kept, ")
    assert "wrote data\nnext: skiprec describe data, or study run demo --data data\n" in prepared.stdout
    assert run(tmp_path, "skiprec", "describe", "data").stdout.startswith("dataset ")
    assert json.loads(run(tmp_path, "skiprec", "describe", "data", "--json").stdout)["sessions"] == 150
    other = run(tmp_path, "skiprec", "prepare", "logs", "--out", "other", "--split", "random")
    assert_refused(other, "ConfigError: split is 'random', expected 'leave_one_out' or 'temporal'")
    heard = ("--set", "only_targets=heard")  # which evaluate has to read from the run
    trained = run(tmp_path, "skiprec", "train", "data", "--out", "run", *SETTINGS, *heard)
    assert trained.returncode == 0, trained.stderr
    assert re.fullmatch(
        r"Adam, dense for the item table: a step touches \d+% of its rows\n"
        r"chose epoch \d of \d: val HR@10 0\.\d{4}\nwrote run\nnext: skiprec evaluate run\n",
        trained.stdout,
    )
    assert trained.stderr == ""  # no bar where the output is not a terminal
    for split in ("val", "test"):
        shown = run(tmp_path, "skiprec", "evaluate", "run", "--split", split)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.split()[:5] == ["model", "random", "most", "popular", "session-popular"]
        assert re.search(rf"^{split}/popularity/first/full_hr_at_10( +[01][\d.]*){{7}}$", shown.stdout, re.MULTILINE)
        value = float(re.search(rf"{split}/hr_at_10 +([\d.]+)", shown.stdout)[1])
        if split == "val":
            metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
            assert value == pytest.approx(metrics["val/hr_at_10"], abs=1e-4)


def test_bad_usage_exits_with_2(tmp_path):
    """An argument that is missing, or an option that is unknown."""
    assert run(tmp_path, "skiprec", "train").returncode == 2
    assert run(tmp_path, "skiprec", "prepare", "x", "--out", "y", "--nope").returncode == 2
    assert run(tmp_path, "study", "nope").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "learning_rat=1"],
            "ConfigError: --set: unknown setting 'learning_rat', did you mean 'learning_rate'",
        ),
        (["--set", "learning_rate=fast"], "ConfigError: --set: learning_rate is 'fast', expected a number"),
        (["--set", "learning_rate"], "ConfigError: --set learning_rate: expected NAME=VALUE"),
        (["--preset", "pepar"], "ConfigError: --preset pepar: unknown, expected one of paper, released"),
        (["--config", "none.toml"], "ConfigError: none.toml: cannot be read"),
        (["--device", "cuda:99"], "ConfigError: --device cuda:99: this machine has "),
        (["--resume"], "ConfigError: run: no config.toml, expected the folder of an earlier `skiprec train`"),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, data, arguments, message):
    """The run folder is not made."""
    assert_refused(run(tmp_path, "skiprec", "train", data, "--out", "run", *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_exists_is_refused_and_left_as_it_is(tmp_path, data):
    """Whatever is in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    refused = run(tmp_path, "skiprec", "train", data, "--out", "run", *SETTINGS)
    assert_refused(refused, "OutputError: run already exists; choose another --out, or remove it first")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_stopped_with_ctrl_c_goes_on_with_resume(tmp_path, data):
    """The same history and weights as a run that was left alone."""
    settings = [s.replace("max_epochs=3", "max_epochs=30").replace("patience=2", "patience=29") for s in SETTINGS]
    whole = run(tmp_path, "skiprec", "train", data, "--out", "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "skiprec", "train", str(data), "--out", "cut", *settings]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    until = time.monotonic() + 120
    while not (tmp_path / "cut" / "resume.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"stopped; go on with: skiprec train {data} --out cut --resume\n"
    anew = run(tmp_path, "skiprec", "train", data, "--out", "cut")
    assert_refused(anew, "ConfigError: cut: holds a run that is not finished; --resume goes on with it, or choose ")
    resumed = run(tmp_path, "skiprec", "train", data, "--out", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "cut"))
    assert a["weights"] == b["weights"]
    histories = [
        [json.loads(line)["metrics"] for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert histories[0] == histories[1]


def test_a_model_is_not_used_with_other_data(tmp_path, data):
    """Nor one whose bytes were changed, nor data that were changed after preparing."""
    assert run(tmp_path, "skiprec", "train", data, "--out", "run", *SETTINGS).returncode == 0
    synthesize_logs(tmp_path / "logs", sessions=150, items=200, seed=2, progress=False)
    prepare_logs([tmp_path / "logs"], tmp_path / "other", progress=False)
    other = run(tmp_path, "skiprec", "evaluate", "run", "--data", "other")
    assert_refused(other, "CheckpointError: run/best.safetensors: made from the dataset [0-9a-f]{8}, expected ")
    resumed = run(tmp_path, "skiprec", "train", "other", "--out", "run", "--resume")
    assert_refused(resumed, "CheckpointError: run/resume.safetensors: made from the dataset ")
    checkpoint = tmp_path / "run" / "best.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert_refused(run(tmp_path, "skiprec", "evaluate", "run"), "CheckpointError: run/best.safetensors: damaged")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"skip_threshold": 2', '"skip_threshold": 3'))
    assert_refused(run(tmp_path, "skiprec", "describe", "other"), "DatasetError: other")


@pytest.mark.parametrize("kilobytes", [0.1, 0.2, 0.5, 1, 3, 10, 20, 40, 50, 80])
def test_a_disk_that_fills_while_training_is_one_line_and_can_be_gone_on_with(tmp_path, data, kilobytes):
    """A limit on the size of files stands for the disk: what is there is whole, and --resume or a new run works."""
    limit = int(kilobytes * 1000)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = run(tmp_path, "skiprec", "train", data, "--out", "run", *SETTINGS, preexec_fn=small_files)
    assert not list(tmp_path.rglob("*.partial"))
    if full.returncode:
        assert_refused(full, r"OutputError: .*: cannot be written \(File too large\)")
    resume = ["--resume"] if (tmp_path / "run").exists() else SETTINGS
    again = run(tmp_path, "skiprec", "train", data, "--out", "run", *resume)
    assert again.returncode == 0, again.stderr


def test_a_recipe_with_a_range_the_wrong_way_round_is_one_line(tmp_path, data):
    """And no study is made."""
    recipe = {
        "name": "r",
        "sampler": "tpe",
        "cells_per_arm": 1,
        "settings": {"learning_rate": {"low": 0.1, "high": 0.01}},
        "arms": {"a": {}},
    }
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    refused = run(tmp_path, "study", "run", "r.toml", "--data", data)
    assert_refused(
        refused, "ConfigError: r.toml: arm 'a': learning_rate goes from 0.1 to 0.01, expected low below high"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"]
