"""Ctrl-C and SIGTERM while a study's databases are in use: remembered, and acted on where nothing is half read."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.2
"""Between two looks of a process that waits."""

_told: list[int] = []
"""The signals that came. Of the process, as its handlers are."""
_listening: list[None] = []
"""One for each `remembered` that is entered."""


@contextmanager
def remembered(*, raises: bool = False) -> Iterator[None]:
    """Have SIGTERM and SIGINT end the next `pause`.

    Args:
        raises: Whether they raise KeyboardInterrupt where they come as well. Python swallows that while it cleans up
            after an object, as it does now and then while modules are loaded; and it may leave a database half read:
            SQLite then lets nobody write for as long as the exception lives (one in seven that came during a read),
            and workers could not give their cells back. So not while there are any.
    """
    if threading.current_thread() is not threading.main_thread():  # no other one hears signals
        yield
        return

    def remember(number: int, frame: FrameType | None) -> None:
        _told.append(number)
        if raises:
            raise KeyboardInterrupt

    def tell(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):  # or it was swallowed, and is remembered
            hook(unraisable)

    hook = sys.unraisablehook
    earlier = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.unraisablehook = tell
    _listening.append(None)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in earlier.items():
            signal.signal(number, handler)
        _listening.pop()
        if not _listening:  # what ended the inner one is to end what waits in the outer one, too
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
