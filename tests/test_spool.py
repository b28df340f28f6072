"""What a run could not tell MLflow: kept whole, and told once, wherever calls, disks and processes fail."""

import contextlib
import json
import math
import random
import resource
import threading
import types
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import OperationalError

from skiprec.errors import OutputError, StudyError
from study import tracking
from study.queue import RUN_KEY
from study.sending import Home, Refused, Sender, Unreachable, find_run, find_runs, is_outage
from study.spool import PARENT, Spool, spools, waiting
from study.status import untold
from study.storage import places
from study.tracking import MLflowTracker, end_study, home_of, send_waiting

EPOCHS = {1: {"val/hr_at_10": 0.25, "train/loss": 2.5}, 2: {"val/hr_at_10": 1 / 3}, 3: {"val/hr_at_10": 0.1 + 0.2}}
CALLS = 9
"""Those of `tell`: create, input, params, three epochs, two files, end."""


class Away:
    """A client whose calls fail from a place on, as if its answers, or the calls themselves, were lost.

    Args:
        client: Who does what is asked.
        first: The number of the first call that fails, from 0.
        times: How many do.
        is_done: Whether what was asked is done all the same.
        error: What is raised.
    """

    def __init__(self, client, first, times=1, is_done=False, error=None):
        self.client, self.failing, self.is_done, self.calls = client, range(first, first + times), is_done, 0
        self.error = error or MlflowException("no answer", TEMPORARILY_UNAVAILABLE)

    def __getattr__(self, name):
        def call(*arguments, **options):
            fails = self.calls in self.failing
            self.calls += 1
            if fails and not self.is_done:
                raise self.error
            answer = getattr(self.client, name)(*arguments, **options)
            if fails:
                raise self.error
            return answer

        return call


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """A real MLflow on SQLite: its client, an experiment, and a parent run in that."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("some", artifact_location=(folder / "artifacts").as_uri())
    return client, experiment, client.create_run(experiment).info.run_id


@pytest.fixture
def files(tmp_path):
    """Two files of a run."""
    paths = tmp_path / "best.safetensors", tmp_path / "run.json"
    paths[0].write_bytes(bytes(range(256)) * 5000)
    paths[1].write_text("{}")
    return paths


def home(tracker, client=None):
    """Where runs go; by another client if that is given."""
    return Home(lambda: client or tracker[0], *tracker[1:])


DATASET = types.SimpleNamespace(path=types.SimpleNamespace(name="data", resolve=lambda: "/data"), digest="0123456789")


def tell(home, spool, files):
    """What a trial says of its run, from its start to its end."""
    said = MLflowTracker(home, spool, DATASET, "a run", {"study": "some"})
    said.log_params({"alpha": 0.5, "context": "item"})
    for epoch, metrics in EPOCHS.items():
        said.log_metrics(metrics, epoch=epoch)
    for path in files:
        said.log_artifact(path)
    said.end("FINISHED")
    return said


def assert_whole(tracker, key, files, tmp_path):
    """One run with all that `tell` says, each epoch once."""
    client, experiment, parent = tracker
    (run_id,) = find_runs(client, experiment, key)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time > 0
    assert run.data.params == {"alpha": "0.5", "context": "item"}
    tags = {"study": "some", "role": "trial", RUN_KEY: key, "mlflow.parentRunId": parent, "mlflow.runName": "a run"}
    assert run.data.tags == tags
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["01234567"]
    for name in ("val/hr_at_10", "train/loss"):
        told = {m.step: m.value for m in client.get_metric_history(run_id, name)}
        assert told == {epoch: metrics[name] for epoch, metrics in EPOCHS.items() if name in metrics}
        assert len(client.get_metric_history(run_id, name)) == len(told)
    assert {a.path for a in client.list_artifacts(run_id)} == {path.name for path in files}
    for path in files:
        assert Path(client.download_artifacts(run_id, path.name, tmp_path)).read_bytes() == path.read_bytes()


@pytest.fixture
def downloads(tmp_path):
    """Where artifacts are read back to."""
    (tmp_path / "downloads").mkdir()
    return str(tmp_path / "downloads")


def test_where_nothing_fails_nothing_is_spooled(tracker, tmp_path, files, downloads):
    """Nor is more asked than a request a record."""
    client, spool = Away(tracker[0], 10**6), Spool(tmp_path / "spool", "plain")
    tell(home(tracker, client), spool, files)
    assert client.calls == CALLS
    assert not (tmp_path / "spool").exists()
    assert_whole(tracker, "plain", files, downloads)


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True], ids=["lost", "done, its answer lost"])
@pytest.mark.parametrize("times", [1, 3, 10**6])
@pytest.mark.parametrize("retry", [0.0, 1e9], ids=["tried at each record", "tried at the end"])
def test_whichever_calls_fail_nothing_is_lost_or_doubled(
    tracker, tmp_path, files, downloads, monkeypatch, is_done, times, retry
):
    """Each call in turn, with some or all that follow. Training goes on; what waits is sent in the end."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", retry)
    for first in range(CALLS):
        key = f"{is_done} {times} {retry} {first}"
        tell(home(tracker, Away(tracker[0], first, times, is_done)), Spool(tmp_path / "spool", key), files)
        send_waiting(home(tracker), tmp_path / "spool")
        assert list((tmp_path / "spool").iterdir()) == []
        assert_whole(tracker, key, files, downloads)


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True])
def test_a_replay_that_is_killed_and_killed_again_loses_and_doubles_nothing(
    tracker, tmp_path, files, downloads, is_done
):
    """At each of its calls, two of which look at what is there; the third process comes through."""
    offline = Away(tracker[0], 0, times=10**6)
    for first in range(CALLS + 4):
        key = f"killed {is_done} {first}"
        tell(home(tracker, offline), Spool(tmp_path / "spool", key), files)
        for place in (first, first // 2):
            with contextlib.suppress(Killed):
                send_waiting(home(tracker, Away(tracker[0], place, 1, is_done, Killed())), tmp_path / "spool")
        send_waiting(home(tracker), tmp_path / "spool")
        assert waiting(tmp_path / "spool") == (0, 0)
        assert_whole(tracker, key, files, downloads)


def test_a_run_made_by_a_call_that_was_given_up_goes_when_the_run_ends(tracker, tmp_path, files, downloads):
    """A server that hung makes the run after we looked for it in vain, and made another."""
    client, experiment, _ = tracker
    spool, offline = Spool(tmp_path / "spool", "twin"), Away(client, 0, times=10**6)

    class Late:
        """Finds nothing at first: what it was asked is done only then."""

        def __init__(self):
            self.is_first = True

        def __getattr__(self, name):
            return getattr(client, name)

        def search_runs(self, *arguments, **options):
            if not self.is_first:
                return client.search_runs(*arguments, **options)
            self.is_first = False
            client.create_run(experiment, tags={RUN_KEY: "twin"})
            return []

    tell(home(tracker, offline), spool, files)
    assert send_waiting(home(tracker, Late()), tmp_path / "spool") == (CALLS, 1)
    assert_whole(tracker, "twin", files, downloads)


def test_a_run_whose_waiting_records_someone_else_sent_goes_on_in_the_same_run(
    tracker, tmp_path, files, downloads, monkeypatch
):
    """`study sync` made it meanwhile: it is found by its key."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 1e9)
    client, spool = Away(tracker[0], 0), Spool(tmp_path / "spool", "synced")
    said = MLflowTracker(home(tracker, client), spool, DATASET, "a run", {"study": "some"})
    said.log_params({"alpha": 0.5, "context": "item"})
    said.log_metrics(EPOCHS[1], epoch=1)
    assert said.run_id is None
    assert send_waiting(home(tracker), tmp_path / "spool") == (4, 1)
    for epoch in (2, 3):
        said.log_metrics(EPOCHS[epoch], epoch=epoch)
    for path in files:
        said.log_artifact(path)
    said.end("FINISHED")
    assert said.run_id == find_run(*tracker[:2], "synced")
    assert_whole(tracker, "synced", files, downloads)


def test_a_refusal_is_no_outage(tracker, tmp_path, files):
    """It is raised at once, and nothing waits for what will never be taken."""
    refusal = MlflowException("no such thing", INVALID_PARAMETER_VALUE)
    with pytest.raises(MlflowException, match="no such thing"):
        tell(home(tracker, Away(tracker[0], 3, 1, error=refusal)), Spool(tmp_path / "spool", "refused"), files)
    assert waiting(tmp_path / "spool") == (0, 0)
    assert not is_outage(refusal)
    assert is_outage(MlflowException("the server's own fault"))
    assert is_outage(OperationalError("SELECT 1", {}, Exception("gone")))


def test_one_run_that_is_refused_keeps_no_other_from_being_sent(tracker, tmp_path, files):
    """By the tracker, or for a damaged line: the error names the first one's folder, and both wait on."""
    study = tmp_path / "spool"
    for key in ("unknown", "damaged", "good"):
        tell(home(tracker, Away(tracker[0], 0, times=10**6)), Spool(study, key), files)
    damage = study / "damaged" / "records.jsonl"
    damage.write_bytes(damage.read_bytes().replace(b"alpha", b"ALPHA"))

    class Picky(Away):
        """Refuses what one run says of its settings."""

        def log_batch(self, run_id, **what):
            if self.client.get_run(run_id).data.tags[RUN_KEY] == "unknown":
                raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)
            return self.client.log_batch(run_id, **what)

    with pytest.raises(Refused, match=r"^2 of 3 runs were not taken by the tracker, the first in .*unknown: no such "):
        send_waiting(home(tracker, Picky(tracker[0], 10**6)), study)
    assert [s.key for s in spools(study)] == ["unknown", "damaged"]
    assert tracker[0].get_run(find_run(*tracker[:2], "good")).info.status == "FINISHED"


