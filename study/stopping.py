"""Ctrl-C and SIGTERM while a study's databases are in use: remembered, and acted on where nothing is half read."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_SECONDS = 0.2
"""Between two looks of a process that waits."""

_told: list[int] = []
"""The signals that came. Of the process, as its handlers are."""


@contextmanager
def remembered() -> Iterator[None]:
    """Have SIGTERM and SIGINT end the next `pause`, and nothing else.

    Raised where it comes, an exception may leave a database half read. SQLite then lets nobody write for as long as the
    exception lives (one in seven that came during a read), and workers could not give their cells back. And Python
    swallows what is raised while it cleans up after an object.
    """

    def remember(number: int, frame: FrameType | None) -> None:
        _told.append(number)

    earlier = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        _told.clear()


def pause(seconds: float) -> None:
    """Wait.

    Raises:
        KeyboardInterrupt: If a signal is remembered, or comes meanwhile.
    """
    until = time.monotonic() + seconds
    while not _told:
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_SECONDS))
    raise KeyboardInterrupt
