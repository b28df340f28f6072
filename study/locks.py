"""What one process at a time may do with a study: claim, run it, make its schema. By files, or by a server."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy

from skiprec.errors import StudyError
from skiprec.files import sync_folder, writing_to
from study.patience import patiently
from study.stopping import LOOK_SECONDS, pause
from study.storage import DATABASE_ERRORS, Places, failure, is_server, open_engine, server_engine, with_settings


def lock_call(function: str, name: str) -> sqlalchemy.TextClause:
    """The statement that takes a lock of that name. PostgreSQL names locks by integers of 64 bits."""
    return sqlalchemy.text(f"SELECT {function}(hashtextextended(:name, 0))").bindparams(name=f"skiprec {name}")


@contextmanager
def server_lock(url: str, name: str, *, wait: bool = True) -> Iterator[bool]:
    """A lock that a PostgreSQL server keeps for all machines, for as long as the connection lives that this opens.

    Args:
        url: Of the database; others on the same server have locks of their own. A pooler between must keep sessions.
        name: Of the lock.
        wait: Whether to wait for who holds it.

    Yields:
        Whether it is held; always true after waiting.
    """
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with server_engine(url).connect() as connection:
        is_held = connection.execute(lock_call(function, name)).scalar() is not False
        try:
            yield is_held
        finally:
            if is_held:
                # Said, not left to the connection's end: the server may take a moment to see that.
                with suppress(sqlalchemy.exc.DBAPIError):  # it let the lock go when the connection broke
                    connection.execute(lock_call("pg_advisory_unlock", name))


class ClaimLock(AbstractContextManager[None]):
    """A lock that a PostgreSQL server keeps for all machines, for moments and again and again, on a kept connection.

    It is held in a transaction, so it cannot outlive a failure of who holds it.

    Args:
        url: Of the database.
        name: Of the lock.
    """

    def __init__(self, url: str, name: str) -> None:
        self.engine = sqlalchemy.create_engine(with_settings(url), pool_size=1, pool_pre_ping=True)
        self.name = name
        self._here = threading.Lock()
        """Of this process's threads: the one that beats may give a trial up while the main one holds the lock."""

    def __enter__(self) -> None:
        self._here.acquire()
        try:
            self._held = patiently(self._take)
        except BaseException:
            self._here.release()
            raise

    def _take(self) -> ExitStack:
        with ExitStack() as stack:
            stack.enter_context(self.engine.begin()).execute(lock_call("pg_advisory_xact_lock", self.name))
            return stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        try:
            with suppress(sqlalchemy.exc.DBAPIError):  # the server let it go when the connection broke
                self._held.__exit__(*error)
        finally:
            self._here.release()


class FileClaimLock(AbstractContextManager[None]):
    """A lock file, for moments and again and again; who waits for it can be told to stop.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path)  # of each thread its own

    def __enter__(self) -> None:
        while True:
            with suppress(filelock.Timeout):
                self._lock.acquire(timeout=LOOK_SECONDS)
                return
            pause(0)

    def __exit__(self, *error: Any) -> None:
        self._lock.release()


def claim_lock(where: Places, study: str) -> AbstractContextManager[object]:
    """What a worker holds while it claims a cell, or chooses its point.

    Optuna reads a trial's state and then writes it. SQLite cannot lock the row in between, and two workers were seen to
    claim one trial; its workers are all on one machine, so a lock file does. A server locks the row (FOR UPDATE), but
    not what the choice of a point reads: the points of all the others.
    """
    if is_server(where.storage):
        return ClaimLock(where.storage, f"claim {study}")
    database = Path(where.storage.removeprefix("sqlite:///"))  # whatever the other options of a command are
    return FileClaimLock(database.with_name(f"{database.name}.{study}.claim"))


@contextmanager
def run_lock(where: Places, study: str) -> Iterator[None]:
    """Hold a study against another `study run`: on this machine, and where its storage is a server's, on any.

    Raises:
        StudyError: If another one has it.
    """
    path = where.resume(study) / "lock"
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    refused = StudyError(f"study {study} is being run by another `study run` already; wait for it, or stop it")
    try:
        here = filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout as error:
        raise refused from error
    on_server = is_server(where.storage)
    everywhere = server_lock(where.storage, f"run {study}", wait=False) if on_server else nullcontext(True)
    with here, everywhere as is_held:
        if not is_held:
            raise refused
        yield


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """Have a database's schema made by one process at a time: neither Optuna nor MLflow survives two.

    On a server under a lock. A SQLite database is made beside its place, and put there when it is whole: one whose
    schema was left half made, by a full disk or a kill, can be neither used nor mended.

    Args:
        url: Of the database; that of an MLflow server is left to it.

    Yields:
        The address to make the schema at; `url` itself where there is a database already.
    """
    if is_server(url):
        try:
            with server_lock(url, "schema"):
                yield url
        except DATABASE_ERRORS as error:
            raise failure(url, error) from error
        return
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
