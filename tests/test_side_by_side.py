"""Several trials at work in one process: numbers, signals, errors."""

import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import hear_ctrl_c
from optuna.trial import TrialState
from test_faults import at_work, wait_for
from test_study import LONG, RECIPE, assert_whole, command, data, open_study, run  # noqa: F401  a fixture, by name

import study.worker
from skiprec.config import from_flat
from skiprec.dataset import load_dataset
from skiprec.errors import StudyError, TrainingStopped
from skiprec.run import Run, read_record
from study.run import launch
from study.sending import outages
from study.storage import places
from study.worker import shared_evaluators, side_by_side


def study_of(folder, text, data, n: int) -> tuple:  # noqa: F811
    """A study by one worker that has n trials at work, and its trials."""
    (folder / "tiny.toml").write_text(text)
    options = {"threads": 1, "trials_per_device": n, "device": "cpu", "show_progress": False}
    launch(str(folder / "tiny.toml"), data, mlruns=folder / str(n) / "mlruns", **options)
    return open_study(folder / str(n))


@pytest.mark.slow
def test_trials_side_by_side_are_what_they_are_one_by_one(data, tmp_path):  # noqa: F811
    """Every cell's weights and metrics, bit for bit; and they were at work at the same time.

    And they are those of a run that nothing was trained before, though trials of a worker go on in the same memory.
    """
    results = []
    for n in (1, 3):
        made, trials = study_of(tmp_path, RECIPE, data, n)
        assert_whole(tmp_path / str(n), planned=4)
        assert (made.user_attrs["threads"], made.user_attrs["workers"]) == (1, n)
        cells = {t.user_attrs["cell"]: (t.user_attrs["result"]["weights"], t.value) for t in trials}
        results.append(cells)
        spans = sorted((t.datetime_start, t.datetime_complete) for t in trials)
        overlaps = sum(second[0] < first[1] for first, second in itertools.pairwise(spans))
        assert overlaps == 0 if n == 1 else overlaps >= 1
    assert results[0] == results[1]
    for trial in trials:
        afresh = Run(load_dataset(data), from_flat(trial.user_attrs["config"]), tmp_path / "run", show_progress=False)
        list(afresh.epochs())
        value = afresh.finish()["val/hr_at_10"]
        assert results[0][trial.user_attrs["cell"]] == (read_record(tmp_path / "run")["weights"], value)
        shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
def test_a_worker_told_to_stop_gives_all_its_cells_back(data, tmp_path):  # noqa: F811
    """The same command goes on with each."""
    (tmp_path / "tiny.toml").write_text(LONG)
    where = places(tmp_path / "mlruns", None, None)
    arguments = ("study", "run", "tiny.toml", "--data", data, "--trials-per-device", 2, "--device", "cpu")
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    wait_for(lambda: len(at_work(where)) == 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    _, trials = open_study(tmp_path)
    given_back = [t for t in trials if t.state == TrialState.FAIL]
    assert len(given_back) >= 2
    assert all(t.user_attrs["interrupted"] for t in given_back)
    rest = run(tmp_path, *arguments)
    assert rest.returncode == 0, rest.stderr
    assert_whole(tmp_path, planned=4)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_one_of_them_raises_is_raised_when_all_have_ended(failing):
    """Whoever it is, the one that runs here or another; the others are told to stop, and that they did is no error."""
    told = threading.Event()

    def work(i):
        if i == failing:
            raise StudyError(f"of {i}")
        assert told.wait(10)
        raise TrainingStopped(f"{i} was told")

    with pytest.raises(StudyError, match=f"of {failing}"):
        side_by_side([lambda i=i: work(i) for i in range(3)], told.set)


def test_all_that_were_told_to_stop_have_stopped():
    """And nothing is raised where all came to their end."""
    stops = []

    def stopped():
        raise TrainingStopped("told")

    with pytest.raises(TrainingStopped, match="told"):
        side_by_side([lambda: None, stopped, stopped], lambda: stops.append(1))
    side_by_side([lambda: None] * 3, lambda: stops.append(1))
    assert not stops


def test_threads_share_evaluators_that_are_made_once(monkeypatch):
    """Also when all ask for them at the same moment."""
    made = []

    def evaluator(*args, only_targets):
        made.append((args[1], only_targets))
        time.sleep(0.1)
        return object()

    monkeypatch.setattr(study.worker, "Evaluator", evaluator)
    shared = shared_evaluators(None, ("val", "test"), torch.device("cpu"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(shared, ["all"] * 3))
    assert found[0] == found[1] == found[2]
    assert made == [("val", "all"), ("test", "all")]
    assert shared("heard") != found[0]


def test_threads_that_ask_the_tracker_leave_the_environment_as_it_was(monkeypatch):
    """What one says there for its own request is not what another finds to be put back."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)

    def ask(seconds):
        for _ in range(50):
            with outages(seconds):
                said = [os.environ[n] for n in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")]
                found.append((seconds, *said))
                time.sleep(0.0005)

    found = []
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, (1, 2, 3)))
    assert len(found) == 150
    assert all(seconds <= int(said) <= 3 and retries == "0" for seconds, said, retries in found)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.slow
def test_points_that_are_drawn_are_the_same_side_by_side(data, tmp_path):  # noqa: F811
    """Each trial has a sampler of its own: by whichever thread it is drawn, and whatever others draw meanwhile."""
    text = RECIPE.replace('"exhaustive"', '"random"\ncells_per_arm = 3').replace(
        "[0.001, 0.01]", "{ low = 0.001, high = 0.01, log = true }"
    )
    found = []
    for n in (1, 4):
        _, trials = study_of(tmp_path, text, data, n)
        found.append(sorted((t.number, t.params["learning_rate"], t.user_attrs["result"]["weights"]) for t in trials))
    assert found[0] == found[1]
