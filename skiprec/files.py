"""Writing files so that none is ever half written: write beside, fsync, rename. And the digests of what they hold."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from skiprec.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. What digests and cell ids are made from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256(*parts: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of the parts, each preceded by its length, so that moving a border changes the digest."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def sha256_of_streams(*parts: Callable[[], Iterable[bytes | memoryview]]) -> str:
    """As `sha256`, of parts that come in pieces: each is asked for them twice, for its length and to be read."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(sum(len(piece) for piece in part()).to_bytes(8, "little"))
        for piece in part():
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); nothing was left there. "
            "Free space or choose another place, then run the same command again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync does for a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Fill a file beside `path` and rename it into place when the block ends well; an earlier file stays until then.

    Yields:
        The file to fill, which is to be on disk when the block ends.

    Raises:
        OutputError: If the disk is full or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing_to(path):
        try:
            yield beside
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Put content at path whole or not at all; an earlier file stays until the new one is complete.

    Args:
        path: Where.
        content: The whole, or parts that need not be in memory together.

    Raises:
        OutputError: If the disk is full or the place cannot be written.
    """
    whole = content.encode() if isinstance(content, str) else content
    parts = [whole] if isinstance(whole, bytes) else whole
    with replacing(path) as beside, open(beside, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def refuse_existing(path: Path) -> None:
    """Raise OutputError where something is already at path."""
    if path.exists():
        raise OutputError(f"{path} already exists; choose another --out, or remove it first")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path` and rename it into place when the block ends well; else leave nothing.

    Yields:
        The folder to fill.

    Raises:
        OutputError: If `path` exists, or the disk is full.
    """
    refuse_existing(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing_to(path):
        try:
            beside.mkdir(parents=True)
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as opened:
                        os.fsync(opened.fileno())
            sync_folder(beside)
            os.rename(beside, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder for what waits while something is made at `path`, on the same disk; removed with all in it.

    So are those of processes that were killed before they could.

    Raises:
        OutputError: If the place cannot be written, or its disk is full.
    """
    home = next(parent for parent in path.absolute().parents if parent.is_dir())
    with writing_to(path):
        for left in home.glob(f".{glob.escape(path.name)}.*.scratch"):
            if is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=home))
        folder = made.with_suffix(".scratch")
        try:
            with open(made / "in-use", "wb") as mark:
                with suppress(OSError):  # there are file systems without locks
                    lock(mark)
                made.rename(folder)
                yield folder
        finally:
            for either in (made, folder):
                shutil.rmtree(either, ignore_errors=True)


def is_abandoned(folder: Path) -> bool:
    """Whether nobody holds the mark of a scratch folder any more; False where that cannot be known."""
    try:
        with open(folder / "in-use", "rb+") as mark:
            lock(mark)
    except FileNotFoundError:  # it was being removed: every such folder got its name with the mark in it
        return True
    except OSError:
        return False
    return True


def lock(file: IO[bytes]) -> None:
    """Hold a file until it is closed, or the process ends.

    Raises:
        OSError: If another process holds it, or there are no such locks here.
    """
    if fcntl is None:
        raise OSError("no locks on this system")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
