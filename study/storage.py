"""Where a study lives: the databases' addresses, opening them, and their failures as one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from skiprec.errors import StudyError

SQLITE_WAIT_SECONDS = 60
"""How long a writer waits for another one before it gives up."""


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses of a study's records."""

    mlruns: Path
    """The folder of the defaults below, and of the resume points."""
    storage: str
    """Of Optuna's database, as SQLAlchemy writes it."""
    tracking_uri: str
    """Of MLflow's database or server."""

    @property
    def artifacts(self) -> Path:
        """MLflow's files, where it keeps them itself."""
        return self.mlruns / "artifacts"

    def resume(self, study: str) -> Path:
        """The folders of a study's unfinished trials."""
        return self.mlruns / "resume" / study


def places(mlruns: Path, storage: str | None, tracking_uri: str | None) -> Places:
    """The addresses that were given, and SQLite files in mlruns for those that were not."""
    mlruns = mlruns.resolve()
    return Places(
        mlruns,
        storage or f"sqlite:///{mlruns / 'optuna.db'}",
        tracking_uri or f"sqlite:///{mlruns / 'mlflow.db'}",
    )


def without_password(url: str) -> str:
    """An address that may be shown."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


@contextmanager
def database_errors(where: Places) -> Iterator[None]:
    """Turn a database's or a tracker's failure into one line that says which, and what it said.

    Raises:
        StudyError: In place of theirs.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        # SQLAlchemy's message goes on with the statement and its values; Optuna's own names no cause.
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise StudyError(
            f"{without_password(where.storage)} or {without_password(where.tracking_uri)}: {reason}; "
            "mend that and run the same command again: what is done is kept"
        ) from error
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise StudyError(
            f"{without_password(where.tracking_uri)}: {reason}; "
            "mend that and run the same command again: what is done is kept"
        ) from error


def open_storage(where: Places) -> RDBStorage:
    """Optuna's storage; its schema is made where there is none. One process must do that before others come."""
    connect = {"timeout": SQLITE_WAIT_SECONDS} if where.storage.startswith("sqlite") else {}
    return RDBStorage(where.storage, engine_kwargs={"connect_args": connect})


def open_study(where: Places, name: str | None) -> optuna.Study:
    """A study by its name, or the only one there is.

    Raises:
        StudyError: If there is none of that name, or several to choose from.
    """
    if where.storage.startswith("sqlite:///") and not Path(where.storage.removeprefix("sqlite:///")).exists():
        raise StudyError(
            f"{where.storage}: there is no such database, so no study; `study run demo --data DIR` makes one"
        )
    storage = open_storage(where)
    names = sorted(summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False))
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        found = f"found {', '.join(names) or 'none'}"
        raise StudyError(f"no study named '{name}', {found}" if name else f"name a study, {found}")
    return optuna.load_study(study_name=name, storage=storage)
