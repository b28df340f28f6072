"""MLflow: the experiment and parent run of a study, and a run for each trial. With `sending`, all that writes to it."""

import functools
import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset as TrackedDataset
from mlflow.entities import DatasetInput, RunStatus
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState

from skiprec.dataset import Dataset, Split
from skiprec.errors import StudyError
from skiprec.files import writing_to
from skiprec.run import ranks_file
from study.locks import new_database
from study.queue import RUN_KEY
from study.sending import Home, Refused, Sender, Unreachable, is_outage, quoted
from study.spool import PARENT, Spool, spools
from study.storage import (
    CONFIRM,
    DATABASE_ERRORS,
    Places,
    check_server,
    database_errors,
    failure,
    has_study,
    open_study,
    refuse_no_server,
    with_settings,
)

for noisy in ("mlflow", "alembic"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
# Prints the traceback of what it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

STUDY_ERRORS = (*DATABASE_ERRORS, MlflowException)
"""What Optuna and MLflow raise when a database or a server does not do as asked."""


@contextmanager
def study_errors(where: Places) -> Iterator[None]:
    """Turn the failures of a study's database and of its tracker into one line.

    Raises:
        StudyError: In place of theirs.
    """
    with database_errors(where):
        try:
            yield
        except MlflowException as error:
            kind = Unreachable if is_outage(error) else StudyError
            raise kind(str(failure(where.tracking_uri, error))) from error


def git_commit() -> str:
    """The commit of this program's own checkout, with + if it was changed since; "none" where it is not in one."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def open_tracker(where: Places) -> MlflowClient:
    """The client of a study's tracker.

    Raises:
        StudyError: If that is a database on a server, and does not let us in.
    """
    check_server(where.tracking_uri)
    return MlflowClient(tracking_uri=with_settings(where.tracking_uri))


def tracked_study(where: Places, name: str | None) -> tuple[optuna.Study, optuna.Study | None, MlflowClient]:
    """A study, its confirming runs' where they were begun, and the tracker that has their runs.

    Args:
        where: The study's databases.
        name: Of the study, or of its confirming one; may be None where there is only one.

    Raises:
        StudyError: If there is no such study, or the tracker was not told of it yet.
    """
    study = open_study(where, name)
    if "confirms" in study.user_attrs:
        study = open_study(where, study.user_attrs["confirms"])
    confirming = f"{study.study_name}{CONFIRM}"
    if study.user_attrs["parent_run"] is None:
        raise StudyError(f"study {study.study_name} was made --offline: `study sync` first, MLflow has what it made")
    confirming = open_study(where, confirming) if has_study(where, confirming) else None
    return study, confirming, open_tracker(where)


def home_of(where: Places, about: Mapping[str, Any], *, offline: bool = False) -> Home:
    """Where a study's runs go, by what the study says of itself. The tracker is not asked yet.

    Args:
        where: Names the tracker.
        about: The study's attributes.
        offline: Whether to leave the tracker alone, as for a study that was made without it.

    Raises:
        StudyError: If the study was made for a server, and none is named now.
    """
    is_unknown = offline or about["parent_run"] is None
    if not is_unknown:
        refuse_no_server(where, about)
    way = without_tracker if is_unknown else functools.cache(functools.partial(open_tracker, where))
    return Home(way, about["experiment_id"], about["parent_run"])


def without_tracker() -> MlflowClient:
    """The way to no tracker.

    Raises:
        StudyError: Always.
    """
    raise StudyError("the study goes on --offline")


def make_schema(where: Places) -> None:
    """Make MLflow's schema where there is none. One process must do that before others come."""
    with study_errors(where), new_database(where.tracking_uri) as url:
        MlflowClient(tracking_uri=with_settings(url)).search_experiments(max_results=1)


def open_experiment(client: MlflowClient, where: Places, name: str, study: str) -> tuple[str, str]:
    """An experiment and a study's parent run in it, made where there are none.

    Args:
        client: The tracker.
        where: Tells where files lie.
        name: Of the experiment.
        study: Whose run. A study and its confirming runs share an experiment.

    Returns:
        Experiment id and run id.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # An MLflow server keeps artifacts where it was told to; without one, files are ours to place.
        by_server = where.tracking_uri.startswith("http")
        place = None if by_server else (where.artifacts / name).as_uri()
        experiment_id = client.create_experiment(name, artifact_location=place)
        save_view(client, experiment_id)
    else:
        experiment_id = experiment.experiment_id
    if run_id := study_run(client, experiment_id, study):
        return experiment_id, run_id
    run = client.create_run(experiment_id, run_name=study, tags={"study": study, "role": "study"})
    return experiment_id, run.info.run_id


def study_run(client: MlflowClient, experiment_id: str, study: str) -> str | None:
    """The id of a study's own run, which its trials are nested under, or None where there is none."""
    found = client.search_runs([experiment_id], f"tags.role = 'study' and tags.study = {quoted(study)}", max_results=1)
    return found[0].info.run_id if found else None


VIEW = "skiprec"
"""The key of the view below, in the UI's addresses."""
VIEW_COLUMNS = {
    "tags": ("arm", "seed", "attempt"),
    "params": ("architecture", "context", "alpha", "beta", "learning_rate", "negative_scope"),
    "metrics": ("val/best_hr_at_10", "val/full_hr_at_10", "test/hr_at_10", "test/full_hr_at_10"),
}


def save_view(client: MlflowClient, experiment_id: str) -> None:
    """Have the UI show a study's trials, the best first, with the columns that compare them.

    As the UI's own "share" button keeps a view: a tag of the experiment. Without it trials hide under their parent's +,
    and columns are to be picked by hand.
    """
    view = {
        "selectedColumns": [f"{kind}.`{name}`" for kind, names in VIEW_COLUMNS.items() for name in names],
        "searchFilter": 'tags.role = "trial"',
        "orderByKey": "metrics.`val/best_hr_at_10`",
        "orderByAsc": False,
    }
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))


