"""A large file, written past the system's cache where that can be: nobody reads it soon.

Memory for that cache is slow to get, above all on a virtual machine whose host takes back what is free: it costs more
than the writing.
"""

import errno
import mmap
import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOM = 1 << 22
"""Bytes that are written at a time: whole blocks of any disk, from memory that starts where a page does."""
PAST_CACHE = getattr(os, "O_DIRECT", 0) if fcntl else 0
"""The flag that asks for it; 0 where the system has none."""


class LargeFile:
    """A new file, or one that is written over, from its start to its end; on disk when the block has ended.

    Args:
        path: Where.

    Raises:
        OSError: If it cannot be written; likewise from all that is done with it.
    """

    def __init__(self, path: Path) -> None:
        self.room = mmap.mmap(-1, ROOM)
        self.n_held = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        try:
            self.descriptor = os.open(path, flags | PAST_CACHE, 0o666)
            self.is_past_cache = PAST_CACHE != 0
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.descriptor = os.open(path, flags, 0o666)  # on a file system of memory, for one
            self.is_past_cache = False

    def __enter__(self) -> "LargeFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put_held()
                os.fsync(self.descriptor)
        finally:
            os.close(self.descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Put bytes after those that were written before."""
        data = memoryview(data).cast("B")
        while len(data):
            taken = data[: ROOM - self.n_held]
            self.room[self.n_held : self.n_held + len(taken)] = taken
            self.n_held += len(taken)
            data = data[len(taken) :]
            if self.n_held == ROOM:
                self._put_held()

    def write_start(self, data: bytes) -> None:
        """Write over the first bytes, after all others."""
        self._put_held()
        self._use_cache()
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self._put(memoryview(data))

    def _put_held(self) -> None:
        if self.n_held < ROOM:  # no whole blocks
            self._use_cache()
        with memoryview(self.room) as held:
            self._put(held[: self.n_held])
        self.n_held = 0

    def _put(self, data: memoryview) -> None:
        while len(data):
            try:
                n = os.write(self.descriptor, data)
            except OSError as error:
                # The file system takes other blocks, or the last ones were not written whole.
                if error.errno != errno.EINVAL or not self.is_past_cache:
                    raise
                self._use_cache()
                continue
            data = data[n:]

    def _use_cache(self) -> None:
        if self.is_past_cache:
            flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~PAST_CACHE)
            self.is_past_cache = False
