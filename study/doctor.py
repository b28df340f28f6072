"""Whether everything that a study needs is in order: each thing tried, and said in one line."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import optuna
import sqlalchemy
from mlflow.exceptions import MlflowException

from skiprec.dataset import load_dataset
from skiprec.errors import ConfigError, SkiprecError, StudyError
from study.storage import (
    Places,
    failure,
    has_schema,
    is_server,
    open_engine,
    open_study,
    server_engine,
)
from study.tracking import STUDY_ERRORS, open_tracker

LEAST_FREE_GB = 2.0
MOST_SKEW_SECONDS = 10.0
"""Between a machine's clock and the database's: times of trials are a machine's, those of beats the database's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check."""

    what: str
    is_well: bool
    text: str
    """What was found; where that is not well, what to do."""

    def __str__(self) -> str:
        return f"{'ok   ' if self.is_well else 'WRONG'} {self.what}: {self.text}"


def examine(where: Places, name: str | None) -> Iterator[Finding]:
    """Try everything, one thing after the other; what goes wrong with one is told, and the next one tried.

    Args:
        where: The databases and folders.
        name: A study; None for the only one there is. Where there is none yet, what belongs to a study is left out.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("storage", lambda: storage_works(where)),
        ("tracker", lambda: tracker_works(where)),
        ("folder", lambda: folder_works(where.mlruns)),
    ]
    if where.checkpoints:
        checks.append(("checkpoint folder", lambda: folder_works(where.checkpoints)))
    if is_server(where.storage):
        checks.append(("clock", lambda: clock_agrees(where)))
    for what, check in checks:
        yield found(what, check)
    try:
        attrs = open_study(where, name).user_attrs if has_schema(where) else None
    except ConfigError as error:  # of another version of this program
        yield Finding("study", False, str(error))
        return
    except (SkiprecError, *STUDY_ERRORS) as error:
        yield Finding("study", name is None, str(error))  # nameless, there may be none yet, or several
        return
    if attrs:
        yield found("versions", lambda: versions_agree(attrs["versions"]))
        yield found("dataset", lambda: dataset_agrees(Path(attrs["dataset"]), attrs["dataset_digest"]))


def found(what: str, check: Callable[[], str]) -> Finding:
    """A check's finding, whatever it raises."""
    try:
        return Finding(what, True, check())
    except (SkiprecError, OSError, *STUDY_ERRORS) as error:
        return Finding(what, False, " ".join(str(error).split()))


def storage_works(where: Places) -> str:
    """Make a study that nobody sees, and remove it.

    Raises:
        StudyError: If the database does not let us in, is of another version, or does not keep it.
    """
    if not has_schema(where):
        return f"{where.storage}: nothing there yet; `study run` makes it"
    try:
        storage = open_engine(where.storage)
        current, head = storage.get_current_version(), storage.get_head_version()
        if current != head:
            raise StudyError(
                f"{where.storage}: its schema is {current}, this Optuna needs {head}: make a copy, then "
                f"`optuna storage upgrade --storage {where.storage}`"
            )
        probe = f"skiprec-probe-{uuid.uuid4()}"
        optuna.create_study(study_name=probe, storage=storage)
        optuna.delete_study(study_name=probe, storage=storage)
    except STUDY_ERRORS as error:
        raise failure(where.storage, error) from error
    return f"{where.storage}: reads and writes, schema {current}"


def tracker_works(where: Places) -> str:
    """Make a run with a file in MLflow's default experiment, and delete it.

    Raises:
        StudyError: If the tracker does not answer, or does not keep it.
    """
    path = where.tracking_uri.removeprefix("sqlite:///")
    if where.tracking_uri.startswith("sqlite:///") and not Path(path).exists():
        return f"{where.tracking_uri}: nothing there yet; `study run` makes it"
    try:
        client = open_tracker(where)
        run = client.create_run("0", run_name="skiprec probe", tags={"role": "probe"}).info.run_id
        try:
            client.log_metric(run, "probe", 1.0)
            client.log_text(run, "probe", "probe.txt")
        finally:
            client.set_terminated(run)
            client.delete_run(run)
    except MlflowException as error:
        raise failure(where.tracking_uri, error) from error
    return f"{where.tracking_uri}: takes runs, metrics and files"


def folder_works(folder: Path) -> str:
    """Write a file, and remove it: where the folder is to be, if it is not there yet.

    Raises:
        OSError: If that fails.
        StudyError: If there is little room.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    probe = there / f".probe-{uuid.uuid4()}"
    probe.write_bytes(os.urandom(4096))
    probe.unlink()
    free = shutil.disk_usage(there).free / 1e9
    if free < LEAST_FREE_GB:
        raise StudyError(f"{folder}: {free:.1f} GB free, expected {LEAST_FREE_GB:g}; free space, or give another")
    return f"{folder}: can be {'written' if folder.exists() else 'made'}, {free:.0f} GB free"


def clock_agrees(where: Places) -> str:
    """Ask the database for its time, between two looks at ours.

    Raises:
        StudyError: If they are far apart.
    """
    with server_engine(where.storage).connect() as connection:
        before = time.time()
        theirs = connection.execute(sqlalchemy.text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
        after = time.time()
    skew = float(theirs) - (before + after) / 2
    if abs(skew) > MOST_SKEW_SECONDS + (after - before) / 2:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        raise StudyError(
            f"the database's clock is {skew:+.0f} s from this machine's ({now}), expected at most "
            f"{MOST_SKEW_SECONDS:g}: a worker's silence is measured by both; set one of them, by NTP"
        )
    return f"{abs(skew):.1f} s from the database's"


def versions_agree(made_with: dict[str, str]) -> str:
    """Compare the packages here with those that a study was made with.

    Raises:
        ConfigError: With those that differ: results may, too.
    """
    differ = []
    for package, theirs in made_with.items():
        with suppress(PackageNotFoundError):  # machine and device are among them
            if (ours := version(package)) != theirs:
                differ.append(f"{package} {theirs}, here {ours}")
    if differ:
        raise ConfigError(
            f"the study was made with {'; '.join(differ)}: its cells would not be made alike; install those versions"
        )
    return "those that the study was made with"


def dataset_agrees(path: Path, digest: str) -> str:
    """Read the dataset, and compare its digest with the study's.

    Raises:
        StudyError: If it is another one.
        SkiprecError: If it cannot be read.
    """
    dataset = load_dataset(path)
    if dataset.digest != digest:
        raise StudyError(
            f"{path}: its digest is {dataset.digest[:8]}, expected {digest[:8]}: no longer the data of this study; "
            "bring them back, or make another study"
        )
    return f"{path}: {digest[:8]}, {dataset.n_sessions:,} sessions"
