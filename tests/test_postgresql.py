"""Studies on a real PostgreSQL server: the same code, started by any number at once, and passwords that nobody sees."""

import collections
import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import psycopg
import pytest
import sqlalchemy
from conftest import postgresql
from mlflow import MlflowClient
from optuna.trial import TrialState
from test_queue import assert_no_cell_is_shared
from test_study import RECIPE, command, data, run  # noqa: F401  the fixture is used by name
from test_ui import free_port

from skiprec.dataset import load_dataset
from skiprec.errors import StudyError
from study import locks, tracking
from study.locks import claim_lock, make_schema, run_lock, server_lock
from study.queue import planned_cells, refill
from study.run import Making, create
from study.space import load_recipe
from study.storage import check_server, database_errors, open_storage, open_study, places, with_settings

pytestmark = pytest.mark.slow
SEARCH = RECIPE.replace('"exhaustive"', '"tpe"\ncells_per_arm = 3').replace("[0.001, 0.01]", "[0.001]")
SECRET = "correct-horse-battery"


@pytest.fixture
def where(new_database, tmp_path):
    """The addresses of two empty databases, for Optuna and for MLflow."""
    return places(tmp_path / "mlruns", new_database(), new_database())


def at(where):
    """A command's options that name a study's databases."""
    return "--mlruns", where.mlruns, "--storage", where.storage, "--tracking-uri", where.tracking_uri


