"""Studies from end to end: real databases, real worker processes, real signals."""

import collections
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import optuna
import pytest
from conftest import hear_ctrl_c
from mlflow import MlflowClient
from optuna.trial import TrialState

import study.cli
from skiprec.errors import StudyError
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study.run import launch

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
sampler = "exhaustive"
[settings]
learning_rate = [0.001, 0.01]
beta = 0.5
dim = 16
n_heads = 2
n_negatives = 20
max_epochs = 3
patience = 2
[arms."S-"]
alpha = 0.0
[arms."S+"]
alpha = 0.5
context = "item"
"""
LONG = RECIPE.replace("max_epochs = 3", "max_epochs = 40").replace("patience = 2", "patience = 39")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small dataset."""
    folder = tmp_path_factory.mktemp("data")
    synthesize_logs(folder / "logs", sessions=300, items=400, seed=1)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    return folder / "data"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A study that two workers finished, and the folder it was run in."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(RECIPE)
    handle = launch(str(folder / "tiny.toml"), data, workers=2, mlruns=folder / "mlruns", show_progress=False)
    return folder, handle


def command(*arguments):
    """A console command of this environment."""
    return [sys.executable, "-m", *map(str, arguments)]


def run(folder, *arguments, **options):
    """Run a command in a folder and wait for it."""
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=300, **options)


def open_study(folder):
    """The only study of a folder's database."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'mlruns' / 'optuna.db'}")
    study = optuna.load_study(study_name=None, storage=storage)
    trials = study.get_trials()
    storage.engine.dispose()
    return study, trials


def runs(folder):
    """Every run of a folder's tracker but the studies' own, and the metric history of each."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(ids, "tags.role = 'trial'")
    return [(r, client.get_metric_history(r.info.run_id, "val/hr_at_10")) for r in found]