def test_a_tracker_is_tried_again_after_a_while_and_not_before(tracker, tmp_path, monkeypatch):
    """A call in vain costs seconds where a server hangs: not one a record."""
    client, clock = Away(tracker[0], 0, times=10**6), [100.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])
    said = MLflowTracker(home(tracker, client), Spool(tmp_path / "spool", "slow"), DATASET, "a run", {})
    for epoch in range(1, 6):
        said.log_metrics({"a": 1.0}, epoch=epoch)
        clock[0] += 4.0  # at 104, 108: not yet; at 112: again; at 116: not yet
    assert client.calls == 2
    assert waiting(tmp_path / "spool") == (7, 1)


def test_the_studys_own_run_ends_when_the_tracker_is_back(tracker, tmp_path):
    """Its record waits as a trial's does."""
    own = tracker[0].create_run(tracker[1]).info.run_id
    away = Home(lambda: Away(tracker[0], 0, times=10**6), tracker[1], own)
    end_study(away, tmp_path / "spool", "FINISHED")
    assert tracker[0].get_run(own).info.status == "RUNNING"
    assert [s.key for s in spools(tmp_path / "spool")] == [PARENT]
    with pytest.raises(Unreachable, match="no answer"):
        send_waiting(away, tmp_path / "spool")
    assert send_waiting(Home(lambda: tracker[0], tracker[1], own), tmp_path / "spool") == (1, 1)
    assert tracker[0].get_run(own).info.status == "FINISHED"