def texts(url):
    """Every row of every table of a database, as text."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid > 16383")
        return [row for (t,) in tables.fetchall() for (row,) in connection.execute(f"SELECT t::text FROM {t} t")]


def assert_whole(where, planned, studies=1):
    """Every cell COMPLETE once, one FINISHED run a cell with each epoch once, nothing left open; one parent a study."""
    storage = open_storage(where)
    names = optuna.get_all_study_names(storage)
    assert len(names) == studies
    trials = [t for name in names for t in optuna.load_study(study_name=name, storage=storage).get_trials()]
    storage.engine.dispose()
    complete = collections.Counter(t.user_attrs["cell"] for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == planned
    assert set(complete.values()) == {1}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    client = MlflowClient(tracking_uri=where.tracking_uri)
    experiments = [e for e in client.search_experiments() if e.name != "Default"]
    assert len(experiments) == 1
    ids = [experiments[0].experiment_id]
    assert [r.info.status for r in client.search_runs(ids, "tags.role = 'study'")] == ["FINISHED"] * studies
    runs = {r.info.run_id: r for r in client.search_runs(ids, "tags.role = 'trial'")}
    assert {r.info.status for r in runs.values()} <= {"FINISHED", "KILLED"}
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    assert {t.user_attrs["run_id"] for t in finished} == {i for i, r in runs.items() if r.info.status == "FINISHED"}
    for t in finished:
        history = client.get_metric_history(t.user_attrs["run_id"], "val/hr_at_10")
        assert [m.step for m in history] == list(range(1, t.user_attrs["result"]["epochs"] + 1))
        assert t.intermediate_values == {m.step: m.value for m in history}
        files = {a.path for a in client.list_artifacts(t.user_attrs["run_id"])}
        assert {"best.safetensors", "run.json", "ranks_val.parquet"} <= files
    return trials


@pytest.fixture
def secret(postgresql_server, monkeypatch):
    """A user whose password is known from the environment alone."""
    server = (postgresql_server / "url").read_text().strip()
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE somebody SUPERUSER LOGIN PASSWORD '{SECRET}'")
    monkeypatch.setenv("PGPASSFILE", "none")
    monkeypatch.setenv("PGPASSWORD", SECRET)


def command_lines(until_done):
    """The command line of every process on this machine, looked at again and again until something is done."""
    seen = set()
    while not until_done():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it ended meanwhile
                continue
        time.sleep(0.2)
    return seen


def test_a_study_runs_is_confirmed_and_reported_and_its_password_is_nowhere(where, secret, data, tmp_path):  # noqa: F811
    """Two workers, both databases on the server: every command; then each text that any of them left is looked at."""
    where = places(where.mlruns, *(u.replace("skiprec@", "somebody@") for u in (where.storage, where.tracking_uri)))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    said = []
    commands = [
        ("run", "tiny.toml", "--data", data, "--workers", 2, "--device", "cpu"),
        ("status",),
        ("confirm", "--workers", 2, "--device", "cpu"),
        ("report", "--out", "report"),
        ("status",),
    ]
    for arguments in commands:
        process = subprocess.Popen(
            command("study", *arguments, *at(where)),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = command_lines(lambda process=process: process.poll() is not None)
        said.append(process.communicate()[0])
        assert process.returncode == 0, said[-1]
        if arguments[0] == "run":
            assert any("study worker tiny-" in line and where.storage in line for line in lines)  # so we did look
        assert not [line for line in lines if SECRET in line]
    assert "4 of 4 cells complete" in said[1]
    assert said[4].count("complete, 0 running, 0 waiting, 0 failed") == 2
    assert_whole(where, planned=4 + 10, studies=2)
    assert len(list(where.artifacts.rglob("best.safetensors"))) == 4 + 10
    assert not [text for text in said if SECRET in text]
    assert not [text for url in (where.storage, where.tracking_uri) for text in texts(url) if SECRET in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_commands_started_at_once_make_one_study(where, data, tmp_path):  # noqa: F811
    """Each with a folder of its own, as on so many machines: one runs it, and others say so or find it finished."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    arguments = ("study", "run", "tiny.toml", "--data", data, "--device", "cpu")
    processes = []
    for number in range(8 if os.environ.get("SKIPREC_FAULTS") == "full" else 3):
        own = places(tmp_path / f"mlruns-{number}", where.storage, where.tracking_uri)
        started = command(*arguments, *at(own))
        processes.append(subprocess.Popen(started, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        assert code in (0, 1)
        assert "Traceback" not in error
        if code:
            assert error.startswith("StudyError: study tiny-")
            assert error.endswith(" is being run by another `study run` already; wait for it, or stop it\n")
    assert len(assert_whole(where, planned=4)) == 4


def test_schemas_are_made_by_one_at_a_time(where):
    """Eight on one empty database: unlocked, neither Optuna nor MLflow lets more than one or two of them live."""
    start = threading.Barrier(8)

    def make(_):
        start.wait()
        make_schema(where)
        tracking.make_schema(where)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(make, range(8))) == [None] * 8
    assert not optuna.get_all_study_names(open_storage(where))


def test_workers_started_at_once_share_the_cells_of_a_study(where, data, tmp_path):  # noqa: F811
    """Three of them, by their own command, on a search: no two cells are the same experiment with the same seed."""
    (tmp_path / "tiny.toml").write_text(SEARCH)
    dataset = load_dataset(data)
    recipe = load_recipe(str(tmp_path / "tiny.toml"))
    with run_lock(where, "s"):
        study = create(where, Making(name="s", recipe=recipe, dataset=dataset), 3, "cpu")
        refill(study, planned_cells(study), max_attempts=1)
    started = command("study", "worker", "s", *at(where), "--device", "cpu")
    workers = [subprocess.Popen(started, cwd=tmp_path) for _ in range(3)]
    assert [process.wait(timeout=300) for process in workers] == [0, 0, 0]
    # The command that waits for workers is what ends the study's run.
    again = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--name", "s", *at(where))
    assert again.returncode == 0, again.stderr
    trials = assert_whole(where, planned=6)
    assert len({t.user_attrs["cell_id"] for t in trials}) == len(trials) == 6


def test_a_study_runs_with_an_mlflow_server_on_postgresql(where, data, tmp_path):  # noqa: F811
    """The server keeps the artifacts in a folder of its own."""
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    artifacts = tmp_path / "artifacts"
    options = ["--backend-store-uri", where.tracking_uri, "--artifacts-destination", artifacts, "--workers", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), *map(str, options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"{server}/health", process)
        by_server = places(tmp_path / "mlruns", where.storage, server)
        (tmp_path / "tiny.toml").write_text(RECIPE)
        done = run(tmp_path, "study", "run", "tiny.toml", "--data", data, "--workers", 2, *at(by_server))
        assert done.returncode == 0, done.stderr
        assert_whole(by_server, planned=4)
        assert len(list(artifacts.rglob("best.safetensors"))) == 4
    finally:
        process.terminate()
        process.wait()


def wait_for(address, process):
    """Wait until a server answers."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} did not answer in 120 s")


def test_workers_that_claim_at_the_same_time_never_share_a_cell(where):
    """As on SQLite."""
    assert_no_cell_is_shared(where)


def test_of_two_claim_locks_one_waits_for_the_other(where):
    """Of another study, it does not; and a lock can be taken again."""
    first, second, other = (claim_lock(where, study) for study in ("s", "s", "t"))
    held = threading.Event()

    def hold():
        with second:
            held.set()

    thread = threading.Thread(target=hold)
    with first:
        thread.start()
        with other:
            assert not held.wait(0.5)
    assert held.wait(10)
    thread.join()
    with first:
        pass


def test_a_study_that_is_run_elsewhere_is_refused_until_that_ends(where, tmp_path):
    """Two folders, so that no lock of a file is in the way."""
    elsewhere = places(tmp_path / "elsewhere", where.storage, where.tracking_uri)
    with run_lock(elsewhere, "s"):
        with (
            pytest.raises(StudyError, match="study s is being run by another `study run` already"),
            run_lock(where, "s"),
        ):
            pass
        with run_lock(where, "t"):
            pass
    with run_lock(where, "s"):
        pass


def test_a_lock_is_let_go_before_its_connection_ends(where, monkeypatch):
    """The server may see that end a moment later, when the next one has asked. Here it never does."""
    keeps_its_connection = sqlalchemy.create_engine(with_settings(where.storage))
    with monkeypatch.context() as patched:
        patched.setattr(locks, "server_engine", lambda url: keeps_its_connection)
        with server_lock(where.storage, "s"), server_lock(where.storage, "s", wait=False) as is_held:
            assert not is_held
    with server_lock(where.storage, "s", wait=False) as is_held:
        assert is_held
    keeps_its_connection.dispose()


def test_asking_an_empty_database_makes_nothing_there(where, tmp_path):
    """One line, exit code 1."""
    asked = run(tmp_path, "study", "status", *at(where))
    assert asked.returncode == 1
    assert asked.stderr == (
        f"StudyError: {where.storage}: there is nothing in this database, so no study; "
        "`study run demo --data DIR` makes one\n"
    )
    assert texts(where.storage) == texts(where.tracking_uri) == []


@pytest.mark.parametrize("bad", ["storage", "tracking_uri"])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("password", 'password authentication failed for user "skiprec"'),
        ("server", "Connection refused"),
        ("database", 'database "nowhere" does not exist'),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(where, data, tmp_path, monkeypatch, bad, broken, reason):  # noqa: F811
    """At once, exit code 1, which database and why; no password in it."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    url = getattr(where, bad)
    if broken == "password":
        monkeypatch.setenv("PGPASSWORD", SECRET)
    elif broken == "server":
        url = f"postgresql+psycopg://skiprec@127.0.0.1:{free_port()}/x"
    else:
        url = url.rpartition("/")[0] + "/nowhere"
    option = f"--{bad.replace('_', '-')}"
    started = time.monotonic()
    done = run(tmp_path, "study", "run", "tiny.toml", "--data", data, option, url)
    assert time.monotonic() - started < 60  # MLflow by itself tries for 100 s
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"StudyError: {url}: ")
    assert reason in done.stderr
    assert done.stderr.endswith("mend that and run the same command again: what is done is kept\n")
    assert SECRET not in done.stderr