def reopen_run(client: MlflowClient, run_id: str) -> None:
    """Say that a run goes on."""
    client.update_run(run_id, status="RUNNING")


def close_orphans(client: MlflowClient, study: optuna.Study) -> None:
    """Close the trials' runs that nobody is working on any more: those whose trial does not run.

    Killed between the two databases, a run whose trial is COMPLETE is FINISHED; others are KILLED.
    """
    running = RunStatus.to_string(RunStatus.RUNNING)
    still_open = f"attributes.status = '{running}' and tags.role = 'trial' and tags.study = {quoted(study.study_name)}"
    experiment, runs, token = study.user_attrs["experiment_id"], [], ""
    while token is not None:  # all of them first: pages are counted off, and closed runs would shift them
        page = client.search_runs([experiment], still_open, page_token=token)
        runs, token = [*runs, *page], page.token
    if not runs:
        return
    # The trials after the runs: one that begins in between is not among the runs. Two may have one key, where a
    # connection broke while they were queued; the one that was not taken has failed.
    trials = study.get_trials(deepcopy=False)
    at_work, complete = (
        {t.user_attrs.get(RUN_KEY) for t in trials if t.state == state}
        for state in (TrialState.RUNNING, TrialState.COMPLETE)
    )
    for run in runs:
        key = run.data.tags.get(RUN_KEY)
        if key not in at_work:
            client.set_terminated(run.info.run_id, "FINISHED" if key in complete else "KILLED")


def tracked(path: Path, digest: str) -> dict[str, str]:
    """A dataset as MLflow names it."""
    source = json.dumps({"uri": str(path.resolve())})
    return {"name": path.name, "digest": digest[:8], "source_type": "local", "source": source}


def log_dataset(client: MlflowClient, run_id: str, path: Path, digest: str) -> None:
    """Show a dataset as a run's input.

    The first run of an experiment that names it must do so alone: two at once collide in MLflow's database.
    """
    client.log_inputs(run_id, [DatasetInput(TrackedDataset(**tracked(path, digest)))])


def end_study(home: Home, study: Path, status: str) -> None:
    """Close a study's own run as FINISHED or KILLED; where the tracker is away, when it is back.

    Args:
        home: Names the run.
        study: The folder of the study's spools.
        status: The run's.
    """
    spool = Spool(study, PARENT)
    record = {"kind": "end", "run_id": home.parent, "at": now(), "status": status}
    try:
        Sender(home, PARENT, home.parent).send(record, None, seconds=PATIENT_SECONDS)
    except Unreachable:
        spool.append(record)


