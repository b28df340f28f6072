"""Studies whose MLflow goes away: a real server, killed and started again, and what its database holds in the end.

In a short form; SKIPREC_FAULTS=full has longer trainings and five kills, one of them for a minute and more.
"""

import collections
import os
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from optuna.trial import TrialState
from test_study import RECIPE, command, data, run  # noqa: F401  the fixture is used by name
from test_ui import free_port

from study.storage import places
from study.ui import wait_until_ready

pytestmark = pytest.mark.slow
FULL = os.environ.get("SKIPREC_FAULTS") == "full"
EPOCHS = 60 if FULL else 12
LONG = RECIPE.replace("max_epochs = 3", f"max_epochs = {EPOCHS}").replace("patience = 2", f"patience = {EPOCHS - 1}")
DOWN = ((10, 30, 0), (50, 70, 60), (100, 120, 0), (150, 190, 0)) if FULL else ((4, 8, 0), (16, 34, 0))
"""After so many epochs of the whole study the server goes, and comes back after so many, and so many seconds."""
METRIC = "val/hr_at_10"


class Server:
    """An MLflow server on SQLite, at one address however often it is started.

    Args:
        folder: Of its database and files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Start it, and wait until it answers."""
        database, files = f"sqlite:///{self.folder / 'server.db'}", (self.folder / "files").as_uri()
        arguments = ("--host", "127.0.0.1", "--port", self.port, "--workers", "1", "--backend-store-uri", database)
        self.process = subprocess.Popen(
            command("mlflow", "server", *arguments, "--artifacts-destination", files),
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it has a child, which must go with it
        )
        wait_until_ready(self.process, self.address, places(self.folder, None, self.address))
        return self

    def kill(self):
        """kill -9."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    """A server that is not started yet."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.kill()


