"""The work queue: cells as trials of Optuna's storage, put there waiting, claimed by workers, finished or given back.

A cell is one complete configuration with one seed; a trial is one attempt at it. A study is finished when every cell
has a COMPLETE trial, or was set aside after its last attempt. Which cells a recipe has is in `cells`. Nothing here
needs torch or MLflow, so that `study status` answers at once.
"""

import dataclasses
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from skiprec.errors import StudyError

FIRST_AGAIN = "first_again"
"""What the trial of a cell that repeats its arm's first point is marked with."""
RUN_KEY = "run_key"
"""What a trial names its run by, and the run itself as a tag: its id is the tracker's to give, which may be away."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An entry of the queue."""

    id: str
    """Of the configuration and the data; of the place in the queue where the point is still to be proposed."""
    arm: str
    seed: int
    params: dict[str, Any]
    """The settings that vary; empty where they are still to be proposed."""
    first_again: bool = False
    """Whether the point to be proposed is the one that its arm completed first: chosen without looking at its value."""


def planned_cells(study: optuna.Study) -> list[Cell]:
    """The cells of a study, as they were planned when it was made.

    Raises:
        StudyError: If its making was stopped half-way.
    """
    about = study.user_attrs
    refuse_half_made(study.study_name, about)
    return [Cell(identity, **cell) for identity, cell in about["cells"].items()]


def refuse_half_made(name: str, about: Mapping[str, Any]) -> None:
    """Refuse a study that does not say what its cells are.

    Raises:
        StudyError: If its making was stopped half-way.
    """
    if "cells" not in about:
        raise StudyError(f"study {name} was not made whole; the command that made it, run again, does that")


def enqueue(study: optuna.Study, cell: Cell, attempt: int) -> None:
    """Put an attempt at a cell into the queue."""
    attrs = {"cell": cell.id, "arm": cell.arm, "seed": cell.seed, "attempt": attempt, "proposed": cell.params}
    attrs |= {FIRST_AGAIN: True} if cell.first_again else {}
    attrs |= {RUN_KEY: str(uuid.uuid4())}
    study.enqueue_trial(cell.params, user_attrs=attrs)


class Queue:
    """A worker's way to the waiting trials of a study.

    To list them takes longer with every cell that waits (320: 70 ms, under a lock that other workers wait for), so the
    list is kept, and made again when every trial on it was claimed by someone.

    Args:
        study: Whose queue.
        exclusively: Entered while claiming; see `locks.claim_lock`.
    """

    def __init__(self, study: optuna.Study, exclusively: AbstractContextManager[object]) -> None:
        self.study = study
        self.exclusively = exclusively
        self._listed: deque[int] = deque()

    def claim(self, is_allowed: Callable[[], bool] = lambda: True) -> optuna.Trial | None:
        """Take the next waiting trial, or None where there is none, or none is allowed.

        Not `study.ask`: where the queue has run empty, that makes a trial which belongs to no cell.
        """
        with self.exclusively:
            while is_allowed() and (self._listed or self._list()):
                trial_id = self._listed.popleft()
                with suppress(UpdateFinishedTrialError):  # claimed and finished by another since it was listed
                    if self.study._storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                        return optuna.Trial(self.study, trial_id)
        return None

    def _list(self) -> bool:
        """List the waiting trials, one a cell. Returns whether there are any."""
        for tried in attempts(self.study.get_trials(deepcopy=False)).values():
            waiting = [t for t in tried if t.state == TrialState.WAITING]
            is_taken = any(t.state in (TrialState.COMPLETE, TrialState.RUNNING) for t in tried)
            # Two, where a connection broke while one was made, and Optuna made it again.
            for extra in waiting[0 if is_taken else 1 :]:
                self.study._storage.set_trial_user_attr(extra._trial_id, "interrupted", True)
                finish(self.study, extra._trial_id, TrialState.FAIL)
            self._listed.extend(t._trial_id for t in waiting[: 0 if is_taken else 1])
        return bool(self._listed)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the cells of a study stand."""

    planned: int
    complete: int
    running: int
    waiting: int
    failed: int
    """Set aside after their last attempt."""
    pruned: int = 0
    """Ended early, behind the others of their arm."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be done."""
        return self.ended == self.planned

    @property
    def ended(self) -> int:
        """Cells that are complete, set aside or pruned."""
        return self.complete + self.failed + self.pruned


def finish(study: optuna.Study, trial_id: int, state: TrialState, value: float | None = None) -> bool:
    """End a running trial. Returns whether it was still to be ended: somebody may have taken its worker for dead."""
    try:
        return study._storage.set_trial_state_values(trial_id, state, None if value is None else [value])
    except UpdateFinishedTrialError:
        return False


def facts(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial says of itself, and of its result where it has one."""
    return trial.user_attrs | trial.user_attrs.get("result", {})


def attempts(trials: list[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """The trials of each cell."""
    by_cell: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if "cell" in trial.user_attrs:
            by_cell.setdefault(trial.user_attrs["cell"], []).append(trial)
    return by_cell


def is_failure(trial: FrozenTrial) -> bool:
    """Whether the attempt failed by itself, and was not merely stopped."""
    return trial.state == TrialState.FAIL and not trial.user_attrs.get("interrupted", False)


def is_abandoned(trial: FrozenTrial) -> bool:
    """Whether the attempt's worker died."""
    return trial.user_attrs.get("abandoned", False)


def cell_status(tried: list[FrozenTrial], max_attempts: int) -> str:
    """In one word, or two, what became of a cell: that of its best attempt; "waiting" if it is to be tried again."""
    states = {trial.state for trial in tried}
    for state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED):
        if state in states:
            return state.name.lower()
    is_last = sum(map(is_failure, tried)) >= max_attempts or any(t.user_attrs.get("hopeless") for t in tried)
    return "set aside" if is_last else "waiting"


def progress(trials: list[FrozenTrial], cells: list[Cell], max_attempts: int) -> Progress:
    """Count the planned cells by where they stand."""
    by_cell = attempts(trials)
    counts = Counter(cell_status(by_cell.get(cell.id, []), max_attempts) for cell in cells)
    return Progress(
        len(cells), counts["complete"], counts["running"], counts["waiting"], counts["set aside"], counts["pruned"]
    )


def stage_of(study: optuna.Study) -> Progress:
    """Where the cells of a study stand."""
    recipe = study.user_attrs["recipe"]
    return progress(study.get_trials(deepcopy=False), planned_cells(study), recipe["max_attempts"])


def refill(study: optuna.Study, cells: list[Cell], max_attempts: int, check: Callable[[], None] = lambda: None) -> None:
    """Queue every cell that is to be tried, or tried again, and has no trial waiting for that.

    Safe to call at any time by whoever holds the lock under which cells are claimed, and to be left half-way: `check`
    is called before each cell, and may raise.
    """
    by_cell = attempts(study.get_trials(deepcopy=False))
    for cell in cells:
        check()
        trials = by_cell.get(cell.id, [])
        is_queued = any(trial.state == TrialState.WAITING for trial in trials)
        if cell_status(trials, max_attempts) == "waiting" and not is_queued:
            enqueue(study, proposed(cell, trials), attempt=len(trials) + 1)


def proposed(cell: Cell, trials: list[FrozenTrial]) -> Cell:
    """The cell with the point that an earlier attempt was given, so that a retry is the same experiment."""
    with_params = [t for t in trials if t.user_attrs.get("proposed")]
    if not with_params:
        return cell
    last = with_params[-1].user_attrs
    return dataclasses.replace(cell, seed=last["seed"], params=last["proposed"])
