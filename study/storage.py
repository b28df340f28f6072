"""Where a study lives: the databases' addresses, opening them, and their failures as one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from alembic.util.exc import CommandError
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from skiprec import __version__
from skiprec.errors import ConfigError, StudyError
from study.patience import PatientStorage
from study.queue import refuse_half_made

CONFIRM = "-confirm"
"""What the name of a study's confirming runs ends with."""
SQLITE_WAIT_SECONDS = 60
"""How long a writer waits for another one before it gives up."""
SERVER_SETTINGS = {
    "application_name": "skiprec",
    "connect_timeout": "10",
    # A connection whose server or router is gone is given up after 90 s; by default that takes hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "6",
    # Likewise the other way: a server would keep the locks of a machine that lost its power.
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=6",
}
"""How this program connects to PostgreSQL (seconds), unless an address says otherwise."""
PASSWORD = re.compile(r"//[^:/]*:[^@]*@|[?&](ssl)?password=")
"""A password in an address, as SQLAlchemy finds it, or as libpq does."""


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses of a study's records."""

    mlruns: Path
    """The folder of the defaults below, and of the resume points."""
    storage: str
    """Of Optuna's database, as SQLAlchemy writes it."""
    tracking_uri: str
    """Of MLflow's database or server."""
    checkpoints: Path | None = None
    """Where the resume points are, if not there: a folder that workers on several machines share."""

    @property
    def artifacts(self) -> Path:
        """MLflow's files, where it keeps them itself."""
        return self.mlruns / "artifacts"

    def resume(self, study: str) -> Path:
        """The folders of a study's unfinished trials."""
        return (self.checkpoints or self.mlruns / "resume") / study

    def spool(self, study: str) -> Path:
        """What the runs of a study could not tell the tracker from this machine."""
        return self.mlruns / "spool" / study


def places(mlruns: Path, storage: str | None, tracking_uri: str | None, checkpoint_dir: Path | None = None) -> Places:
    """The addresses that were given, and SQLite files in mlruns for those that were not.

    Raises:
        StudyError: If an address holds a password, or both are the same.
    """
    for option, url in (("--storage", storage), ("--tracking-uri", tracking_uri)):
        # Addresses are shown by errors, logs and `ps`. None of them can tell what they never hold.
        if url and PASSWORD.search(url):
            raise StudyError(
                f"{option}: the address holds a password, which everyone on this machine could read; leave it out and "
                "give it by ~/.pgpass, PGPASSFILE, PGSERVICE or PGPASSWORD, or for an MLflow server by "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
    if storage and storage == tracking_uri:
        raise StudyError(
            f"{storage}: given for both --storage and --tracking-uri; Optuna and MLflow need a database each, "
            "as both keep their version in a table of the same name"
        )
    mlruns = mlruns.resolve()
    return Places(
        mlruns,
        storage or f"sqlite:///{mlruns / 'optuna.db'}",
        tracking_uri or f"sqlite:///{mlruns / 'mlflow.db'}",
        checkpoint_dir.resolve() if checkpoint_dir else None,
    )


def is_server(url: str) -> bool:
    """Whether an address is that of a database on a PostgreSQL server."""
    return url.startswith("postgresql")


DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, CommandError)
"""What is raised where a database does not do as asked, or is of another version. `tracking` adds the tracker's own."""


def failure(url: str, error: Exception) -> StudyError:
    """A database's or a tracker's failure as one line that says which, and what it said."""
    # SQLAlchemy's message goes on with the statement and its values; Optuna's own names no cause.
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).splitlines()
    # A name that stands for several addresses: psycopg lists what each of them said.
    reason = lines[-1].removeprefix("- ") if lines[0].startswith("Multiple connection attempts") else lines[0]
    return StudyError(f"{url}: {reason}; mend that and run the same command again: what is done is kept")


@contextmanager
def database_errors(where: Places) -> Iterator[None]:
    """Turn the failures of a study's database into one line. Where the tracker is asked too, see `tracking`.

    Raises:
        StudyError: In place of theirs.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        raise failure(where.storage, error) from error


def with_settings(url: str) -> str:
    """A server's address with SERVER_SETTINGS where it does not say otherwise; any other address as it is.

    Raises:
        StudyError: If it is not an address.
    """
    if not is_server(url):
        return url
    try:
        parsed = sqlalchemy.make_url(url)
    except (ValueError, sqlalchemy.exc.ArgumentError) as error:
        raise StudyError(f"{url}: {error}; expected postgresql+psycopg://USER@HOST:PORT/DATABASE") from error
    return parsed.update_query_dict(SERVER_SETTINGS | dict(parsed.query)).render_as_string()


@contextmanager
def driver_needed(url: str) -> Iterator[None]:
    """Say what to install where a database's driver is missing.

    Raises:
        StudyError: In place of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise StudyError(
            f"{url}: its driver is not installed ({error}); for PostgreSQL: pip install 'skiprec[postgresql]', "
            "and an address that starts with postgresql+psycopg://"
        ) from error


