"""Time left, from attempts made by hand: every expected value is the sum that its test spells out."""

from datetime import timedelta

import pytest
from fake_study import START, FakeStudy
from optuna.trial import TrialState

from skiprec.config import flatten
from skiprec.train_config import TrainConfig
from study.estimate import compared, seconds_at_work, seconds_left
from study.queue import Cell
from study.status import describe

UP_TO_TEN = {"max_epochs": 10, "patience": 3}
RECIPE = {
    "settings": UP_TO_TEN,
    "max_attempts": 2,
    "arms": {
        "S-": {"alpha": 0.0},
        "S+ item": {"alpha": 0.5, "context": "item"},
        "S+ session": {"alpha": 0.5, "context": "session"},
        "S- wide": {"alpha": 0.0, "dim": 256},
        "S+ two-way": {"alpha": 0.5, "context": "item", "architecture": "bidirectional"},
        "searched": {"alpha": {"low": 0.1, "high": 1.0}, "architecture": ["unidirectional", "bidirectional"]},
    },
}
RUNNING = TrialState.RUNNING


def add(fake, arm, value=None, **about):
    """An attempt at a cell of an arm, with the arm's settings."""
    return fake.add(value, arm=arm, fixed=UP_TO_TEN | RECIPE["arms"][arm], **about)


def left(fake, *waiting, workers=1, at=1000.0):
    """Seconds left where the attempts' cells, and a waiting one in each of these arms, are planned."""
    cells = [Cell(identity, cell["arm"], 1, {}) for identity, cell in fake.cells.items()]
    cells += [Cell(f"later {i}", arm, 1, {}) for i, arm in enumerate(waiting)]
    now = START + timedelta(seconds=at)
    about = {"recipe": RECIPE, "defaults": flatten(TrainConfig())}
    return seconds_left(about, cells, fake.study.trials, workers=workers, now=now)


def test_nothing_is_said_before_an_epoch_has_ended():
    """A cell under way without one, and others waiting."""
    fake = FakeStudy()
    assert left(fake, "S-") is None
    add(fake, "S-", state=RUNNING)
    assert left(fake, "S-", "S-") is None


def test_nothing_is_left_where_every_cell_is_complete_or_set_aside():
    """Two failures are as many as are allowed; after one there is another to come, of 4 epochs at 10 s."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    cell = add(fake, "S-", error="nan")
    assert left(fake) == 40.0
    add(fake, "S-", cell=cell, error="nan")
    assert left(fake) == 0.0


@pytest.mark.parametrize(("workers", "seconds"), [(1, 120.0), (2, 80.0), (3, 40.0), (8, 40.0)])
def test_waiting_cells_are_dealt_out_to_the_workers(workers, seconds):
    """Three of 40 s: one after the other; two and one; all at once, however many workers have nothing to do."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    assert left(fake, "S-", "S-", "S-", workers=workers) == seconds


def test_a_cell_takes_as_long_as_those_most_like_it():
    """10 s an epoch without the contrastive loss, 20 s with it; four epochs, as both took."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S+ item", 0.4, seconds=80.0)
    assert left(fake, "S-") == 40.0
    assert left(fake, "S+ item") == 80.0
    assert left(fake, "S+ session") == 80.0  # unlike S+ item by its context alone, S- by more
    assert left(fake, "S- wide") == 40.0
    assert left(fake, "S+ two-way") == 80.0
    assert left(fake, "S-", "S+ item", "S+ two-way") == 40.0 + 80.0 + 80.0


def test_a_cell_that_is_like_two_takes_the_mean_of_them():
    """Two S- cells of 4 epochs, 40 s and 60 s: 100 s for 8 epochs."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", 0.4, seconds=60.0)
    assert left(fake, "S-") == 4 * 100.0 / 8


def test_a_cell_whose_point_is_still_to_be_proposed_counts_too():
    """A list may become anything; a range of alpha is a contrastive loss."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S+ item", 0.4, seconds=80.0)
    assert left(fake, "searched") == 80.0


def test_cells_take_as_many_epochs_as_the_complete_ones_in_the_mean():
    """4 epochs and 8 in 120 s: 6 epochs of 10 s."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", 0.4, seconds=80.0, curve={epoch: 0.1 * epoch for epoch in range(1, 9)})
    assert left(fake, "S-") == 60.0


