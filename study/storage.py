"""Where a study lives: the databases' addresses, opening them, and their failures as one line."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import filelock
import optuna
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from skiprec.errors import StudyError
from skiprec.files import sync_folder, writing_to

CONFIRM = "-confirm"
"""What the name of a study's confirming runs ends with."""
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


DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, MlflowException)
"""What Optuna and MLflow raise when a database or a server does not do as asked."""


def failure(url: str, error: Exception) -> StudyError:
    """A database's or a tracker's failure as one line that says which, and what it said."""
    # SQLAlchemy's message goes on with the statement and its values; Optuna's own names no cause.
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
    return StudyError(
        f"{without_password(url)}: {reason}; mend that and run the same command again: what is done is kept"
    )


@contextmanager
def database_errors(where: Places) -> Iterator[None]:
    """Turn the failures of a study's two databases into one line.

    Raises:
        StudyError: In place of theirs.
    """
    try:
        yield
    except MlflowException as error:
        raise failure(where.tracking_uri, error) from error
    except DATABASE_ERRORS as error:
        raise failure(where.storage, error) from error


def open_engine(url: str) -> RDBStorage:
    """Optuna's storage at an address."""
    connect = {"timeout": SQLITE_WAIT_SECONDS} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs={"connect_args": connect})


def open_storage(where: Places) -> RDBStorage:
    """Optuna's storage of a study."""
    return open_engine(where.storage)


def claim_lock(where: Places, study: str) -> AbstractContextManager[object]:
    """What a worker holds while it claims a cell.

    Optuna reads a trial's state and then writes it. A server locks the row in between (FOR UPDATE); SQLite cannot, and
    two workers were seen to claim one trial. Its workers are all on one machine, so a lock file does.
    """
    if where.storage.startswith("sqlite"):
        return filelock.FileLock(where.resume(study) / "claim")
    return nullcontext()


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """Have a SQLite database's schema made beside its place, and put it there when it is whole.

    One whose schema was left half made, by a full disk or a kill, can be neither used nor mended.

    Args:
        url: Of the database; anything but a SQLite file is left to its server.

    Yields:
        The address to make the schema at; `url` itself where there is a database already.
    """
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or path.exists():
        yield url
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing_to(path), filelock.FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another study's command was quicker
            yield url
            return
        try:
            yield f"sqlite:///{beside}"
        except DATABASE_ERRORS as error:
            raise failure(url, error) from error
        else:
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            for leftover in path.parent.glob(f"{beside.name}*"):  # and SQLite's journal of it
                leftover.unlink()


def make_schema(where: Places) -> None:
    """Make Optuna's schema where there is none. One process must do that before others come."""
    with new_database(where.storage) as url:
        open_engine(url).engine.dispose()


def has_study(where: Places, name: str) -> bool:
    """Whether there is a study of that name."""
    return name in optuna.get_all_study_names(open_storage(where))


def open_study(where: Places, name: str | None) -> optuna.Study:
    """A study by its name, or the only one there is; its confirming runs do not count as another.

    Raises:
        StudyError: If there is none of that name, or several to choose from.
    """
    if where.storage.startswith("sqlite:///") and not Path(where.storage.removeprefix("sqlite:///")).exists():
        raise StudyError(
            f"{where.storage}: there is no such database, so no study; `study run demo --data DIR` makes one"
        )
    storage = open_storage(where)
    names = sorted(optuna.get_all_study_names(storage))  # not their summaries, which read every trial of each
    of_their_own = [n for n in names if n.removesuffix(CONFIRM) == n or n.removesuffix(CONFIRM) not in names]
    if name is None and len(of_their_own) == 1:
        name = of_their_own[0]
    if name is None or name not in names:
        found = f"found {', '.join(names) or 'none'}"
        raise StudyError(f"no study named '{name}', {found}" if name else f"name a study, {found}")
    return optuna.load_study(study_name=name, storage=storage)