def assert_whole(folder, planned):
    """Every cell COMPLETE once, one FINISHED run a cell with each epoch once, nothing left open."""
    _, trials = open_study(folder)
    complete = collections.Counter(t.user_attrs["cell"] for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == planned
    assert set(complete.values()) == {1}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    closed = runs(folder)
    assert all(r.info.status in ("FINISHED", "KILLED") for r, _ in closed)
    whole = [(r, history) for r, history in closed if r.info.status == "FINISHED"]
    assert collections.Counter(r.data.tags["cell"] for r, _ in whole) == complete
    for r, history in whole:
        trial = next(t for t in trials if t.user_attrs["run_id"] == r.info.run_id)
        assert [m.step for m in history] == list(range(1, trial.user_attrs["result"]["epochs"] + 1))
        assert trial.intermediate_values == {m.step: m.value for m in history}


def test_every_cell_is_complete_once_and_recorded_once(finished):
    """Four cells, two workers."""
    folder, handle = finished
    assert_whole(folder, planned=4)
    assert handle.progress().is_finished
    assert len(handle.trials()) == 4


def test_a_run_says_what_it_was_made_from(finished):
    """Flat parameters, tags, the input's digest, the checkpoint and the configuration, under the study's run."""
    folder, handle = finished
    attrs = handle.study.user_attrs
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    for record, _ in runs(folder):
        tags, params = record.data.tags, record.data.params
        assert tags["mlflow.parentRunId"] == attrs["parent_run"]
        assert tags["study"] == handle.name
        assert tags["dataset_digest"] == attrs["dataset_digest"]
        assert tags["seed"] == params["seed"]
        assert tags["attempt"] == "1"
        assert tags["arm"] in ("S-", "S+")
        assert len(tags["git_commit"]) >= 4
        assert (params["dim"], params["batch_size"], params["threads"]) == ("16", "128", str(attrs["threads"]))
        assert {"train/loss", "train/nll", "train/nce", "val/nll", "val/mrr", "val/full_hr_at_10"} <= set(
            record.data.metrics
        )
        assert not any(name.startswith("test/") for name in record.data.metrics)
        names = {a.path for a in client.list_artifacts(record.info.run_id)}
        assert names == {"best.safetensors", "config.toml", "metrics.json", "ranks_val.parquet", "run.json"}
        assert record.inputs.dataset_inputs[0].dataset.digest == attrs["dataset_digest"][:8]
    assert client.get_run(attrs["parent_run"]).info.status == "FINISHED"


def test_a_finished_study_leaves_no_resume_points(finished):
    """Only the locks' files stay."""
    _, handle = finished
    assert {p.name for p in handle.where.resume(handle.name).iterdir()} == {"lock"}


def test_running_a_finished_study_again_changes_nothing(finished, data):
    """No new trial, no new run."""
    folder, handle = finished
    before = len(runs(folder))
    again = launch(str(folder / "tiny.toml"), data, workers=1, mlruns=folder / "mlruns", show_progress=False)
    assert again.name == handle.name
    assert len(runs(folder)) == before
    assert len(open_study(folder)[1]) == 4


def test_the_best_configuration_trains_to_the_same_numbers_elsewhere(finished, data, tmp_path):
    """best.toml through `skiprec train`, in a fresh process from another directory: every epoch and the weights."""
    folder, handle = finished
    handle.report(folder / "report")
    done = run(
        tmp_path,
        "skiprec",
        "train",
        data,
        "--config",
        folder / "report" / "best.toml",
        "--out",
        "again",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    best = handle.study.best_trial
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert record["weights"] == best.user_attrs["result"]["weights"]
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    for line in map(json.loads, (tmp_path / "again" / "history.jsonl").read_text().splitlines()):
        for name, value in line["metrics"].items():
            history = client.get_metric_history(best.user_attrs["run_id"], name)
            assert [m.value for m in history if m.step == line["epoch"]] == [value], (name, line["epoch"])


def test_a_changed_recipe_is_refused_with_what_differs(finished, data, tmp_path):
    """The same name is the same study; what differs is one key, and that alone is said."""
    folder, handle = finished
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("0.01]", "0.02]"))
    differs = r"was made differently: settings.learning_rate was \[0.001, 0.01\], now \[0.001, 0.02\]. Give this one"
    with pytest.raises(StudyError, match=differs):
        launch(str(tmp_path / "tiny.toml"), data, name=handle.name, mlruns=folder / "mlruns", show_progress=False)


def test_other_data_are_refused_under_the_same_name(finished, tmp_path):
    """The digest tells."""
    folder, handle = finished
    synthesize_logs(tmp_path / "logs", sessions=300, items=400, seed=2)
    prepare_logs([tmp_path / "logs"], tmp_path / "data", progress=False)
    with pytest.raises(StudyError, match=r"was made differently: the dataset was [0-9a-f]{8}, now [0-9a-f]{8}"):
        launch(
            str(folder / "tiny.toml"),
            tmp_path / "data",
            name=handle.name,
            mlruns=folder / "mlruns",
            show_progress=False,
        )


def start_and_wait_for_an_epoch(folder, data):
    """`study run` on the long recipe, in the background, until some trial has finished its first epoch."""
    (folder / "long.toml").write_text(LONG)
    process = subprocess.Popen(
        command("study", "run", "long.toml", "--data", data, "--workers", 2, "--device", "cpu"),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        if any((folder / "mlruns").glob("resume/*/*/*/resume.safetensors")):
            return process
        time.sleep(0.05)
    raise AssertionError("no epoch in 120 s")


def weights(folder):
    """Each cell's weights."""
    return {
        t.user_attrs["cell"]: t.user_attrs["result"]["weights"] for t in open_study(folder)[1] if t.value is not None
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    """What the long recipe comes to when nothing happens."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "long.toml").write_text(LONG)
    launch(str(folder / "long.toml"), data, workers=2, mlruns=folder / "mlruns", device="cpu", show_progress=False)
    return weights(folder)


def test_a_study_stopped_with_ctrl_c_goes_on_as_if_nothing_had_happened(data, tmp_path, uninterrupted):
    """SIGINT after an epoch: nothing left running; the same command: every cell once, the same weights."""
    process = start_and_wait_for_an_epoch(tmp_path, data)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    _, trials = open_study(tmp_path)
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert all(r.info.status in ("KILLED", "FINISHED") for r, _ in runs(tmp_path))
    assert any(t.user_attrs.get("interrupted") for t in trials)
    again = run(tmp_path, "study", "run", "long.toml", "--data", data, "--workers", 2, "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)
    assert any(t.user_attrs.get("resumed_from", 0) >= 1 for t in open_study(tmp_path)[1])
    assert weights(tmp_path) == uninterrupted


def test_a_study_whose_processes_were_all_killed_goes_on(data, tmp_path, uninterrupted):
    """kill -9 of the command: its workers notice, what they left running is taken over."""
    process = start_and_wait_for_an_epoch(tmp_path, data)
    process.kill()
    process.wait()
    process.stderr.close()
    again = run(tmp_path, "study", "run", "long.toml", "--data", data, "--workers", 2, "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)
    assert weights(tmp_path) == uninterrupted


def test_a_second_command_on_a_running_study_is_refused(data, tmp_path):
    """One line, exit code 1, and the first goes on."""
    process = start_and_wait_for_an_epoch(tmp_path, data)
    second = run(tmp_path, "study", "run", "long.toml", "--data", data, "--device", "cpu")
    assert second.returncode == 1
    assert second.stderr.startswith("StudyError: study tiny-")
    assert second.stderr.endswith("is being run by another `study run` already; wait for it, or stop it\n")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_cell_that_diverges_is_set_aside_and_the_others_go_on(data, tmp_path):
    """Its error is in the status; it is not tried again, as it would diverge again."""
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("0.01]", "1e30]"))
    done = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 cells complete, 2 failed" in done.stdout
    status = run(tmp_path, "study", "status")
    assert status.stdout.count("failed 1 times") == 2
    assert "epoch 1: mean loss is " in status.stdout or "evaluation: a score is nan" in status.stdout


def test_a_search_measures_as_many_points_in_every_arm(data, tmp_path):
    """TPE, S- without anything to propose but the learning rate: no two cells are the same run."""
    text = RECIPE.replace('"exhaustive"', '"tpe"\ncells_per_arm = 3').replace("[0.001, 0.01]", "[0.001]")
    (tmp_path / "tiny.toml").write_text(text)
    done = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--workers", 2)
    assert done.returncode == 0, done.stderr
    _, trials = open_study(tmp_path)
    assert collections.Counter(t.user_attrs["arm"] for t in trials) == {"S-": 3, "S+": 3}
    # One point an arm: the second and third measurement of it have seeds of their own.
    assert len({t.user_attrs["cell_id"] for t in trials}) == 6
    assert len({t.user_attrs["result"]["weights"] for t in trials}) == 6


@pytest.mark.parametrize("megabytes", [0.01, 0.2, 0.6, 1.0])
def test_a_disk_that_fills_is_one_line_and_the_study_goes_on_when_there_is_space(data, tmp_path, megabytes):
    """A limit on the size of files stands for the disk: in a database, a resume point, a checkpoint."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    limit = int(megabytes * 1_000_000)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = ("study", "run", "tiny.toml", "--data", data, "--workers", 1, "--device", "cpu")
    full = run(tmp_path, *arguments, preexec_fn=small_files)
    if full.returncode != 0:
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert full.stderr.splitlines()[-1].startswith(("OutputError: ", "StudyError: "))
    assert not list((tmp_path / "mlruns").rglob("*.partial"))
    again = run(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)


def test_status_and_report_of_a_study_that_is_not_there(tmp_path):
    """One line that says what to do, exit code 1, and no database is made by asking."""
    for arguments in (("status",), ("report", "--out", "report")):
        done = run(tmp_path, "study", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("StudyError: ")
        assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_the_status_is_said_where_nothing_can_be_written(finished, monkeypatch, capsys):
    """Of somebody else's study, on a disk that may be read alone."""
    folder, handle = finished

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    study.cli.status(handle.name, folder / "mlruns")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"workers that are gone were not looked for: {folder / 'mlruns'}: Read-only file system"
    assert rest[0].startswith(f"study {handle.name}: ")


def test_a_report_is_kept_with_the_study_and_never_overwritten(finished):
    """`study report` writes the files and logs them; a second time it refuses."""
    folder, handle = finished
    done = run(folder, "study", "report", handle.name, "--out", "out")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (folder / "out").iterdir()}
    assert names == {"report.html", "report.md", "summary.json", "trials.csv", "figures", "best.toml", "recipe.toml"}
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    kept = {Path(a.path).name for a in client.list_artifacts(handle.study.user_attrs["parent_run"], "report")}
    assert kept == names
    again = run(folder, "study", "report", handle.name, "--out", "out")
    assert again.returncode == 1
    assert again.stderr == "OutputError: out already exists; choose another --out, or remove it first\n"


def test_two_studies_made_in_the_same_second_share_the_databases(data, tmp_path):
    """Neither loses the other's: both are there, and whole."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    arguments = ("study", "run", "tiny.toml", "--data", data, "--device", "cpu", "--name")
    both = [subprocess.Popen(command(*arguments, name), cwd=tmp_path) for name in ("first", "second")]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    for name in ("first", "second"):
        shown = run(tmp_path, "study", "status", name)
        assert f"study {name}: 4 of 4 cells complete" in shown.stdout


def test_a_place_for_artifacts_that_cannot_be_written_fails_no_cell(data, tmp_path):
    """One line, exit code 1; mended, the same command completes every cell."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "artifacts").write_text("not a folder")
    arguments = ("study", "run", "tiny.toml", "--data", data, "--device", "cpu")
    blocked = run(tmp_path, *arguments)
    assert blocked.returncode == 1
    assert "Traceback" not in blocked.stderr
    (tmp_path / "mlruns" / "artifacts").unlink()
    again = run(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)


def test_a_run_deleted_in_the_ui_does_not_block_its_study(data, tmp_path):
    """Of a killed study, somebody deletes the runs that look stuck."""
    process = start_and_wait_for_an_epoch(tmp_path, data)
    process.kill()
    process.wait()
    process.stderr.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    for stuck, _ in runs(tmp_path):
        client.delete_run(stuck.info.run_id)
    again = run(tmp_path, "study", "run", "long.toml", "--data", data, "--workers", 2, "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)


def test_a_study_goes_on_with_the_same_data_elsewhere(finished, data, tmp_path):
    """What counts is the digest; workers read where the command says."""
    shutil.copytree(data, tmp_path / "moved")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    shutil.copytree(data, tmp_path / "first")
    arguments = ("study", "run", "tiny.toml", "--device", "cpu", "--data")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_040_000, 1_040_000))

    run(tmp_path, *arguments, "first", preexec_fn=small_files)
    shutil.rmtree(tmp_path / "first")
    again = run(tmp_path, *arguments, "moved")
    assert again.returncode == 0, again.stderr
    assert_whole(tmp_path, planned=4)


def test_a_search_that_prunes_is_finished_and_says_what_it_spent(data, tmp_path):
    """Rates that learn nothing are ended early, after some that do; they count as done, and their epochs as spent."""
    text = RECIPE.replace('"exhaustive"', '"random"\ncells_per_arm = 10\npruner = "median"')
    text = text.replace("[0.001, 0.01]", "{ low = 1e-7, high = 0.01, log = true }")
    text = text.replace("max_epochs = 3", "max_epochs = 6").replace("patience = 2", "patience = 5")
    (tmp_path / "tiny.toml").write_text(text)
    done = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--workers", 2)
    assert done.returncode == 0, done.stderr
    _, trials = open_study(tmp_path)
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert pruned
    assert {t.state for t in trials} == {TrialState.PRUNED, TrialState.COMPLETE}
    assert all(3 <= len(t.intermediate_values) < 6 for t in pruned)
    assert f"{20 - len(pruned)} of 20 cells complete, 0 failed, {len(pruned)} pruned" in done.stdout
    report = run(tmp_path, "study", "report", "--out", "report")
    assert report.returncode == 0, report.stderr
    epochs = sum(len(t.intermediate_values) for t in trials)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert sum(arm["epochs"] for arm in summary["arms"]) == epochs