def now() -> int:
    """The moment, as MLflow counts it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


RETRY_SECONDS = 10.0
"""Between two tries to reach a tracker that is away, within a trial."""
QUICK_SECONDS = 3
"""How long a trial waits for a server's answer: a hung one is taken for away, and costs an epoch no more than this."""
PATIENT_SECONDS = 60
"""How long those wait who have nothing else to do."""


class MLflowTracker:
    """A trial's run, nested under its study's. While MLflow is away training goes on, and its record waits in a spool.

    Args:
        home: Where the run goes.
        spool: The run's own.
        dataset: What is trained on; shown as the run's input.
        name: Of the run, for people.
        tags: study, cell, attempt, arm, seed, dataset_digest, git_commit.
    """

    def __init__(self, home: Home, spool: Spool, dataset: Dataset, name: str, tags: Mapping[str, str]) -> None:
        self.sender = Sender(home, spool.key)
        self.spool = spool
        self.tried = -RETRY_SECONDS
        """When the tracker was last found away."""
        self._say("create", name=name, tags=dict(tags) | {"role": "trial", RUN_KEY: spool.key})
        self._say("input", dataset=tracked(dataset.path, dataset.digest))

    @property
    def run_id(self) -> str | None:
        """MLflow's, once it has given one."""
        return self.sender.run_id

    def log_params(self, params: Mapping[str, bool | int | float | str]) -> None:
        """The run's flat configuration."""
        self._say("params", params={name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """All metrics of one epoch, in one call: one a metric would take longer than a small epoch."""
        self._say("metrics", metrics=dict(metrics), epoch=epoch)

    def log_artifact(self, path: Path) -> None:
        """A file of the run."""
        self._say("artifact", path, name=path.name)

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._say("end", status=status)

    def _say(self, kind: str, file: Path | None = None, **told: Any) -> None:
        """Send a record, after those that wait; where MLflow is away, put it behind them."""
        record = {"kind": kind, "run_id": self.run_id, "at": now()} | told
        try:
            if self.spool.is_empty or self._caught_up():
                self.sender.send(record, file, seconds=QUICK_SECONDS)
                return
        except Unreachable:
            self.tried = time.monotonic()
        self.spool.append(record | {"run_id": self.run_id}, file)

    def _caught_up(self) -> bool:
        """Send what waits, if the last try was a while ago. Returns whether nothing waits any more."""
        if time.monotonic() - self.tried < RETRY_SECONDS:
            return False
        self.spool.replay(functools.partial(self.sender.send, seconds=QUICK_SECONDS, waited=True))
        return True


def send_waiting(home: Home, study: Path) -> tuple[int, int]:
    """Send what waits of a study's runs.

    Args:
        home: Where they go.
        study: The folder of their spools.

    Returns:
        How many records, of how many runs.

    Raises:
        Unreachable: If the tracker is still away; what was not sent waits on.
        Refused: If it does not take what some runs say, or that is damaged, after all else was sent.
    """
    counts, refused = [], []
    for spool in spools(study):
        sender = Sender(home, spool.key, home.parent if spool.key == PARENT else None)
        try:
            counts.append(spool.replay(functools.partial(sender.send, seconds=PATIENT_SECONDS, waited=True)))
        except Unreachable:
            raise
        except (StudyError, MlflowException) as error:
            refused.append(f"{spool.folder}: {' '.join(str(error).split())}")
    if refused:
        raise Refused(
            f"{len(refused)} of {len(refused) + len(counts)} runs were not taken by the tracker, the first in "
            f"{refused[0]}. The others were sent; a folder that is moved away is not asked for again"
        )
    return sum(counts), sum(map(bool, counts))


def read_ranks(client: MlflowClient, run_id: str, split: Split) -> pd.DataFrame:
    """The rank of every target of a split, and the groups it belongs to: a row a session (see `Run.finish`).

    Raises:
        MlflowException: If the run has none, or the tracker does not give them.
    """
    with tempfile.TemporaryDirectory() as folder:
        return pd.read_parquet(client.download_artifacts(run_id, ranks_file(split), folder))


def log_report(client: MlflowClient, parent: str, folder: Path, note: str) -> None:
    """Keep a study's report with its run, and its answer where the UI shows a run's description.

    Args:
        client: The tracker.
        parent: The study's run.
        folder: Of the report.
        note: Markdown.
    """
    with writing_to(folder):
        client.log_artifacts(parent, str(folder), "report")
    client.set_tag(parent, "mlflow.note.content", note)