def test_the_ui_of_a_server_that_is_not_there_is_one_line(tmp_path):
    """MLflow's own server would try for 100 s in child processes."""
    url = f"postgresql+psycopg://skiprec@127.0.0.1:{free_port()}/x"
    done = run(tmp_path, "study", "ui", "--tracking-uri", url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"StudyError: {url}: ")
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SECRET}@host:5432/db",
        f"postgresql+psycopg://me:{SECRET}/with@signs@host/db",
        f"postgresql+psycopg://me@corp:{SECRET}@host/db",
        f"postgresql+psycopg://me@host/db?application_name=x&password={SECRET}",
        f"https://me:{SECRET}@mlflow.example",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(url):
    """Whichever address it is."""
    for storage, tracking_uri, option in ((url, None, "--storage"), (None, url, "--tracking-uri")):
        with pytest.raises(StudyError) as caught:
            places(Path("mlruns"), storage, tracking_uri)
        message = str(caught.value)
        assert message.startswith(
            f"{option}: the address holds a password, which everyone on this machine could read; "
        )
        assert "PGPASSFILE, PGSERVICE or PGPASSWORD" in message
        assert SECRET not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me@host:5432/db",
        "postgresql+psycopg://me@[::1]:5432/db",
        "postgresql+psycopg:///?service=studies",
        "sqlite:////folder/a:b@c/optuna.db",
        "http://127.0.0.1:5000",
    ],
)
def test_an_address_without_a_password_is_taken_as_it_is(url):
    """Ports and at-signs are none."""
    assert places(Path("mlruns"), url, None).storage == url
    assert places(Path("mlruns"), None, url).tracking_uri == url


