"""MLflow: the experiment and parent run of a study, and a run for each trial. The one file that writes to it."""

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

# Read when MLflow is imported: no look-up of a telemetry host in every process. Said in the README.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A report reads dozens of small artifacts: a bar for each would hide what it prints.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset as TrackedDataset
from mlflow.entities import DatasetInput, Metric, Param, RunStatus, ViewType

from skiprec.dataset import Dataset, Split
from skiprec.files import writing_to
from skiprec.run import ranks_file
from study.storage import Places, new_database

for noisy in ("mlflow", "alembic"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
# Prints the traceback of what it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


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
    """The client of a study's tracker."""
    return MlflowClient(tracking_uri=where.tracking_uri)


def make_schema(where: Places) -> None:
    """Make MLflow's schema where there is none. One process must do that before others come."""
    with new_database(where.tracking_uri) as url:
        MlflowClient(tracking_uri=url).search_experiments(max_results=1)


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
        # A server keeps artifacts where it was told to; files beside the database are ours to place.
        local = where.tracking_uri.startswith("sqlite:")
        place = (where.artifacts / name).as_uri() if local else None
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


def quoted(text: str) -> str:
    """A text as MLflow's filters take it: they know no escapes, but either kind of quote."""
    return f"'{text}'" if "'" not in text else f'"{text}"'


def end_run(client: MlflowClient, run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    client.set_terminated(run_id, status)


def reopen_run(client: MlflowClient, run_id: str) -> None:
    """Say that a run goes on."""
    client.update_run(run_id, status="RUNNING")


def close_orphans(client: MlflowClient, experiment_id: str, study: str, finished: set[str]) -> None:
    """Close the trials' runs that nobody is working on any more.

    Args:
        client: The tracker.
        experiment_id: That the study's runs are in.
        study: Whose runs.
        finished: Runs whose trial is COMPLETE: killed between the two databases, they are FINISHED, others KILLED.
    """
    running = RunStatus.to_string(RunStatus.RUNNING)
    still_open = f"attributes.status = '{running}' and tags.role = 'trial' and tags.study = {quoted(study)}"
    while runs := client.search_runs([experiment_id], still_open, run_view_type=ViewType.ACTIVE_ONLY):
        for run in runs:
            end_run(client, run.info.run_id, "FINISHED" if run.info.run_id in finished else "KILLED")


def log_dataset(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    """Show a dataset as a run's input.

    The first run of an experiment that names it must do so alone: two at once collide in MLflow's database.
    """
    tracked = TrackedDataset(
        name=dataset.path.name,
        digest=dataset.digest[:8],
        source_type="local",
        source=json.dumps({"uri": str(dataset.path.resolve())}),
    )
    client.log_inputs(run_id, [DatasetInput(tracked)])


class MLflowTracker:
    """A trial's run, nested under its study's.

    Args:
        client: The tracker.
        experiment_id: Of the study.
        parent: The study's run.
        dataset: What is trained on; shown as the run's input.
        name: Of the run, for people.
        tags: study, cell, attempt, arm, seed, dataset_digest, git_commit.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        parent: str,
        dataset: Dataset,
        name: str,
        tags: Mapping[str, str],
    ) -> None:
        self.client = client
        tags = dict(tags) | {"mlflow.parentRunId": parent, "role": "trial"}
        self.run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        log_dataset(client, self.run_id, dataset)

    def log_params(self, params: Mapping[str, bool | int | float | str]) -> None:
        """The run's flat configuration."""
        self.client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """All metrics of one epoch, in one call: one a metric would take longer than a small epoch."""
        now = time.time_ns() // 1_000_000
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, epoch) for k, v in metrics.items()])

    def log_artifact(self, path: Path) -> None:
        """A file of the run."""
        with writing_to(path):  # where the tracker's files are a folder, it may be full
            self.client.log_artifact(self.run_id, str(path))

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        end_run(self.client, self.run_id, status)


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