def trials_of(folder):
    """Every trial of the only study."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'mlruns' / 'optuna.db'}")
    trials = optuna.load_study(study_name=None, storage=storage).get_trials()
    storage.engine.dispose()
    return trials


def wait_for(condition, seconds=300):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def epochs_done(folder):
    """How many epochs the trials have reported."""
    if not (folder / "mlruns" / "optuna.db").exists():
        return 0
    try:
        return sum(len(t.intermediate_values) for t in trials_of(folder))
    except (KeyError, ValueError, optuna.exceptions.StorageInternalError):  # not made whole yet
        return 0


def assert_told(folder, client, planned):
    """Every trial has one run, which holds each epoch that the trial reported, once; and the rest of what it was."""
    trials = trials_of(folder)
    complete = collections.Counter(t.user_attrs["cell"] for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == planned
    assert set(complete.values()) == {1}
    ids = [e.experiment_id for e in client.search_experiments()]
    runs = {r.data.tags["run_key"]: r for r in client.search_runs(ids, "tags.role = 'trial'")}
    assert len(client.search_runs(ids, "tags.role = 'trial'")) == len(runs)
    assert runs.keys() == {t.user_attrs["run_key"] for t in trials}
    for t in trials:
        told = runs[t.user_attrs["run_key"]]
        history = client.get_metric_history(told.info.run_id, METRIC)
        assert sorted((m.step, m.value) for m in history) == sorted(t.intermediate_values.items())
        assert t.user_attrs.get("run_id", told.info.run_id) == told.info.run_id
        if t.state == TrialState.COMPLETE:
            assert told.info.status == "FINISHED"
            assert len(told.data.params) == len(t.user_attrs["config"])
            last = t.user_attrs["result"]["metrics"]
            assert told.data.metrics["val/full_hr_at_10"] == last["val/full_hr_at_10"]
            names = {a.path for a in client.list_artifacts(told.info.run_id)}
            assert names == {"best.safetensors", "config.toml", "metrics.json", "ranks_val.parquet", "run.json"}
        else:
            assert told.info.status in ("KILLED", "FAILED")
    (parent,) = client.search_runs(ids, "tags.role = 'study'")
    assert parent.info.status == "FINISHED"
    assert not list((folder / "mlruns" / "spool").rglob("*.jsonl"))


def test_a_server_that_is_killed_and_started_again_in_mid_study_misses_nothing(data, tmp_path, server):  # noqa: F811
    """Between two epochs, across the start of runs, and across the end of the study."""
    (tmp_path / "tiny.toml").write_text(LONG)
    server.start()
    arguments = ("tiny.toml", "--data", data, "--workers", 2, "--device", "cpu", "--tracking-uri", server.address)
    study = subprocess.Popen(command("study", "run", *arguments), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        for down_at, up_at, seconds in DOWN:
            wait_for(lambda n=down_at: epochs_done(tmp_path) >= n)
            server.kill()
            time.sleep(seconds)
            wait_for(lambda n=up_at: epochs_done(tmp_path) >= n)
            server.start()
        wait_for(lambda: epochs_done(tmp_path) >= 4 * EPOCHS - 10)
        server.kill()
        out, _ = study.communicate(timeout=300)
    finally:
        study.kill()
        study.wait()
    assert study.returncode == 0
    assert "4 of 4 cells complete, 0 failed" in out
    assert "wait for the tracker; study sync sends them" in out
    at = ("--tracking-uri", server.address)
    assert "wait for the tracker" in run(tmp_path, "study", "status", *at).stdout
    down = run(tmp_path, "study", "sync", *at)
    assert down.returncode == 1
    assert down.stderr.startswith(f"Unreachable: {server.address}: ")
    assert len(down.stderr.splitlines()) == 1
    server.start()
    sent = run(tmp_path, "study", "sync", *at)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith("study tiny-")
    assert "tracking" not in run(tmp_path, "study", "status", *at).stdout
    assert_told(tmp_path, MlflowClient(tracking_uri=server.address), planned=4)


def test_a_study_may_be_made_and_finished_without_its_server_and_told_later(data, tmp_path, server):  # noqa: F811
    """--offline; without that a server that is away is one line. A worker's death does not matter either."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    arguments = ("tiny.toml", "--data", data, "--device", "cpu", "--tracking-uri", server.address)
    refused = run(tmp_path, "study", "run", *arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Unreachable: {server.address}: ")
    assert refused.stderr.endswith("or `study run --offline` goes on without it\n")
    assert len(refused.stderr.splitlines()) == 1
    done = run(tmp_path, "study", "run", *arguments, "--offline")
    assert done.returncode == 0, done.stderr
    # Of each run: its start, input, settings, three epochs and the chosen one, five files, end; and the study's end.
    assert f"tracking: {4 * 13 + 1} records of 5 runs wait for the tracker; study sync sends them" in done.stdout
    server.start()
    elsewhere = run(tmp_path, "study", "sync")  # to an own file of the folder: what was sent there would be lost to it
    assert elsewhere.returncode == 1
    assert f"was made for the tracker {server.address}, and none is given" in elsewhere.stderr
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    sent = run(tmp_path, "study", "sync", "--tracking-uri", server.address)
    assert sent.returncode == 0, sent.stderr
    assert f"sent {4 * 13 + 1} records of 5 runs to the tracker" in sent.stdout
    client = MlflowClient(tracking_uri=server.address)
    assert_told(tmp_path, client, planned=4)
    report = run(tmp_path, "study", "report", "--out", "report", "--tracking-uri", server.address)
    assert report.returncode == 0, report.stderr


def tell_twice(uri):
    """An epoch's metrics, sent twice, and the history that the tracker then has."""
    client = MlflowClient(tracking_uri=uri)
    run_id = client.create_run(client.create_experiment("twice")).info.run_id
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": float("nan"), "d": -1 / 3}
    for _ in range(2):
        client.log_batch(run_id, metrics=[Metric(name, value, 1_700_000_000_123, 3) for name, value in values.items()])
    client.log_batch(run_id, metrics=[Metric(name, value, 1_700_000_000_456, 4) for name, value in values.items()])
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in values}


def assert_each_once(histories):
    """Two epochs, each once, with the values as they were."""
    values = {"a": 0.1 + 0.2, "b": 1e-300, "d": -1 / 3}
    assert {name: sorted(history) for name, history in histories.items() if name in values} == {
        name: [(3, value), (4, value)] for name, value in values.items()
    }
    assert [step for step, _ in histories["c"]] == [3, 4]


def test_metrics_that_come_twice_are_there_once_on_sqlite(tmp_path):
    """What the replay relies on: MLflow's table has each (run, key, moment, step, value) once."""
    assert_each_once(tell_twice(f"sqlite:///{tmp_path / 'mlflow.db'}"))


def test_metrics_that_come_twice_are_there_once_on_postgresql(new_database):
    """As on SQLite."""
    assert_each_once(tell_twice(new_database()))


def test_metrics_that_come_twice_are_there_once_through_a_server(server):
    """As on SQLite."""
    assert_each_once(tell_twice(server.start().address))
