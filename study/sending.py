"""What a run says to MLflow, as records, and how each is sent so that it may come twice and changes nothing then."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset as TrackedDataset
from mlflow.entities import DatasetInput, Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from skiprec.errors import StudyError
from skiprec.files import writing_to
from study.queue import RUN_KEY

FILE_SECONDS = 120
"""How long a server may take to store a file."""
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_ASKING: list[int] = []
"""Seconds of the calls that are under way, in threads of this process."""
_BEFORE: dict[str, str | None] = {}
"""What the environment said before the first of them."""
_CHANGING = threading.Lock()
"""Held while either is changed, and the environment with them."""


class Unreachable(StudyError):
    """The tracker does not answer, or fails by itself. What was to be said can be said later."""


class Refused(StudyError):
    """The tracker is there, and does not take what some runs have to say; or that is damaged. It waits on."""


@contextmanager
def outages(seconds: int) -> Iterator[None]:
    """Call the tracker, and tell its absence from its refusals.

    Args:
        seconds: How long a server may take to answer; of several calls at the same time the longest. It is asked once:
            MLflow's own retries could make a run twice.

    Raises:
        Unreachable: If it cannot be reached, takes too long, or fails by itself.
    """
    with asking(seconds):
        try:
            yield
        except (MlflowException, requests.RequestException, OperationalError) as error:
            if not is_outage(error):
                raise
            raise Unreachable(str(error).splitlines()[0]) from error


@contextmanager
def asking(seconds: int) -> Iterator[None]:
    """Say in the environment, where MLflow's client looks at each request, how the tracker is asked."""
    with _CHANGING:
        if not _ASKING:
            _BEFORE.update({name: os.environ.get(name) for name in (RETRIES, TIMEOUT)})
        _ASKING.append(seconds)
        os.environ |= {RETRIES: "0", TIMEOUT: str(max(_ASKING))}
    try:
        yield
    finally:
        with _CHANGING:
            _ASKING.remove(seconds)
            if _ASKING:
                os.environ[TIMEOUT] = str(max(_ASKING))
            else:
                for name, value in _BEFORE.items():
                    os.environ.pop(name, None)
                    os.environ |= {} if value is None else {name: value}


def is_outage(error: MlflowException | requests.RequestException | OperationalError) -> bool:
    """Whether the same call may be answered later; not if it was understood and refused."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError):  # of files
        status = error.response.status_code
    else:
        return True
    return status >= 500 or status in (408, 429)  # the server's own time-out; too many requests


def quoted(text: str) -> str:
    """A text as MLflow's filters take it: they know no escapes, but either kind of quote."""
    return f"'{text}'" if "'" not in text else f'"{text}"'


def find_runs(client: MlflowClient, experiment_id: str, key: str) -> list[str]:
    """The ids of the runs with a key, in an order that stays. There is one, or for a while two (see `Sender`)."""
    return sorted(r.info.run_id for r in client.search_runs([experiment_id], f"tags.{RUN_KEY} = {quoted(key)}"))


def find_run(client: MlflowClient, experiment_id: str, key: str) -> str:
    """The id of the run with a key.

    Raises:
        StudyError: If it did not reach the tracker yet.
    """
    found = find_runs(client, experiment_id, key)
    if not found:
        raise StudyError(
            f"run {key} has not reached the tracker; `study sync` sends what waits, where the run was made"
        )
    return found[0]


@dataclass(frozen=True, slots=True)
class Home:
    """Where the runs of a study go."""

    client: Callable[[], MlflowClient]
    """Gives the way to the tracker, StudyError where there is none just now."""
    experiment_id: str
    parent: str
    """The study's run."""


class Sender:
    """Takes the records of one run to the tracker.

    Params, input, files and status are the same again when they come twice; of metrics MLflow keeps (run, key, moment,
    value, step) once, and a record has the moment it was made at. A run is looked for by its key before it is made
    again. There may be two of it even so, where the tracker took up a call that was given up long ago: then one goes
    when the run ends.

    Args:
        home: Where the run goes.
        key: Of the run.
        run_id: If it is known.
    """

    def __init__(self, home: Home, key: str, run_id: str | None = None) -> None:
        self.home = home
        self.key = key
        self.run_id = run_id
        self.may_have_twin = False

    def send(self, record: Mapping[str, Any], file: Path | None, *, seconds: int, waited: bool = False) -> None:
        """Send a record.

        Args:
            record: kind, run_id (None where it was not known), at (ms since 1970), and what that kind tells.
            file: The artifact, where it is about one.
            seconds: How long a server may take to answer; a file is given more.
            waited: Whether it may have been sent already.

        Raises:
            Unreachable: If the tracker is away.
            MlflowException: If it refuses the record.
            OutputError: If it keeps files in a folder, and that is full.
        """
        kind = record["kind"]
        with outages(seconds):
            client = self._client()
            self.run_id = self.run_id or record["run_id"]
            if self.run_id is None and (waited or kind != "create"):
                self.run_id = next(iter(find_runs(client, self.home.experiment_id, self.key)), None)
                self.may_have_twin = True
            if kind == "create":
                self.run_id = self.run_id or self._made(client, record)
            elif self.run_id is None:
                raise StudyError(f"run {self.key} is no longer in the tracker, which had it; was it deleted there?")
            elif kind == "artifact" and waited:
                client.get_run(self.run_id)  # soon says whether the tracker is there: to send a file is tried for long
        with outages(FILE_SECONDS if kind == "artifact" else seconds):
            self._told(client, kind, record, file)

    def _client(self) -> MlflowClient:
        try:
            return self.home.client()
        except StudyError as error:
            raise Unreachable(str(error)) from error

    def _made(self, client: MlflowClient, record: Mapping[str, Any]) -> str:
        tags = record["tags"] | {"mlflow.parentRunId": self.home.parent}
        made = client.create_run(self.home.experiment_id, record["at"], tags, record["name"])
        return made.info.run_id

    def _told(self, client: MlflowClient, kind: str, record: Mapping[str, Any], file: Path | None) -> None:
        match kind:
            case "input":
                client.log_inputs(self.run_id, [DatasetInput(TrackedDataset(**record["dataset"]))])
            case "params":
                client.log_batch(self.run_id, params=[Param(k, v) for k, v in record["params"].items()])
            case "metrics":
                at, epoch = record["at"], record["epoch"]
                client.log_batch(self.run_id, metrics=[Metric(k, v, at, epoch) for k, v in record["metrics"].items()])
            case "artifact":
                with writing_to(file):  # where the tracker's files are a folder, it may be full
                    client.log_artifact(self.run_id, str(file))
            case "end":
                client.set_terminated(self.run_id, record["status"], record["at"])
                if self.may_have_twin:
                    for twin in find_runs(client, self.home.experiment_id, self.key):
                        if twin != self.run_id:
                            client.delete_run(twin)
