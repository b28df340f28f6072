"""What a run could not tell its tracker: records that wait in a file, and copies of its artifacts beside.

Under mlruns/spool/STUDY/KEY: records.jsonl, files/ and a lock, gone as a whole when all was sent. What a record means,
and how it is sent, is in `sending`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from skiprec.errors import StudyError
from skiprec.files import sha256, sync_folder, write_file, writing_to

PARENT = "parent"
"""The key of the study's own run."""
CHUNK = 1 << 20
"""Bytes of an artifact that are copied at a time."""


class Spool:
    """The records of one run that wait. Only the run's own process adds to them; any may send them.

    Args:
        study: The folder of the study's spools.
        key: Of the run; the name of its folder there.
    """

    def __init__(self, study: Path, key: str) -> None:
        self.key = key
        self.folder = study / key
        self.path = self.folder / "records.jsonl"
        self.files = self.folder / "files"

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self.path.exists()

    def append(self, record: dict[str, Any], artifact: Path | None = None) -> None:
        """Put a record behind the others, on the disk when this returns.

        Args:
            record: What JSON can hold.
            artifact: A file that it is about, to be copied.

        Raises:
            OutputError: If the disk is full; then nothing of it is left.
        """
        with writing_to(self.path), self._held():
            if artifact:
                self.files.mkdir(exist_ok=True)
                with open(artifact, "rb") as file:
                    write_file(self.files / artifact.name, iter(lambda: file.read(CHUNK), b""))
            size = self._whole_lines()
            try:
                # Unbuffered: what a buffer could not write it would try again when closed.
                with open(self.path, "r+b" if size is not None else "xb", buffering=0) as file:
                    file.seek(size or 0)  # over a line that a kill tore; what is left of it has no end either
                    rest = memoryview(line_of(record))
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
            except OSError:
                self._cut(size)
                raise
            if size is None:  # the way to a new file must be as durable as its lines
                for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
                    sync_folder(folder)

    def read(self) -> list[dict[str, Any]]:
        """The records, in their order. A torn last line, of a kill in mid-write, is none.

        Raises:
            StudyError: If any other line is damaged.
        """
        if self.is_empty:
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [self._record(line, number) for number, line in enumerate(lines, start=1)]

    def replay(self, send: Callable[[dict[str, Any], Path | None], None]) -> int:
        """Send every record, in order, one process at a time, and forget them when all are sent.

        Where that stops half-way all come again: whoever takes them must make nothing of what it has already.

        Args:
            send: Takes a record, and the file that it is about, to the tracker.

        Returns:
            How many were sent.

        Raises:
            StudyError: If a line is damaged.
        """
        with self._held():
            records = self.read()
            for record in records:
                send(record, self.files / record["name"] if record["kind"] == "artifact" else None)
            self.path.unlink(missing_ok=True)
        return len(records)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the spool. Whoever leaves it without records takes its folder away, the lock last."""
        path = self.folder / "lock"
        lock = filelock.FileLock(path)
        while not lock.is_locked:
            with suppress(FileNotFoundError, FileExistsError):  # taken away while it was made, or waited in: again
                lock.acquire()
        try:
            yield
        finally:
            if self.is_empty:
                shutil.rmtree(self.files, ignore_errors=True)
                path.unlink(missing_ok=True)  # filelock gives no one the lock of a file that is gone
                with suppress(OSError):  # someone has come in already
                    self.folder.rmdir()
            lock.release()

    def _whole_lines(self) -> int | None:
        """The bytes up to the last line's end; None where there is no file."""
        return None if self.is_empty else self.path.read_bytes().rfind(b"\n") + 1

    def _cut(self, size: int | None) -> None:
        """Go back to so many bytes; None: no file."""
        if size is None:
            self.path.unlink(missing_ok=True)
        else:
            os.truncate(self.path, size)

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            told = json.loads(line)
            record = told["record"]
            is_whole = line + b"\n" == line_of(record)
        except (ValueError, TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise StudyError(
                f"{self.path}, line {number}: damaged, expected a record and its checksum; move {self.folder} away to "
                "go on without what the run said there"
            )
        return record


def line_of(record: dict[str, Any]) -> bytes:
    """A record as a line: JSON with its checksum. Floats come back as they were, NaN and infinities too."""
    text = json.dumps(record)
    return f'{{"sha256": "{sha256(text.encode())}", "record": {text}}}\n'.encode()


def spools(study: Path) -> list[Spool]:
    """Those of a study, the runs' that began first first; of a kill while one was taken away, also an empty one."""
    folders = [path for path in study.iterdir() if path.is_dir()] if study.exists() else []
    return [Spool(study, path.name) for path in sorted(folders, key=lambda path: path.stat().st_ctime)]


def waiting(study: Path) -> tuple[int, int]:
    """How many records of how many runs of a study wait."""
    counts = [len(spool.read()) for spool in spools(study)]
    return sum(counts), sum(map(bool, counts))
