"""What `study run` shows while its workers work: a bar over the cells, or lines where the output is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from study.crew import Crew
from study.estimate import CELLS_FOR_FIRST, duration, seconds_at_work, seconds_left
from study.queue import Progress, planned_cells, progress
from study.stopping import pause

POLL_SECONDS = 0.5
LOOK_SHARE = 0.05
"""Of the time at most goes into looking at the study: with hundreds of cells that would keep a worker's core busy."""
LINE_SECONDS = 5.0
"""Between two lines, at least."""
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"
"""Without tqdm's own guess of the time left, which takes all cells for alike."""


def watch(study: optuna.Study, crew: Crew, show_progress: bool) -> None:
    """Show how far a study is until every worker has ended, and keep the estimate made after its first cells.

    Raises:
        KeyboardInterrupt: If it was told to stop; see `stopping`.
    """
    about, cells = study.user_attrs, planned_cells(study)
    has_first = "first_estimate" in about
    next_look = time.monotonic()
    with display(study.study_name, len(cells), show_progress) as show:
        while True:
            is_over = crew.is_over()
            if is_over or time.monotonic() >= next_look:
                start, now = time.monotonic(), datetime.now()
                trials = study.get_trials(deepcopy=False)
                stage = progress(trials, cells, about["recipe"]["max_attempts"])
                left = seconds_left(about, cells, trials, workers=crew.at_once, now=now)
                if left and stage.complete >= CELLS_FOR_FIRST and not has_first:
                    made = datetime.now(UTC).isoformat(timespec="seconds")
                    total = seconds_at_work(trials, now) + left
                    study.set_user_attr("first_estimate", {"cells": stage.complete, "seconds": total, "made": made})
                    has_first = True
                show(stage, words(stage, [t.value for t in trials if t.state == TrialState.COMPLETE], left))
                next_look = time.monotonic() + (time.monotonic() - start) / LOOK_SHARE
            if is_over:
                return
            pause(POLL_SECONDS)


def words(stage: Progress, values: list[float], left: float | None) -> str:
    """`best 0.4100, 1 failed, about 4 min left`."""
    parts = [f"best {max(values):.4f}"] if values else []
    parts += [f"{stage.failed} failed"] if stage.failed else []
    parts += [f"about {duration(left)} left"] if left else []
    return ", ".join(parts)


@contextmanager
def display(name: str, planned: int, show_progress: bool) -> Iterator[Callable[[Progress, str], None]]:
    """What shows progress: a bar on a terminal; else a line at the start, and when more cells are done.

    Yields:
        A function of where the cells stand and what is to be said of it.
    """
    if not show_progress:
        yield lambda stage, said: None
    elif sys.stderr.isatty():
        with tqdm(total=planned, desc=name, bar_format=BAR) as bar:

            def move(stage: Progress, said: str) -> None:
                bar.n = stage.ended
                bar.set_postfix_str(said)

            yield move
    else:
        yield Lines().show


class Lines:
    """Progress as lines."""

    def __init__(self) -> None:
        self.done, self.shown_at = -1, -LINE_SECONDS

    def show(self, stage: Progress, said: str) -> None:
        """Print where the cells stand, if that is new and the last line some seconds old, or they are all done."""
        done, now = stage.ended, time.monotonic()
        if done > self.done and (now - self.shown_at >= LINE_SECONDS or stage.is_finished):
            print(", ".join(filter(None, [f"{done} of {stage.planned} cells", said])), file=sys.stderr, flush=True)
            self.done, self.shown_at = done, now
