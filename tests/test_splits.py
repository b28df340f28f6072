"""The temporal split: which sessions each part has, by hand and by a slow loop, and what a model sees of them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import strategies as st
from test_logs import log_row, write_log

from skiprec.baselines import baselines
from skiprec.dataset import held_out, load_dataset, training_prefix
from skiprec.errors import DatasetError
from skiprec.evaluation import Evaluator, draw_candidates
from skiprec.prepare import PrepareConfig, prepare_logs
from skiprec.splits import temporal_parts
from skiprec.trainer import Trainer

CONFIG = PrepareConfig(min_length=4, max_length=6, split="temporal")
DAYS = [0, 3, 1, 2, 0, 0, 0, 4, 0, 0, 0, 1]
"""Of the sessions of `dataset`: 7 of day 0, then 2, 1, 1, 1 of the days after."""


def dates(days):
    """As the dataset has them."""
    return np.array(days, dtype=np.int32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve sessions of four or five tracks over five days; track x of a session on day 4 occurs nowhere else."""
    folder, rows = tmp_path_factory.mktemp("temporal"), []
    for i, day in enumerate(DAYS):
        items = [*"abcd"] if i % 2 else [*"badce"]
        if day == 4:
            items[0], items[-1] = "x", "y"
        rows += [
            log_row(f"{i:02}", t, len(items), item, 2 * (t % 2), f"2018-07-{10 + day}", "charts" if t == 4 else "radio")
            for t, item in enumerate(items, 1)
        ]
    prepare_logs([write_log(folder / "log.csv", rows)], folder / "data", config=CONFIG, progress=False)
    return load_dataset(folder / "data")


@pytest.mark.parametrize(
    ("days", "parts"),
    [
        ([1, 1, 2, 3], [0, 0, 1, 2]),
        ([3, 1, 2, 1], [2, 0, 1, 0]),
        ([1] * 8 + [2, 3], [0] * 8 + [1, 2]),
        # 60% or 90% before a cut: the nearer is at 90%, but test needs a day of its own.
        ([1] * 6 + [2] * 3 + [3], [0] * 6 + [1] * 3 + [2]),
        # 75% and 85% are as near to 80%: the earlier one.
        ([1] * 15 + [2, 2] + [3, 4, 5], [0] * 15 + [1, 1] + [1, 2, 2]),
    ],
)
def test_the_cuts_lie_between_days_where_the_shares_are_nearest(days, parts):
    assert temporal_parts(dates(days)).tolist() == parts


@given(st.lists(st.integers(0, 30), min_size=3, max_size=200))
def test_no_day_is_in_two_parts_and_no_cut_is_nearer(days):
    """Against all cuts, tried one by one; refused exactly where there are too few days or too few before the cut."""
    known = sorted(set(days))
    share = {day: Fraction(sum(d < day for d in days), len(days)) for day in known}
    if len(known) < 3:
        with pytest.raises(DatasetError, match="three days"):
            temporal_parts(dates(days))
        return
    val = min(known[1:-1], key=lambda day: (abs(share[day] - Fraction(8, 10)), day))
    test = min((day for day in known if day > val), key=lambda day: (abs(share[day] - Fraction(9, 10)), day))
    if share[val] < Fraction(1, 2):
        with pytest.raises(DatasetError, match="expected at least half"):
            temporal_parts(dates(days))
        return
    assert temporal_parts(dates(days)).tolist() == [(day >= val) + (day >= test) for day in days]


def test_training_sees_whole_sessions_of_the_first_days_alone(dataset):
    """Ten of twelve before day 3 is 83%, nine before day 2 75%: the nearer cut is at day 3; day 4 is test."""
    prefix = training_prefix(dataset)
    kept = [i for i, day in enumerate(DAYS) if day < 3]
    assert prefix.lengths.tolist() == [4 if i % 2 else 5 for i in kept]
    assert prefix.items[0].tolist() == [2, 1, 4, 3, 5, 0]  # b a d c e
    assert prefix.skipped[0].tolist() == [True, False, True, False, True, False]
    assert dataset.plays.tolist() == [0, 10, 10, 10, 10, 6, 0, 0]  # a b c d, e of the longer ones, x, y
    assert len(Trainer(dataset, small_config()).sessions.lengths) == 10


@pytest.mark.parametrize(("split", "items", "target"), [("val", "abc", "d"), ("test", "xbc", "y")])
def test_the_last_track_of_a_later_session_is_asked_for(dataset, split, items, target):
    """Day 3 is session 01, day 4 session 07: a b c d, and x b c y, whose x and y nobody trained on."""
    asked = held_out(dataset, split)
    names = dataset.item_ids()
    assert [names[i - 1] for i in asked.inputs.items[0] if i] == list(items)
    assert [names[i - 1] for i in asked.targets] == [target]
    assert asked.session_lengths.tolist() == [4]
    assert asked.target_skipped.tolist() == [False]
    assert [dataset.context_names[i] for i in asked.target_context] == ["charts"]
    assert not set(draw_candidates(dataset, split, 5)[0].tolist()) & set(
        dataset.items[dataset.asked(split)][0].tolist()[:4]
    )


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_a_model_and_the_baselines_train_and_answer(dataset, architecture):
    config = small_config(architecture=architecture, max_epochs=2, patience=1)
    *_, last = Trainer(dataset, config, show_progress=False).epochs()
    assert last.metrics["val/count"] == 1
    evaluator = Evaluator(dataset, "test")
    for scorer in baselines(dataset).values():
        assert evaluator.sampled_and_full(scorer)["test/count"] == 1


def test_some_sessions_keep_their_parts(dataset):
    some = dataset.some(6)
    assert torch.equal(some.items, dataset.items[::2])
    assert torch.equal(some.parts, dataset.parts[::2])


def test_logs_of_too_few_days_are_refused_before_anything_is_written(tmp_path):
    rows = [log_row(str(s), t, 4, "abcd"[t - 1], 0, f"2018-07-1{s % 2}") for s in range(6) for t in range(1, 5)]
    with pytest.raises(DatasetError, match="needs sessions of three days or more, found 2; add logs of other days"):
        prepare_logs([write_log(tmp_path / "log.csv", rows)], tmp_path / "data", config=CONFIG, progress=False)
    assert not (tmp_path / "data").exists()
