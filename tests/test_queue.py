"""The queue: claimed once, retried up to a limit, finished when every cell is."""

import multiprocessing
from contextlib import nullcontext

import optuna
import pytest
from optuna.trial import TrialState

from study.locks import claim_lock, make_schema
from study.queue import Cell, Queue, enqueue, progress, refill
from study.storage import open_storage, open_study, places

CELLS = [Cell("one", "a", 1, {"x": 1}), Cell("two", "a", 1, {"x": 2})]


@pytest.fixture
def study(tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    made = optuna.create_study(storage=storage, study_name="s")
    refill(made, CELLS, max_attempts=2)
    yield made
    storage.engine.dispose()


def claim(study):
    """What a worker that has just started claims."""
    return Queue(study, nullcontext()).claim()


def test_a_waiting_cell_is_claimed_once(study):
    """Two claims take the two cells; a third finds none and makes no trial of its own."""
    first, second = claim(study), claim(study)
    assert {first.user_attrs["cell"], second.user_attrs["cell"]} == {"one", "two"}
    assert claim(study) is None
    assert len(study.trials) == 2


def test_the_waiting_are_listed_once_for_many_claims(study, monkeypatch):
    """To list them takes longer with each that waits. Two lists: of the two cells, and of none."""
    lists = []
    get_trials = study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **options: lists.append(1) or get_trials(**options))
    queue = Queue(study, nullcontext())
    assert {queue.claim().user_attrs["cell"] for _ in CELLS} == {"one", "two"}
    assert len(lists) == 1
    assert queue.claim() is None
    assert len(lists) == 2


def test_what_others_claimed_or_finished_since_it_was_listed_is_passed_over(study):
    """Of four that it listed, one is claimed by now and one finished: the fourth, then what was queued since."""
    refill(study, [Cell("three", "a", 1, {"x": 3}), Cell("four", "a", 1, {"x": 4})], max_attempts=2)
    queue = Queue(study, nullcontext())
    first = queue.claim()
    study.tell(claim(study), 0.5)
    claim(study)
    study.tell(first, state=TrialState.FAIL)
    refill(study, CELLS, max_attempts=2)
    assert [queue.claim().user_attrs["cell"] for _ in range(2)] == ["four", "one"]
    assert queue.claim() is None


def test_a_claimed_cell_has_the_point_that_was_queued(study):
    """Suggesting gives back what the queue fixed."""
    trial = claim(study)
    assert trial.suggest_categorical("x", [1, 2]) == {"one": 1, "two": 2}[trial.user_attrs["cell"]]


def test_a_trial_without_a_cell_is_left_alone(study):
    """Somebody's own enqueued trial is not this queue's."""
    for _ in CELLS:
        claim(study)
    study.enqueue_trial({"x": 1})
    assert claim(study) is None


def test_cells_are_counted_by_where_they_stand(study):
    """Waiting, running, complete; and failed only when no attempt is left."""
    stage = progress(study.trials, CELLS, 1)
    assert (stage.planned, stage.waiting, stage.running, stage.complete, stage.failed) == (2, 2, 0, 0, 0)
    first = claim(study)
    assert (progress(study.trials, CELLS, 1).running, progress(study.trials, CELLS, 1).waiting) == (1, 1)
    study.tell(first, 0.5)
    second = claim(study)
    study.tell(second, state=TrialState.FAIL)
    stage = progress(study.trials, CELLS, 1)
    assert (stage.complete, stage.failed, stage.is_finished) == (1, 1, True)


def test_a_failed_cell_is_queued_again_until_its_attempts_are_used_up(study):
    """Two attempts, then none; what is complete is never queued again."""
    study.tell(claim(study), 0.5)
    for attempt in (1, 2):
        trial = claim(study)
        assert trial.user_attrs["attempt"] == attempt
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert claim(study) is None
    assert len(study.trials) == 3


def test_a_stopped_attempt_is_not_a_failure(study):
    """However often a cell was interrupted, it is queued again."""
    for _ in range(4):
        trial = claim(study)
        trial.set_user_attr("interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
        refill(study, CELLS, max_attempts=2)
    assert progress(study.trials, CELLS, 1).waiting == 2


def test_a_retry_is_the_experiment_that_was_proposed_at_first(study):
    """A search's point and its seed stay with the cell."""
    study.tell(claim(study), 0.5)
    study.tell(claim(study), 0.5)
    slot = Cell("slot", "a", 1, {})
    enqueue(study, slot, attempt=1)
    trial = claim(study)
    trial.set_user_attr("proposed", {"x": 2})
    trial.set_user_attr("seed", 1001)
    study.tell(trial, state=TrialState.FAIL)
    refill(study, [*CELLS, slot], max_attempts=2)
    again = claim(study)
    assert again.suggest_categorical("x", [1, 2]) == 2
    assert again.user_attrs["seed"] == 1001
    assert again.user_attrs["proposed"] == {"x": 2}


def test_a_cell_that_cannot_succeed_is_not_tried_again(study):
    """A run that diverged would diverge again: same configuration, same seed."""
    for _ in CELLS:
        trial = claim(study)
        trial.set_user_attr("hopeless", True)
        study.tell(trial, state=TrialState.FAIL)
    refill(study, CELLS, max_attempts=5)
    assert progress(study.trials, CELLS, 1).failed == 2


def claim_all(where, start, claimed):
    """A worker that claims as fast as it can."""
    study = open_study(where, "s")
    queue = Queue(study, claim_lock(where, "s"))
    start.wait()
    while (trial := queue.claim()) is not None:
        claimed.put(trial.number)
    claimed.put(None)


def assert_no_cell_is_shared(where):
    """Four processes, 60 waiting cells: every cell is claimed, each by one of them."""
    make_schema(where)
    study = optuna.create_study(storage=open_storage(where), study_name="s")
    study.set_user_attr("cells", {})
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


@pytest.mark.slow
def test_workers_that_claim_at_the_same_time_never_share_a_cell(tmp_path):
    """On one SQLite file."""
    where = places(tmp_path, None, None)
    where.resume("s").mkdir(parents=True)
    assert_no_cell_is_shared(where)
