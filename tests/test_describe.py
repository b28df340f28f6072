"""The description of a dataset: each figure by hand on a small one, and as counted elsewhere on the real one."""

import pytest
from test_logs import log_row, log_session, write_log
from test_prepare import real_logs  # noqa: F401  a fixture

from skiprec.dataset import load_dataset
from skiprec.describe import counts, describe, percent, render
from skiprec.errors import DatasetError
from skiprec.prepare import PrepareConfig, prepare_logs


@pytest.fixture
def folder(tmp_path):
    rows = log_session("1", list("abca"), [0, 2, 0, 3])
    rows += [
        log_row("2", i, 6, item, 0, f"2018-07-{13 + i // 5}", "charts" if i > 2 else "radio")
        for i, item in enumerate("cdeffg", 1)
    ]
    rows += log_session("3", list("abca"), [3, 3, 1, 1])
    rows += [log_row("4", 1, 9)]
    config = PrepareConfig(min_length=4, max_length=6)
    prepare_logs([write_log(tmp_path / "log.csv", rows)], tmp_path / "data", config=config, progress=False)
    return tmp_path / "data"


def test_every_figure_is_the_one_counted_by_hand(folder):
    figures = counts(load_dataset(folder))
    assert figures.pop("digest") == load_dataset(folder).digest
    assert figures.pop("settings")["min_length"] == 4
    # Skipped: 0 1 0 1 | 0 0 0 0 0 0 | 1 1 0 0. Pairs: after a skip 0, 1, 0 of 3; after none 1, 1, 0 x 5, 0 of 8.
    assert figures == {
        "sources": 1,
        "rows_read": 15,
        "sessions_read": 4,
        "dropped": {"incomplete": 1, "too_short": 0, "no_skips": 0},
        "truncated": 0,
        "sessions": 3,
        "items": 7,
        "rows": 14,
        "lengths": {4: 2, 6: 1},
        "skip_1": 3 / 14,
        "skip_2": 4 / 14,
        "skip_3": 6 / 14,
        "not_skipped": 8 / 14,
        "no_flag": 0,
        "not_nested": 0,
        "skipped": 4 / 14,
        "skipped_after_skipped": 1 / 3,
        "skipped_after_heard": 2 / 8,
        "sessions_with_skip": 2 / 3,
        "sessions_with_heard": 1,
        "repeats": 3 / 14,  # a, f, a
        "repeats_at_once": 1 / 14,  # f
        "test_skipped": 1 / 3,
        "test_repeated": 2 / 3,
        "test_in_prefix": 2 / 3,
        "test_cold": 1 / 3,  # g
        "items_in_two_sessions": 3,  # a, b, c
        "items_in_training": 6,
        "top_items_share": 1,
        "contexts": {"radio": 10, "charts": 4},
        "sessions_changing_context": 1,
        "first_date": "2018-07-13",
        "last_date": "2018-07-15",
        "sessions_over_several_dates": 1,
        "duplicate_sessions": 1,
    }


def test_the_text_shows_the_figures_beside_the_papers(folder):
    text = describe(folder)
    for line in (
        "sessions                               3        450K",
        "interactions skipped               28.6%         15%",
        "read: 15 rows, 4 sessions, 1 files",
        "dropped, incomplete: 1 sessions",
        "     4          2  ########################################",
        "     6          1  ####################",
        "test targets never in any training prefix    33.3%",
        "contexts: radio 10; charts 4",
        "dates of first rows: 2018-07-13 to 2018-07-15; sessions over several dates: 1",
    ):
        assert line in text.splitlines()
    assert render(counts(load_dataset(folder))) == text


def test_a_share_of_nothing_is_a_dash():
    assert (percent(float("nan")), percent(0.5171)) == ("-", "51.7%")


def test_only_a_dataset_folder_is_described(tmp_path):
    with pytest.raises(DatasetError):
        describe(tmp_path)


@pytest.mark.real_logs
def test_figures_of_the_real_logs_are_those_that_others_counted(real_logs, tmp_path):  # noqa: F811
    """Those were counted over all 100,000 rows, these over the 99,989 of kept sessions."""
    prepare_logs([real_logs], tmp_path / "data", progress=False)
    figures = counts(load_dataset(tmp_path / "data"))
    shares = {
        "skip_1": 0.422, "skip_2": 0.517, "skip_3": 0.649, "not_skipped": 0.332, "no_flag": 0.019,
        "sessions_with_skip": 1.0, "sessions_with_heard": 1.0, "repeats": 0.128, "repeats_at_once": 0.012,
        "test_in_prefix": 0.176, "test_cold": 0.256, "test_skipped": 0.405, "top_items_share": 0.18,
    }  # fmt: skip
    assert {name: round(figures[name], 3) for name in shares} == shares
    assert (round(figures["skipped_after_skipped"], 2), round(figures["skipped_after_heard"], 2)) == (0.75, 0.28)
    numbers = [500, 430, 386, 338, 270, 256, 199, 183, 178, 186, 3029]  # the cut session was one of 20
    assert figures["lengths"] == dict(zip(range(10, 21), numbers, strict=True))
    assert figures["duplicate_sessions"] == 42
    assert figures["items_in_two_sessions"] == 9462 - 1  # one of them by the cut session alone
    assert (figures["sessions_over_several_dates"], figures["sessions_changing_context"]) == (97, 1496)
    assert figures["contexts"]["user_collection"] == 40540 - 11
    assert figures["first_date"] == "2018-05-18"
