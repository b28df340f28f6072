"""The description of a dataset: each figure by hand on a small one, and as counted elsewhere on the real one."""

import json
import random

import pytest
from conftest import dataset_of
from test_logs import log_row, log_session, write_log
from test_prepare import real_logs  # noqa: F401  a fixture

from skiprec.dataset import load_dataset, training_prefix
from skiprec.describe import as_json, counts, describe, has_anchor, percent, render
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
        "val_cold": 0,  # of c, f, c
        "parts": None,
        "no_anchor": 1,  # prefixes a b', c d e f, a' b': no skip with a heard item after another
        "skipped_by_position": [1 / 3, 2 / 3, 0, 1 / 3, 0, 0],
        "skipped_by_context": {"charts": 0, "radio": 4 / 10},
        "features": {},
        "popularity": [(1, 4 / 14), (2, 7 / 14), (5, 12 / 14), (7, 1)],  # a 4, c 3, b 2, f 2, d e g 1
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
    text = describe(folder, render)
    for line in (
        "sessions                               3        450K",
        "interactions skipped               28.6%         15%",
        "read: 15 rows, 4 sessions, 1 files",
        "dropped, incomplete: 1 sessions",
        "     4          2  ########################################",
        "     6          1  ####################",
        "test targets never trained on                33.3%",
        "contexts, plays and share skipped: radio 10 40.0%; charts 4 0.0%",
        "skipped, by position from 1: 33 67 0 33 0 0",
        "plays of the most played items: 1: 28.6%",
        "dates of first rows: 2018-07-13 to 2018-07-15; sessions over several dates: 1",
    ):
        assert line in text.splitlines()
    assert render(counts(load_dataset(folder))) == text


def test_as_json_the_figures_are_the_same_and_nothing_is_null(folder):
    """A figure that cannot be is null; positions and contexts keep their order."""
    figures = counts(load_dataset(folder))
    told = json.loads(describe(folder, as_json))
    assert told.keys() == figures.keys()
    for name in ("digest", "rows", "skipped", "skipped_by_position", "skipped_by_context", "test_cold"):
        assert told[name] == figures[name]
    assert told["popularity"] == [list(pair) for pair in figures["popularity"]]
    assert json.loads(as_json({"a": {"b": float("nan")}, "c": [float("nan"), 1], 4: None})) == {
        "a": {"b": None},
        "c": [None, 1],
        "4": None,
    }


def slow_has_anchor(items: list[int], skipped: list[bool]) -> bool:
    """Position by position, as semantics.md says it."""
    for i, item in enumerate(items):
        later = [j for j in range(i + 1, len(items)) if not skipped[j]]
        if later and {n for n, is_skip in zip(items, skipped, strict=True) if is_skip} - {item, items[later[0]]}:
            return True
    return False


def test_a_session_has_an_anchor_where_a_slow_loop_finds_one(monkeypatch):
    """Over small random sessions with many repeats; in blocks that do not divide them."""
    monkeypatch.setattr("skiprec.describe.AT_ONCE", 7)
    draw = random.Random(1)
    sessions = [[draw.randint(1, 4) for _ in range(draw.randint(4, 7))] for _ in range(200)]
    levels = [[draw.choice((0, 2)) for _ in session] for session in sessions]
    prefix = training_prefix(dataset_of(sessions, levels, n_items=4))
    expected = [
        slow_has_anchor(items[:-2], [level > 0 for level in row[:-2]])
        for items, row in zip(sessions, levels, strict=True)
    ]
    assert has_anchor(prefix).tolist() == expected
    assert 20 < sum(expected) < 180


def test_a_share_of_nothing_is_a_dash():
    assert (percent(float("nan")), percent(0.5171)) == ("-", "51.7%")


def test_only_a_dataset_folder_is_described(tmp_path):
    with pytest.raises(DatasetError):
        describe(tmp_path, render)


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
