"""What a trial costs besides its training, counted in calls, each a transaction: seconds depend on the machine."""

import collections
import signal

import pytest
from mlflow import MlflowClient
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState

import skiprec.learner
from study.locks import run_lock
from study.queue import facts, planned_cells, refill
from study.run import Making, create
from study.space import Recipe
from study.storage import places
from study.worker import work

pytestmark = pytest.mark.slow

SMALL = {"dim": 16, "n_heads": 2, "n_layers": 1, "n_negatives": 20, "max_epochs": 2, "patience": 1}
RECIPE = Recipe(
    name="s",
    sampler="exhaustive",
    settings=SMALL | {"learning_rate": [0.001, 0.002, 0.003]},
    arms={"S-": {"alpha": 0.0}, "S+": {"alpha": 0.5}},
)
CELLS = 6


@pytest.fixture
def counted(dataset, tmp_path, monkeypatch):
    """A study that one worker finished in this process; how often each call was made meanwhile; and its trials."""
    where = places(tmp_path, None, None)
    with run_lock(where, "s"):
        study = create(where, Making(name="s", recipe=RECIPE, dataset=dataset), 1, "cpu")
        refill(study, planned_cells(study), max_attempts=1)
    calls = collections.Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for name in ("set_trial_user_attr", "get_study_user_attrs", "get_all_trials"):
        count(_CachedStorage, name)
    for name in ("create_run", "log_inputs", "log_batch", "log_artifact", "set_terminated"):
        count(MlflowClient, name)
    count(skiprec.learner, "Learner")
    monkeypatch.setattr(skiprec.learner, "has_room", lambda device: True)  # as on a GPU
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    work(where, "s", "cpu")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    of_worker = dict(calls)
    trials = study.get_trials()
    study._storage._backend.engine.dispose()
    return of_worker, trials


def test_a_trial_costs_a_few_transactions_and_no_look_at_the_other_trials(counted):
    """Optuna: worker, cell_id, config, run_id and result. MLflow: the settings, two epochs, the chosen one; five files.

    What grows with the study is read a fixed number of times, when a worker starts and when it lists the
    waiting ones, first and last.
    """
    calls, trials = counted
    assert [t.state for t in trials] == [TrialState.COMPLETE] * CELLS
    assert calls["Learner"] == 2  # one an arm, though arms take turns
    assert calls["set_trial_user_attr"] == 5 * CELLS  # its worker is one of them
    assert (calls["get_study_user_attrs"], calls["get_all_trials"]) == (10, 6)
    assert calls["log_batch"] == 4 * CELLS
    assert calls["log_artifact"] == 5 * CELLS
    assert calls["create_run"] == calls["log_inputs"] == CELLS
    assert calls["set_terminated"] == CELLS + 1  # the study's own, by who finished it


def test_a_trial_tells_its_seconds_apart(counted):
    """Training, each epoch's validation, the chosen one's against the catalogue, saving: all within its whole."""
    _, trials = counted
    for trial in trials:
        parts = [facts(trial)[f"{name}_seconds"] for name in ("train", "eval", "full_eval", "save")]
        assert min(parts) > 0
        assert sum(parts) < (trial.datetime_complete - trial.datetime_start).total_seconds()
