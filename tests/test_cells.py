"""The queue: claimed once, retried up to a limit, finished when every cell is."""

import multiprocessing
from contextlib import nullcontext

import optuna
import pytest
from optuna.trial import TrialState

from study.cells import Cell, claim, enqueue, progress, refill
from study.storage import claim_lock, open_study, places

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
    first, second = claim(study, nullcontext()), claim(study, nullcontext())
    assert {first.user_attrs["cell"], second.user_attrs["cell"]} == {"one", "two"}
    assert claim(study, nullcontext()) is None
    assert len(study.trials) == 2


def test_a_claimed_cell_has_the_point_that_was_queued(study):
    """Suggesting gives back what the queue fixed."""
    trial = claim(study, nullcontext())
    assert trial.suggest_categorical("x", [1, 2]) == {"one": 1, "two": 2}[trial.user_attrs["cell"]]


def test_a_trial_without_a_cell_is_left_alone(study):
    """Somebody's own enqueued trial is not this queue's."""
    for _ in CELLS:
        claim(study, nullcontext())
    study.enqueue_trial({"x": 1})
    assert claim(study, nullcontext()) is None


def test_cells_are_counted_by_where_they_stand(study):
    """Waiting, running, complete; and failed only when no attempt is left."""
    stage = progress(study, CELLS, 1)
    assert (stage.planned, stage.waiting, stage.running, stage.complete, stage.failed) == (2, 2, 0, 0, 0)
    first = claim(study, nullcontext())
    assert (progress(study, CELLS, 1).running, progress(study, CELLS, 1).waiting) == (1, 1)
    study.tell(first, 0.5)
    second = claim(study, nullcontext())
    study.tell(second, state=TrialState.FAIL)
    stage = progress(study, CELLS, 1)
    assert (stage.complete, stage.failed, stage.is_finished) == (1, 1, True)


def test_a_failed_cell_is_queued_again_until_its_attempts_are_used_up(study):
    """Two attempts, then none; what is complete is never queued again."""
    study.tell(claim(study, nullcontext()), 0.5)
    for attempt in (1, 2):
        trial = claim(study, nullcontext())
        assert trial.user_attrs["attempt"] == attempt
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert claim(study, nullcontext()) is None
    assert len(study.trials) == 3


def test_a_stopped_attempt_is_not_a_failure(study):
    """However often a cell was interrupted, it is queued again."""
    for _ in range(4):
        trial = claim(study, nullcontext())
        trial.set_user_attr("interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert progress(study, CELLS, 1).waiting == 2


def test_a_retry_is_the_experiment_that_was_proposed_at_first(study):
    """A search's point and its seed stay with the cell."""
    study.tell(claim(study, nullcontext()), 0.5)
    study.tell(claim(study, nullcontext()), 0.5)
    slot = Cell("slot", "a", 1, {})
    enqueue(study, slot, attempt=1)
    trial = claim(study, nullcontext())
    trial.set_user_attr("proposed", {"x": 2})
    trial.set_user_attr("seed", 1001)
    study.tell(trial, state=TrialState.FAIL)
    refill(study, [*CELLS, slot], max_attempts=2)
    again = claim(study, nullcontext())
    assert again.suggest_categorical("x", [1, 2]) == 2
    assert again.user_attrs["seed"] == 1001
    assert again.user_attrs["has_point"]


def test_a_cell_that_cannot_succeed_is_not_tried_again(study):
    """A run that diverged would diverge again: same configuration, same seed."""
    for _ in CELLS:
        trial = claim(study, nullcontext())
        trial.set_user_attr("hopeless", True)
        study.tell(trial, state=TrialState.FAIL)
    refill(study, CELLS, max_attempts=5)
    assert progress(study, CELLS, 1).failed == 2


def claim_all(where, start, claimed):
    """A worker that claims as fast as it can."""
    study = open_study(where, "s")
    exclusively = claim_lock(where, "s")
    start.wait()
    while (trial := claim(study, exclusively)) is not None:
        claimed.put(trial.number)
    claimed.put(None)


@pytest.mark.slow
def test_workers_that_claim_at_the_same_time_never_share_a_cell(tmp_path):
    """Four processes on one SQLite file: every cell is claimed, each by one of them."""
    where = places(tmp_path, None, None)
    where.resume("s").mkdir(parents=True)
    study = optuna.create_study(storage=where.storage, study_name="s")
    n_cells, n_workers = 60, 4
    refill(study, [Cell(str(i), "a", 1, {"x": i}) for i in range(n_cells)], max_attempts=1)
    spawn = multiprocessing.get_context("spawn")
    start, claimed = spawn.Barrier(n_workers), spawn.Queue()
    workers = [spawn.Process(target=claim_all, args=(where, start, claimed)) for _ in range(n_workers)]
    for worker in workers:
        worker.start()
    numbers, ended = [], 0
    while ended < n_workers:
        number = claimed.get(timeout=120)
        ended += number is None
        numbers += [] if number is None else [number]
    for worker in workers:
        worker.join()
    assert sorted(numbers) == list(range(n_cells))
