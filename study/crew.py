"""The local workers of a study: started, replaced when they die, told to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from skiprec.errors import StudyError
from study.heartbeat import LOST
from study.storage import Places

SECONDS_TO_STOP = 60.0
"""That a worker has to give its cell back, which takes a few."""
MOST_DEATHS_IN_VAIN = 3
"""Workers that may die one after the other without any attempt being begun, before no other one is started."""


class Crew:
    """Workers of one study on this machine.

    Args:
        where: The study's databases.
        name: The study.
        device: For all of them.
        size: How many.
        on_death: Called with the number of a process that died, before another takes its place; returns whether it had
            ever begun a cell.
        trials_per_device: Of each worker, side by side.
    """

    def __init__(
        self,
        where: Places,
        name: str,
        device: str,
        size: int,
        on_death: Callable[[int], bool],
        trials_per_device: int = 1,
    ) -> None:
        self.name, self.on_death = name, on_death
        self.at_once = size * trials_per_device
        """Trials that are at work while there are enough."""
        self.command = [sys.executable, "-m", "study", "worker", name, "--mlruns", str(where.mlruns)]
        self.command += ["--storage", where.storage, "--tracking-uri", where.tracking_uri, "--device", device]
        self.command += ["--checkpoint-dir", str(where.checkpoints)] if where.checkpoints else []
        self.command += ["--trials-per-device", str(trials_per_device), "--parent", str(os.getpid())]
        self.failed = 0
        """Workers that ended with an error of their own, shown already."""
        self._in_vain = 0
        self.processes = [self._start() for _ in range(size)]

    def _start(self) -> subprocess.Popen:
        # A session of its own: Ctrl-C reaches this process alone, which tells each worker once.
        return subprocess.Popen(self.command, start_new_session=True)

    def is_over(self) -> bool:
        """Replace who died; say whether everyone has come to an end.

        Raises:
            StudyError: If workers die without beginning anything.
        """
        for process in [p for p in self.processes if p.poll() is not None]:
            self.processes.remove(process)
            if process.returncode < 0 or process.returncode == LOST:
                self.processes.append(self._replace(process))
            elif process.returncode > 0:
                self.failed += 1
        return not self.processes

    def _replace(self, died: subprocess.Popen) -> subprocess.Popen:
        code = died.returncode
        self._in_vain = 0 if self.on_death(died.pid) else self._in_vain + 1
        how = f"signal {-code}" if code < 0 else "itself"
        if self._in_vain > MOST_DEATHS_IN_VAIN:
            raise StudyError(
                f"study {self.name}: {self._in_vain} workers in a row were ended by {how} before they began a cell; is "
                "there memory for them? Fewer --workers need less; the same command goes on"
            )
        print(f"a worker was ended by {how}; another takes its place", file=sys.stderr)
        return self._start()

    def stop(self) -> None:
        """Tell everyone to give the cell back, and see them end."""
        # A second Ctrl-C must not leave them alone.
        earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:  # it hangs; what it has on disk is whole
                process.kill()
                process.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)
