"""Which runs are closed when nobody is working on them any more."""

from types import SimpleNamespace

import optuna
from optuna.trial import TrialState, create_trial

from study.queue import RUN_KEY
from study.tracking import close_orphans


class Page(list):
    """As MLflow gives them: the token of the next one, or None."""

    token = None


class Client:
    """Open runs by id and key, two a page."""

    def __init__(self, keys):
        self.open = [
            SimpleNamespace(info=SimpleNamespace(run_id=f"run {i}"), data=SimpleNamespace(tags={RUN_KEY: key}))
            for i, key in enumerate(keys)
        ]
        self.closed = {}

    def search_runs(self, experiments, condition, page_token=None):
        start = int(page_token or 0)
        page = Page(self.open[start : start + 2])
        page.token = str(start + 2) if start + 2 < len(self.open) else None
        return page

    def set_terminated(self, run_id, status):
        self.closed[run_id] = status


def study_with(*trials):
    """A study with trials in these states, by the keys of their runs."""
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("experiment_id", "1")
    for state, key in trials:
        value = 0.4 if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, user_attrs={RUN_KEY: key}))
    return study


def test_runs_are_closed_as_their_trials_ended_and_those_at_work_are_left_open():
    """On every page; one without a trial was killed."""
    study = study_with(
        (TrialState.RUNNING, "a"), (TrialState.COMPLETE, "b"), (TrialState.FAIL, "c"), (TrialState.PRUNED, "d")
    )
    client = Client(["a", "b", "c", "d", "nobody's"])
    close_orphans(client, study)
    assert client.closed == {"run 1": "FINISHED", "run 2": "KILLED", "run 3": "KILLED", "run 4": "KILLED"}


def test_a_trial_that_was_queued_twice_does_not_close_the_run_of_the_one_that_was_taken():
    """They have one key; the other one has failed, before or after it."""
    for states in ((TrialState.RUNNING, TrialState.FAIL), (TrialState.FAIL, TrialState.RUNNING)):
        client = Client(["a"])
        close_orphans(client, study_with(*((state, "a") for state in states)))
        assert client.closed == {}
    client = Client(["a"])
    close_orphans(client, study_with((TrialState.COMPLETE, "a"), (TrialState.FAIL, "a")))
    assert client.closed == {"run 0": "FINISHED"}


def test_where_nothing_is_open_nothing_is_asked_of_the_study():
    """It may have thousands of trials."""
    study = SimpleNamespace(study_name="s", user_attrs={"experiment_id": "1"})
    client = Client([])
    close_orphans(client, study)
    assert client.closed == {}