def test_without_a_tracker_nothing_is_asked_of_any(tmp_path):
    """--offline: there is no way to it, and no run's id."""
    home = home_of(None, {"experiment_id": None, "parent_run": None})
    said = MLflowTracker(home, Spool(tmp_path / "spool", "offline"), DATASET, "a run", {})
    said.log_metrics({"a": 1.0}, epoch=1)
    assert said.run_id is None
    assert waiting(tmp_path / "spool") == (3, 1)
    with pytest.raises(Unreachable, match="--offline"):
        send_waiting(home, tmp_path / "spool")


def test_a_run_that_was_deleted_in_the_tracker_is_a_clear_error(tracker, tmp_path):
    """What waits of it can go nowhere."""
    spool = Spool(tmp_path / "spool", "deleted")
    spool.append({"kind": "metrics", "run_id": None, "at": 1, "metrics": {"a": 1.0}, "epoch": 1})
    with pytest.raises(StudyError, match=r"run deleted is no longer in the tracker, which had it"):
        send_waiting(home(tracker), tmp_path / "spool")
    with pytest.raises(StudyError, match=r"run deleted has not reached the tracker; `study sync`"):
        find_run(*tracker[:2], "deleted")


def record(n):
    """A record that is told by its number."""
    return {"kind": "metrics", "n": n, "value": random.Random(n).random()}


@pytest.fixture
def spool(tmp_path):
    """Three records."""
    spool = Spool(tmp_path / "spool", "key")
    for n in range(3):
        spool.append(record(n))
    return spool


def test_records_come_back_as_they_went(tmp_path):
    """Whatever a float is, and whatever a text holds."""
    spool = Spool(tmp_path / "spool", "key")
    told = {"values": [0.1 + 0.2, 1e-320, math.inf, -0.0], "text": 'line\nbreak "é"', "none": None}
    spool.append(told)
    spool.append({"nan": math.nan})
    first, second = spool.read()
    assert first == told
    assert math.isnan(second["nan"])


def test_a_torn_last_line_is_cut_and_no_other(spool):
    """Wherever a kill tore it; what is added after it is a line of its own."""
    whole = spool.path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole)):
        spool.path.write_bytes(whole[:end])
        assert spool.read() == [record(0), record(1)]
    spool.append({"n": 7})  # shorter than what was torn
    assert spool.read() == [record(0), record(1), {"n": 7}]


def test_any_other_damage_is_an_error_that_names_file_and_line(spool):
    """Each byte of the second line in turn, its end included; and the last line's, which has an end."""
    whole = spool.path.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    for place in range(len(second)):
        spool.path.write_bytes(first + second[:place] + bytes([second[place] ^ 1]) + second[place + 1 :] + third)
        with pytest.raises(StudyError) as caught:
            spool.read()
        assert str(caught.value).startswith(f"{spool.path}, line 2: damaged, expected a record and its checksum; move ")
    spool.path.write_bytes(first + second + third[:-9] + b"\n")
    with pytest.raises(StudyError, match="line 3: damaged"):
        spool.replay(lambda record, file: None)
    assert spool.path.exists()