def open_engine(url: str, grace_seconds: float | None = None) -> RDBStorage:
    """Optuna's storage at an address.

    Args:
        url: The address.
        grace_seconds: How long a worker may be silent, for a storage that asks for beats.

    Raises:
        StudyError: If the database's driver is not installed.
    """
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": SQLITE_WAIT_SECONDS}
    elif is_server(url):
        options["pool_pre_ping"] = True  # it may have been restarted since a connection was last used
    with driver_needed(url):
        kind = PatientStorage if is_server(url) else RDBStorage
        storage = kind(with_settings(url), engine_kwargs=options)
    # As its constructor's experimental arguments would; the interval is for Optuna's own loop, which is not used here.
    storage.heartbeat_interval, storage.grace_period = 1, grace_seconds
    return storage


def server_engine(url: str) -> sqlalchemy.Engine:
    """A way to a PostgreSQL database that keeps no connection when it is not asked, and no transaction open.

    Raises:
        StudyError: If the database's driver is not installed.
    """
    with driver_needed(url):
        return sqlalchemy.create_engine(
            with_settings(url),
            poolclass=sqlalchemy.NullPool,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
        )


def check_server(url: str) -> None:
    """Connect once where an address is a PostgreSQL server's. MLflow itself would try for 100 s before it says no.

    Raises:
        StudyError: If that fails.
    """
    if is_server(url):
        try:
            server_engine(url).connect().close()
        except DATABASE_ERRORS as error:
            raise failure(url, error) from error


def open_storage(where: Places, grace_seconds: float | None = None) -> RDBStorage:
    """Optuna's storage of a study; see `open_engine`."""
    return open_engine(where.storage, grace_seconds)


def has_schema(where: Places) -> bool:
    """Whether Optuna's schema was made. To ask it of a server makes nothing there."""
    if is_server(where.storage):
        return sqlalchemy.inspect(server_engine(where.storage)).has_table("alembic_version")  # made last
    return not where.storage.startswith("sqlite:///") or Path(where.storage.removeprefix("sqlite:///")).exists()


def has_study(where: Places, name: str) -> bool:
    """Whether there is a study of that name."""
    return name in optuna.get_all_study_names(open_storage(where))


def open_study(where: Places, name: str | None) -> optuna.Study:
    """A study by its name, or the only one there is; its confirming runs do not count as another.

    Raises:
        StudyError: If there is none of that name, or several to choose from, or its making was stopped half-way.
    """
    if not has_schema(where):
        found = "nothing in this database" if is_server(where.storage) else "no such database"
        raise StudyError(f"{where.storage}: there is {found}, so no study; `study run demo --data DIR` makes one")
    storage = open_storage(where)
    names = sorted(optuna.get_all_study_names(storage))  # not their summaries, which read every trial of each
    of_their_own = [n for n in names if n.removesuffix(CONFIRM) == n or n.removesuffix(CONFIRM) not in names]
    if name is None and len(of_their_own) == 1:
        name = of_their_own[0]
    if name is None or name not in names:
        found = f"found {', '.join(names) or 'none'}"
        raise StudyError(f"no study named '{name}', {found}" if name else f"name a study, {found}")
    study = optuna.load_study(study_name=name, storage=storage)
    about = study.user_attrs
    refuse_other_version(name, about)
    refuse_half_made(name, about)
    return study


def open_studies(where: Places, name: str | None) -> list[optuna.Study]:
    """A study, and its confirming runs' where they were begun.

    Raises:
        StudyError: As `open_study`.
    """
    study = open_study(where, name)
    confirming = f"{study.study_name}{CONFIRM}"
    return [study, open_study(where, confirming)] if has_study(where, confirming) else [study]


def refuse_other_version(name: str, about: Mapping[str, Any]) -> None:
    """Refuse a study that another version of this program made: what it says of itself may mean something else there.

    Raises:
        ConfigError: With both versions.
    """
    made_with = about.get("versions", {}).get("skiprec", __version__)
    if made_with.split(".")[:2] != __version__.split(".")[:2]:
        raise ConfigError(
            f"study {name} was made by skiprec {made_with}, this is {__version__}: use that for it, "
            "or make another study, with another --name"
        )


def refuse_no_server(where: Places, about: Mapping[str, Any]) -> None:
    """Refuse to send what a study says to a file, where it was made for a tracker that is a server.

    Raises:
        StudyError: With the server's address.
    """
    made_for = about.get("tracking_uri", where.tracking_uri)
    if where.tracking_uri.startswith("sqlite:") and not made_for.startswith("sqlite:"):
        raise StudyError(
            f"the study was made for the tracker {made_for}, and none is given; give it by --tracking-uri, or where "
            "the server is now"
        )