def test_without_a_complete_cell_every_one_takes_max_epochs():
    """Running for 15 s, one epoch reported and half of the next one for all that is known: 10 s an epoch.

    10 epochs less the one, less 5 s of the second; then a whole cell.
    """
    fake = FakeStudy()
    add(fake, "S-", state=RUNNING, at=985.0, curve={1: 0.1})
    assert left(fake) == 9 * 10.0 - 5.0
    assert left(fake, "S-") == 9 * 10.0 - 5.0 + 10 * 10.0
    assert left(fake, "S-", workers=2) == 10 * 10.0


def test_what_a_running_cell_has_done_counts():
    """10 s an epoch: (40 + 25) s for (4 + 2.5) epochs. The second is the best, so early stopping waits for 3 more.

    So there are 3 to go, and 25 - 20 s were spent on the first of them.
    """
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", state=RUNNING, at=975.0, curve={1: 0.1, 2: 0.2})
    assert left(fake) == 3 * 10.0 - 5.0


def test_a_running_cell_takes_at_least_what_its_early_stopping_waits_for():
    """Best at epoch 8, patience 3: until 11, of which max_epochs leaves 10. (40 + 85) s for (4 + 8.5) epochs."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", state=RUNNING, at=915.0, curve={epoch: 0.1 * epoch for epoch in range(1, 9)})
    assert left(fake) == 2 * 10.0 - 5.0


def test_an_epoch_that_takes_too_long_is_about_to_end():
    """Complete ones took 10 s an epoch; this one is at its first for 300 s: three more at least after it."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", state=RUNNING, at=700.0)
    assert left(fake) == 3 * 10.0


def test_a_worker_takes_a_waiting_cell_when_its_own_is_done():
    """25 s left of one, as above; with two workers, 40 s of the other; with one, 65 s."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", state=RUNNING, at=975.0, curve={1: 0.1, 2: 0.2})
    assert left(fake, "S-", workers=2) == 40.0
    assert left(fake, "S-", workers=1) == 65.0


def test_epochs_of_an_earlier_attempt_took_no_time_in_this_one():
    """4 epochs, 2 of them from a resume point: 20 s are 10 s an epoch."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=20.0, resumed_from=2)
    assert left(fake, "S-") == 40.0
    add(fake, "S-", state=RUNNING, at=995.0, curve={1: 0.1, 2: 0.2}, resumed_from=2)
    assert left(fake) == 3 * 10.0 - 5.0


def test_time_at_work_leaves_out_pauses_and_counts_what_overlaps_once():
    """0 to 50 and 30 to 60 are 60 s; a pause; 500 to 510; one that runs since 990, at 1000. A killed one has no end."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, at=30.0, seconds=30.0)
    add(fake, "S-", 0.4, at=0.0, seconds=50.0)
    add(fake, "S-", interrupted=True, at=500.0, seconds=10.0)
    add(fake, "S-", state=RUNNING, at=990.0)
    add(fake, "S-", at=600.0, seconds=300.0, interrupted=True, abandoned=True)
    add(fake, "S-", state=TrialState.WAITING)
    assert seconds_at_work(fake.study.trials, START + timedelta(seconds=1000)) == 60 + 10 + 10


def test_status_says_what_is_left_and_what_was_estimated():
    """Two cells of 40 s done one after the other, two waiting: 80 s left with one worker, 160 s in all."""
    fake = FakeStudy(planned=4)
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", 0.41, at=40.0, seconds=40.0)
    fake.study.set_user_attr("first_estimate", {"cells": 2, "seconds": 200.0})
    lines = describe(fake.study).splitlines()
    assert lines[0] == "study demo-0123abcd: 2 of 4 cells complete, 0 running, 2 waiting, 0 failed"
    assert lines[2] == "time left: about 80 s with 1 at work"
    assert lines[3] == "time in all: about 3 min; estimated after 2 cells: 3 min (-20%)"


def test_status_of_a_finished_study_says_what_it_took():
    """Two cells of 40 s, one after the other."""
    fake = FakeStudy()
    add(fake, "S-", 0.4, seconds=40.0)
    add(fake, "S-", 0.41, at=40.0, seconds=40.0)
    fake.study.set_user_attr("first_estimate", {"cells": 2, "seconds": 64.0})
    assert describe(fake.study).splitlines()[2:] == ["time taken: 80 s; estimated after 2 cells: 64 s (+25%)"]


def test_an_estimate_is_compared_with_what_a_study_takes():
    """660 s are a tenth more than 600."""
    assert compared({"cells": 2, "seconds": 600.0}, 660.0) == "11 min; estimated after 2 cells: 10 min (+10%)"