def test_one_database_for_optuna_and_mlflow_is_refused(new_database, tmp_path):
    """By its address; where two addresses name it, by MLflow, in one line."""
    url = new_database()
    with pytest.raises(StudyError, match="given for both --storage and --tracking-uri; Optuna and MLflow need"):
        places(tmp_path, url, url)
    where = places(tmp_path, url, f"{url}?application_name=other")
    make_schema(where)
    with pytest.raises(StudyError, match="Can't locate revision"):
        tracking.make_schema(where)


def test_a_missing_driver_is_named_with_what_installs_it(monkeypatch):
    """One line instead of an ImportError."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    where = places(Path("mlruns"), "postgresql+psycopg://me@127.0.0.1:1/db", None)
    for use in (lambda: open_study(where, None), lambda: open_storage(where), lambda: check_server(where.storage)):
        with pytest.raises(StudyError, match=r"its driver is not installed .*: pip install 'skiprec\[postgresql\]'"):
            use()


def test_what_is_no_address_is_one_line():
    """A port that is no number."""
    where = places(Path("mlruns"), "postgresql+psycopg://me@host:x/db", None)
    with pytest.raises(
        StudyError, match=r"^postgresql\+psycopg://me@host:x/db: .*; expected postgresql\+psycopg://USER@"
    ):
        open_study(where, None)


def test_an_address_may_say_otherwise_than_the_settings():
    """What it says stays; what it does not say is added; others are left alone."""
    url = with_settings("postgresql+psycopg://me@host/db?connect_timeout=3")
    assert "connect_timeout=3" in url
    assert "connect_timeout=10" not in url
    assert "application_name=skiprec" in url
    assert with_settings("sqlite:////x.db") == "sqlite:////x.db"


def test_connections_say_whose_they_are(where):
    """To who administers the server."""
    make_schema(where)
    storage = open_storage(where)
    optuna.get_all_study_names(storage)
    with psycopg.connect(where.storage.replace("+psycopg", "")) as connection:
        database = where.storage.rpartition("/")[2]
        names = connection.execute("SELECT application_name FROM pg_stat_activity WHERE datname = %s", [database])
        assert ("skiprec",) in names.fetchall()
    storage.engine.dispose()


def test_a_storage_and_a_lock_outlive_a_restart_of_their_server(where, postgresql_server):
    """A connection from before is replaced at its next use."""
    make_schema(where)
    storage, lock = open_storage(where), claim_lock(where, "s")
    for _ in range(2):
        assert optuna.get_all_study_names(storage) == []
        with lock:
            pass
        assert postgresql("stop", postgresql_server).returncode == 0
        assert postgresql("start", postgresql_server).returncode == 0
    storage.engine.dispose()


def test_trials_are_read_though_the_connection_breaks_while_they_are(where):
    """Between two statements of one reading: Optuna goes on in the broken transaction, and that too is an outage."""
    make_schema(where)
    storage = open_storage(where)
    study = optuna.create_study(study_name="some", storage=storage)
    for alpha in (0.1, 0.2):
        study.enqueue_trial({"alpha": alpha})
    broken = []

    def break_once(connection, cursor, statement, *_):
        if "FROM trial_params" in statement and not broken:
            broken.append(connection.connection.dbapi_connection.info.backend_pid)
            with psycopg.connect(where.storage.replace("+psycopg", ""), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", broken)

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", break_once)
    again = optuna.load_study(study_name="some", storage=storage)
    assert [t.system_attrs["fixed_params"] for t in again.get_trials()] == [{"alpha": 0.1}, {"alpha": 0.2}]
    assert broken
    storage.engine.dispose()


def test_the_script_starts_a_server_that_is_there_again_with_its_data(postgresql_server, new_database):
    """The same address; to start it twice does no harm."""
    url = new_database()
    assert postgresql("start", postgresql_server).stdout == (postgresql_server / "url").read_text()
    assert postgresql("stop", postgresql_server).returncode == 0
    where = places(Path("mlruns"), url, None)
    with pytest.raises(StudyError, match="Connection refused"), database_errors(where):
        open_study(where, None)
    assert postgresql("start", postgresql_server).returncode == 0
    with pytest.raises(StudyError, match="there is nothing in this database"):
        open_study(where, None)
