"""The queue: claimed once, retried up to a limit, finished when every cell is."""

import optuna
import pytest
from optuna.trial import TrialState

from study.cells import Cell, claim, enqueue, progress, refill

CELLS = [Cell("one", "a", 1, {"x": 1}), Cell("two", "a", 1, {"x": 2})]


@pytest.fixture
def study(tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    made = optuna.create_study(storage=storage, study_name="s")
    refill(made, CELLS, max_attempts=2)
    yield made
    storage.engine.dispose()


def test_a_waiting_cell_is_claimed_once(study):
    """Two claims take the two cells; a third finds none and makes no trial of its own."""
    first, second = claim(study, study._storage), claim(study, study._storage)
    assert {first.user_attrs["cell"], second.user_attrs["cell"]} == {"one", "two"}
    assert claim(study, study._storage) is None
    assert len(study.trials) == 2


def test_a_claimed_cell_has_the_point_that_was_queued(study):
    """Suggesting gives back what the queue fixed."""
    trial = claim(study, study._storage)
    assert trial.suggest_categorical("x", [1, 2]) == {"one": 1, "two": 2}[trial.user_attrs["cell"]]


def test_a_trial_without_a_cell_is_left_alone(study):
    """Somebody's own enqueued trial is not this queue's."""
    for _ in CELLS:
        claim(study, study._storage)
    study.enqueue_trial({"x": 1})
    assert claim(study, study._storage) is None


def test_cells_are_counted_by_where_they_stand(study):
    """Waiting, running, complete; and failed only when no attempt is left."""
    stage = progress(study, CELLS)
    assert (stage.planned, stage.waiting, stage.running, stage.complete, stage.failed) == (2, 2, 0, 0, 0)
    first = claim(study, study._storage)
    assert (progress(study, CELLS).running, progress(study, CELLS).waiting) == (1, 1)
    study.tell(first, 0.5)
    second = claim(study, study._storage)
    study.tell(second, state=TrialState.FAIL)
    stage = progress(study, CELLS)
    assert (stage.complete, stage.failed, stage.is_finished) == (1, 1, True)


def test_a_failed_cell_is_queued_again_until_its_attempts_are_used_up(study):
    """Two attempts, then none; what is complete is never queued again."""
    study.tell(claim(study, study._storage), 0.5)
    for attempt in (1, 2):
        trial = claim(study, study._storage)
        assert trial.user_attrs["attempt"] == attempt
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert claim(study, study._storage) is None
    assert len(study.trials) == 3


def test_a_stopped_attempt_is_not_a_failure(study):
    """However often a cell was interrupted, it is queued again."""
    for _ in range(4):
        trial = claim(study, study._storage)
        trial.set_user_attr("interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert progress(study, CELLS).waiting == 2


def test_a_retry_is_the_experiment_that_was_proposed_at_first(study):
    """A search's point and its seed stay with the cell."""
    study.tell(claim(study, study._storage), 0.5)
    study.tell(claim(study, study._storage), 0.5)
    slot = Cell("slot", "a", 1, {})
    enqueue(study, slot, attempt=1)
    trial = claim(study, study._storage)
    trial.set_user_attr("proposed", {"x": 2})
    trial.set_user_attr("seed", 1001)
    study.tell(trial, state=TrialState.FAIL)
    refill(study, [*CELLS, slot], max_attempts=2)
    again = claim(study, study._storage)
    assert again.suggest_categorical("x", [1, 2]) == 2
    assert again.user_attrs["seed"] == 1001
    assert again.user_attrs["has_point"]


def test_a_cell_that_cannot_succeed_is_not_tried_again(study):
    """A run that diverged would diverge again: same configuration, same seed."""
    for _ in CELLS:
        trial = claim(study, study._storage)
        trial.set_user_attr("hopeless", True)
        study.tell(trial, state=TrialState.FAIL)
    refill(study, CELLS, max_attempts=5)
    assert progress(study, CELLS).failed == 2
