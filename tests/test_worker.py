"""What a worker does of its own: when it takes signals."""

import os
import signal

import pytest

from study.worker import StopFlag


@pytest.fixture
def handlers():
    """Put back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_worker_at_once_until_it_can_hold_a_cell(handlers, number):
    """While it loads, a signal does what it does to any process; then it only says to stop."""
    flag = StopFlag(None)
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    flag.listen()
    assert not flag()
    os.kill(os.getpid(), number)
    assert flag()