def test_records_are_sent_in_order_and_then_gone(spool):
    """With their folder; a file that a record is about comes with it."""
    spool.folder.joinpath("artifact").write_text("some")
    spool.append({"kind": "artifact", "name": "artifact"}, spool.folder / "artifact")
    (spool.folder / "artifact").unlink()
    sent = []
    assert spool.replay(lambda record, file: sent.append((record, file and file.read_text()))) == 4
    assert sent[:3] == [(record(n), None) for n in range(3)]
    assert sent[3] == ({"kind": "artifact", "name": "artifact"}, "some")
    assert list(spool.folder.parent.iterdir()) == []
    assert spool.replay(sent.append) == 0


def test_what_was_not_sent_stays(spool):
    """All of it: who takes records makes nothing of those it has."""

    def refuse(told, file):
        if told["n"] == 1:
            raise Unreachable("no")

    with pytest.raises(Unreachable):
        spool.replay(refuse)
    assert spool.read() == [record(n) for n in range(3)]
    assert waiting(spool.folder.parent) == (3, 1)


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(spool, tmp_path):
    """In mid-record, in a new file too, and in a copy of an artifact. A limit on files stands for the disk."""
    before = spool.path.read_bytes()
    new, big = Spool(tmp_path / "spool", "new"), tmp_path / "big"
    big.write_bytes(bytes(100_000))
    cases = [(spool, None, len(before) + n) for n in range(0, 100, 7)]
    cases += [(new, None, n) for n in range(0, 100, 7)] + [(spool, big, 50_000), (new, big, 50_000)]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for where, artifact, limit in cases:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match="cannot be written") as caught:
                where.append(record(3), artifact)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert "\n" not in str(caught.value)
        assert spool.path.read_bytes() == before
        assert not new.folder.exists()
        assert not list(spool.files.iterdir()) if spool.files.exists() else True
    spool.append(record(3))
    assert spool.read() == [record(n) for n in range(4)]


def test_one_adds_while_others_send_and_nothing_is_lost_doubled_or_out_of_order(tmp_path):
    """The folder comes and goes all the while."""
    spool, sent, is_over = Spool(tmp_path / "spool", "key"), [], threading.Event()

    def send():
        while not is_over.is_set() or not spool.is_empty:
            Spool(tmp_path / "spool", "key").replay(lambda record, file: sent.append(record["n"]))

    senders = [threading.Thread(target=send) for _ in range(3)]
    for thread in senders:
        thread.start()
    for n in range(100):
        spool.append(record(n))
    is_over.set()
    for thread in senders:
        thread.join()
    assert sent == list(range(100))
    assert not spool.folder.exists()


def test_status_says_what_waits(tmp_path):
    """Nothing, where nothing does."""
    root = tmp_path / "spool"
    assert untold(root) == ""
    Spool(root, "one").append(record(1))
    assert untold(root) == "tracking: 1 record of 1 run waits for the tracker; study sync sends them"
    for n in range(2):
        Spool(root, "two").append(record(n))
    assert untold(root) == "tracking: 3 records of 2 runs wait for the tracker; study sync sends them"


def test_a_line_says_its_checksum(spool):
    """By the record's own text, so that it can be checked by hand."""
    line = json.loads(spool.path.read_text().splitlines()[0])
    assert line.keys() == {"sha256", "record"}
    assert line["record"] == record(0)


def test_a_sender_makes_a_run_once_however_often_it_is_told(tracker):
    """A replay finds it by its key."""
    told = {"kind": "create", "run_id": None, "at": 1, "name": "a run", "tags": {RUN_KEY: "again"}}
    ids = set()
    for waited in (False, True, True):
        sender = Sender(home(tracker), "again")
        sender.send(told, None, seconds=1, waited=waited)
        ids.add(sender.run_id)
    assert len(ids) == 1


def test_a_study_that_was_made_for_a_server_is_told_to_no_file(tmp_path):
    """By no worker either; a server at another address may be the same one, and a file may have moved."""
    made = {"tracking_uri": "http://127.0.0.1:9", "experiment_id": "1", "parent_run": "r"}
    with pytest.raises(StudyError, match=r"^the study was made for the tracker http://127.0.0.1:9, and none is given"):
        home_of(places(tmp_path, None, None), made)
    home_of(places(tmp_path, None, "http://127.0.0.1:8"), made)
    home_of(places(tmp_path, None, None), made | {"tracking_uri": "sqlite:///elsewhere.db"})
    home_of(places(tmp_path, None, None), {"experiment_id": "1", "parent_run": "r"})  # from before it was kept
    home_of(places(tmp_path, None, None), made | {"parent_run": None})  # nowhere yet
