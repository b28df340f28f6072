"""How much of a study one command may do."""

from datetime import UTC, datetime, timedelta

import optuna
import pytest
from test_study import RECIPE, data, open_study, run  # noqa: F401  the fixture is used by name

from skiprec.errors import ConfigError
from study.allowance import Allowance, allow, allowance_of, begun, seconds
from study.locks import claim_lock
from study.queue import Cell, Queue, enqueue, finish
from study.storage import Places

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600)]
)
def test_times_are_read(text, expected):
    """As people write them."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "2", "2 h", "h", "2h30", "-1h", "0h", "1w"])
def test_what_is_no_time_is_refused(text):
    """With what one looks like."""
    with pytest.raises(ConfigError, match="expected a time such as 45m, 2h or 1h30m"):
        seconds(text)


@pytest.fixture
def queue(tmp_path):
    """A study with three cells waiting."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db", direction="maximize")
    study.set_user_attr("recipe", {"max_attempts": 2})
    for i in range(3):
        enqueue(study, Cell(f"cell {i}", "S-", i, {}), attempt=1)
    where = Places(tmp_path, f"sqlite:///{tmp_path}/optuna.db", "")
    return Queue(study, claim_lock(where, "s"))


def test_no_more_cells_are_begun_than_allowed_and_one_that_waits_again_counts_no_more(queue):
    """Two of three; the one that was given back may be begun again."""
    study = queue.study
    allow(study, max_cells=2, budget_seconds=None, now=NOW)
    allowance = allowance_of(study)

    def claim():
        return queue.claim(lambda: not allowance.is_spent(study, NOW))

    first, second = claim(), claim()
    assert claim() is None
    finish(study, first._trial_id, optuna.trial.TrialState.COMPLETE, 0.4)
    assert claim() is None
    second.set_user_attr("interrupted", True)
    finish(study, second._trial_id, optuna.trial.TrialState.FAIL)
    enqueue(study, Cell("cell 1", "S-", 1, {}), attempt=2)  # as who gives a cell up does, under the same lock
    assert begun(study) == 1
    assert claim() is not None
    # The next command's are counted from where this one ended.
    assert allow(study, max_cells=1, budget_seconds=None, now=NOW).most_cells == 3


def test_when_the_time_is_over_nothing_is_begun_and_what_runs_is_given_back(queue):
    """To the second; and the next command has a time of its own, or none."""
    study = queue.study
    allow(study, max_cells=None, budget_seconds=60, now=NOW)
    allowance = allowance_of(study)
    before, after = NOW + timedelta(seconds=59), NOW + timedelta(seconds=60)
    assert (allowance.is_over(before), allowance.is_spent(study, before)) == (False, False)
    assert (allowance.is_over(after), allowance.is_spent(study, after)) == (True, True)
    allow(study, max_cells=None, budget_seconds=None, now=after)
    assert allowance_of(study) == Allowance()


@pytest.mark.slow
def test_a_study_is_done_in_parts(data, tmp_path):  # noqa: F811
    """One cell, then as many as no time allows, then the rest."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = ("study", "run", "tiny.toml", "--data", data, "--workers", 2)
    one = run(tmp_path, *command, "--max-cells", 1)
    assert one.returncode == 0, one.stderr
    assert "1 of 4 cells complete, 0 failed\nthe rest waits" in one.stdout
    none = run(tmp_path, *command, "--budget", "0.1s")
    assert none.returncode == 0, none.stderr
    assert "1 of 4 cells complete" in none.stdout
    rest = run(tmp_path, *command)
    assert "4 of 4 cells complete" in rest.stdout
    assert len(open_study(tmp_path)[1]) == 4
