"""Studies whose workers are killed, hang or are told to stop, and whose server is restarted or cut off: real processes.

In a short form; SKIPREC_FAULTS=full has 128 cells, 8 workers, 30 kills, 5 restarts and a cut of 30 s.
"""

import collections
import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import optuna
import pytest
from conftest import hear_ctrl_c, postgresql
from mlflow import MlflowClient
from optuna.trial import TrialState
from test_study import RECIPE, command, data, run  # noqa: F401  the fixture is used by name

from study.reaper import trained
from study.storage import has_schema, open_storage, places

pytestmark = pytest.mark.slow
FULL = os.environ.get("SKIPREC_FAULTS") == "full"
CELLS, WORKERS, KILLS, RESTARTS, MOMENTS = (128, 8, 30, 5, 20) if FULL else (8, 2, 4, 2, 3)
SECONDS_CUT = 30 if FULL else 5
SECONDS_TO_STOP = 10 if FULL else 60
"""Beside other tests, on a machine with fewer cores than processes, everything takes longer."""
RATES = [round(0.001 + 0.00005 * i, 6) for i in range(CELLS // 2)]
LONG = RECIPE.replace("[0.001, 0.01]", str(RATES)).replace("max_epochs = 3", "max_epochs = 25")
LONG = LONG.replace("patience = 2", "patience = 24")
GRACE = 15


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    """A place for both databases; an empty PostgreSQL each, or files."""
    if request.param == "sqlite":
        return places(tmp_path / "mlruns", None, None)
    new_database = request.getfixturevalue("new_database")
    return places(tmp_path / "mlruns", new_database(), new_database())


def at(where):
    """A command's options that name a study's databases."""
    return "--mlruns", where.mlruns, "--storage", where.storage, "--tracking-uri", where.tracking_uri


def start(where, data, folder, text=LONG, grace=GRACE, **env):  # noqa: F811
    """`study run` in the background."""
    (folder / "tiny.toml").write_text(text)
    arguments = ("study", "run", "tiny.toml", "--data", data, "--workers", WORKERS, "--device", "cpu", *at(where))
    return subprocess.Popen(
        command(*arguments, "--grace-seconds", grace),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
        preexec_fn=hear_ctrl_c,
    )


def trials_of(where):
    """Every trial; none where nothing is made yet."""
    if not has_schema(where):
        return []
    storage = open_storage(where)
    names = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=names[0], storage=storage).get_trials() if names else []
    storage.engine.dispose()
    return trials


def at_work(where, epochs=1):
    """The trials that are at work, and have come so far beyond where they took their cell up."""
    return [
        t
        for t in trials_of(where)
        if t.state == TrialState.RUNNING and "worker" in t.user_attrs and trained(t) >= epochs
    ]


def wait_for(what, process, seconds=240):
    """What comes of a call, as soon as that is anything."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not in {seconds} s")


def kill_worker(trial):
    """kill -9 of who is at work on a trial; False if it was quicker."""
    try:
        os.kill(int(trial.user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def assert_whole(where, planned, set_aside=0):
    """Every cell COMPLETE once, and one FINISHED run of it with each epoch once; nothing left open."""
    trials = trials_of(where)
    complete = collections.Counter(t.user_attrs["cell"] for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == planned - set_aside
    assert set(complete.values()) == {1}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    client = MlflowClient(tracking_uri=where.tracking_uri)
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    runs = {r.info.run_id: r for r in client.search_runs(ids, "tags.role = 'trial'", max_results=1000)}
    assert "RUNNING" not in {r.info.status for r in runs.values()}
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    assert {t.user_attrs["run_id"] for t in finished} == {i for i, r in runs.items() if r.info.status == "FINISHED"}
    for trial in finished:
        steps = [m.step for m in client.get_metric_history(trial.user_attrs["run_id"], "val/hr_at_10")]
        assert steps == list(range(1, trial.user_attrs["result"]["epochs"] + 1))
    return trials


def test_workers_are_killed_in_mid_trial_and_every_cell_is_done_once(where, data, tmp_path):  # noqa: F811
    """An extra attempt a kill at most; what was killed after an epoch goes on from there."""
    process, draw = start(where, data, tmp_path), random.Random(1)
    killed = []
    while len(killed) < KILLS:
        # A dead worker's trial counts as at work until its death is seen.
        trial = draw.choice(wait_for(lambda: [t for t in at_work(where) if t.number not in killed], process))
        if kill_worker(trial):
            killed.append(trial.number)
            time.sleep(draw.uniform(0, 1))
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    trials = assert_whole(where, CELLS)
    assert len(trials) <= CELLS + KILLS
    hit = [n for n in killed if trials[n].state == TrialState.FAIL]
    print(f"{len(hit)} of {KILLS} kills hit a trial in its midst; {len(trials) - CELLS} attempts more than cells")
    assert len(hit) >= 2 * KILLS // 3  # a few had just come to their end
    for number in hit:
        cell = trials[number].user_attrs["cell"]
        after = next(t for t in trials if t.user_attrs["cell"] == cell and t.number > number)
        assert after.user_attrs["resumed_from"] >= 1
    assert errors.count("another takes its place") == KILLS


def test_a_server_that_is_restarted_in_mid_study_loses_nothing(new_database, postgresql_server, data, tmp_path):  # noqa: F811
    """Workers wait for it; also where it only does not answer for a while, as when a network is cut."""
    where = places(tmp_path / "mlruns", new_database(), None)
    process = start(where, data, tmp_path, grace=2 * SECONDS_CUT + GRACE)
    for _ in range(RESTARTS):
        wait_for(lambda: at_work(where), process)
        postgresql("stop", postgresql_server)
        time.sleep(3)
        assert postgresql("start", postgresql_server).returncode == 0
        time.sleep(2)
    wait_for(lambda: at_work(where), process)
    cut_off(postgresql_server)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    trials = assert_whole(where, CELLS)
    assert len(trials) == CELLS, errors


def cut_off(server):
    """Have a PostgreSQL server answer nothing, and take no connection, for a while."""
    first = int((server / "data" / "postmaster.pid").read_text().split()[0])
    others = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True).stdout.split()
    processes = [first, *map(int, others)]
    try:
        for process in processes:
            with suppress(ProcessLookupError):  # its connection was closed just now
                os.kill(process, signal.SIGSTOP)
        time.sleep(SECONDS_CUT)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def test_a_study_that_is_told_to_stop_at_any_moment_stops_soon_and_loses_nothing(data, tmp_path):  # noqa: F811
    """Ctrl-C and SIGTERM, from its first moment on, until it is done."""
    where, draw = places(tmp_path / "mlruns", None, None), random.Random(2)
    for i in range(MOMENTS):
        process = start(where, data, tmp_path)
        time.sleep(draw.uniform(0, 15))
        told = time.monotonic()
        process.send_signal((signal.SIGINT, signal.SIGTERM)[i % 2])
        _, errors = process.communicate(timeout=120)
        assert time.monotonic() - told < SECONDS_TO_STOP, errors
        assert process.returncode != 1, errors
        assert not at_work(where, epochs=0)
    rest = start(where, data, tmp_path)
    _, errors = rest.communicate(timeout=1200)
    assert rest.returncode == 0, errors
    assert_whole(where, CELLS)


STUB = """
import time
from skiprec import trainer
epochs = trainer.Trainer.epochs
def stub(self):
    if self.config.learning_rate == 0.002:
        time.sleep(10_000)
    if self.config.learning_rate == 0.003:
        raise RuntimeError("always")
    return epochs(self)
trainer.Trainer.epochs = stub
"""


def test_a_trial_that_hangs_and_one_that_always_raises_are_set_aside(data, tmp_path):  # noqa: F811
    """With their errors; the others go on, and the hung worker is replaced."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(STUB)
    where = places(tmp_path / "mlruns", None, None)
    text = RECIPE.replace("[0.001, 0.01]", "[0.001, 0.002, 0.003]").replace(
        "[settings]", "max_seconds = 20.0\nmax_attempts = 1\n[settings]"
    )
    path = os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")])
    process = start(where, data, tmp_path, text, PYTHONPATH=path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    trials = assert_whole(where, 6, set_aside=4)
    failed = collections.Counter(t.user_attrs["error"] for t in trials if t.state == TrialState.FAIL)
    assert failed == {
        "took longer than the 20 s that an attempt may take (max_seconds)": 2,
        "RuntimeError: always": 2,
    }
    status = run(tmp_path, "study", "status", *at(where))
    assert "took longer than the 20 s" in status.stdout


def test_a_worker_that_joins_from_elsewhere_is_told_to_stop_and_gives_its_cell_back(where, data, tmp_path):  # noqa: F811
    """SIGTERM: out in under 10 s; the cell goes on from its last epoch in the others' hands."""
    shared = tmp_path / "shared"
    few = LONG.replace(str(RATES), str(RATES[:3]))
    (tmp_path / "tiny.toml").write_text(few)
    arguments = ("study", "run", "tiny.toml", "--data", data, "--workers", 1, "--device", "cpu", *at(where))
    process = subprocess.Popen(
        command(*arguments, "--checkpoint-dir", shared), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: at_work(where), process)
    (study,) = optuna.get_all_study_names(open_storage(where))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    joined = subprocess.Popen(
        command("study", "worker", study, *at(where), "--checkpoint-dir", shared, "--device", "cpu"),
        cwd=elsewhere,
        stderr=subprocess.PIPE,
        text=True,
    )

    def its_own():
        return [t for t in at_work(where) if t.user_attrs["worker"].endswith(f":{joined.pid}")]

    (trial,) = wait_for(its_own, process)
    told = time.monotonic()
    joined.send_signal(signal.SIGTERM)
    _, said = joined.communicate(timeout=60)
    assert joined.returncode == 75
    assert f"joined study {study}\n" in said
    assert time.monotonic() - told < SECONDS_TO_STOP
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    trials = assert_whole(where, 6)
    assert trials[trial.number].user_attrs["interrupted"]
    after = next(t for t in trials[trial.number + 1 :] if t.user_attrs["cell"] == trial.user_attrs["cell"])
    assert after.user_attrs["resumed_from"] >= 1
