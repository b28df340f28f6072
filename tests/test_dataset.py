"""From a dataset folder to tensors: what training may see, what is held out, and that a changed folder is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_logs import log_row, log_session, write_log

from skiprec.dataset import Dataset, held_out, load_dataset, training_prefix
from skiprec.errors import DatasetError
from skiprec.prepare import PrepareConfig, prepare_logs

CONFIG = PrepareConfig(min_length=4, max_length=6)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three sessions of 4, 6 and 5 items; a..g become 1..7."""
    rows = log_session("1", list("abca"), [0, 2, 0, 3])
    rows += log_session("2", list("cdefgg"), [3, 1, 0, 2, 2, 0], context="charts")
    rows += log_session("3", list("aabeb"), [2, 0, 3, 0, 1])
    prepare_logs([write_log(tmp_path / "log.csv", rows)], tmp_path / "data", config=CONFIG, progress=False)
    return tmp_path / "data"


@pytest.fixture
def dataset(folder) -> Dataset:
    return load_dataset(folder)


def test_sessions_are_padded_on_the_right(dataset):
    assert dataset.items.tolist() == [[1, 2, 3, 1, 0, 0], [3, 4, 5, 6, 7, 7], [1, 1, 2, 5, 2, 0]]
    assert dataset.skip_levels.tolist() == [[0, 2, 0, 3, 0, 0], [3, 1, 0, 2, 2, 0], [2, 0, 3, 0, 1, 0]]
    assert dataset.lengths.tolist() == [4, 6, 5]
    assert dataset.plays.tolist() == [0, 3, 2, 1, 1, 1, 1, 0]  # of a b, c d e f and a a b
    assert (dataset.items.dtype, dataset.skip_levels.dtype) == (torch.int64, torch.int8)
    assert (dataset.n_sessions, dataset.n_items, dataset.max_length) == (3, 7, 6)
    assert dataset.skipped.int().tolist() == [[0, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 0]]
    assert dataset.digest == dataset.manifest.digests["dataset"]
    assert dataset.item_ids() == list("abcdefg")


def test_the_training_prefix_is_all_but_the_last_two_items(dataset):
    prefix = training_prefix(dataset)
    assert prefix.items.tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [1, 1, 2, 0]]
    assert prefix.skipped.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]]
    assert prefix.skip_levels.tolist() == [[0, 2, 0, 0], [3, 1, 0, 2], [2, 0, 3, 0]]
    assert prefix.lengths.tolist() == [2, 4, 3]


def test_the_validation_target_is_the_item_before_the_last(dataset):
    val = held_out(dataset, "val")
    assert val.inputs.items.tolist() == training_prefix(dataset).items.tolist()
    assert val.targets.tolist() == [3, 7, 5]
    assert val.target_skipped.tolist() == [False, True, False]
    assert val.target_repeated.tolist() == [False, False, False]


def test_the_test_target_is_the_last_item_and_the_validation_item_is_known_by_then(dataset):
    test = held_out(dataset, "test")
    assert test.inputs.items.tolist() == [[1, 2, 3, 0, 0], [3, 4, 5, 6, 7], [1, 1, 2, 5, 0]]
    assert test.inputs.skipped.int().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 1, 1], [1, 0, 1, 0, 0]]
    assert test.inputs.skip_levels.tolist() == [[0, 2, 0, 0, 0], [3, 1, 0, 2, 2], [2, 0, 3, 0, 0]]
    assert test.inputs.lengths.tolist() == [3, 5, 4]
    assert test.targets.tolist() == [1, 7, 2]
    assert test.target_skipped.tolist() == [True, False, False]
    assert test.target_repeated.tolist() == [True, True, True]


def test_a_target_is_told_by_its_own_rows_context_its_plays_and_its_whole_session(tmp_path):
    """The context changes within a session; of a b, c d e f and a a b a third is 3 plays: a, then b c d, then e f."""
    items = {"1": "abca", "2": "cdefgg", "3": "aabeb"}
    last = {"1": ["radio", "charts", "catalog"], "2": ["catalog", "mine", "radio"], "3": ["radio", "radio", "charts"]}
    rows = [
        log_row(session, i + 1, len(played), item, context=(["radio"] * (len(played) - 3) + last[session])[i])
        for session, played in items.items()
        for i, item in enumerate(played)
    ]
    prepare_logs([write_log(tmp_path / "log.csv", rows)], tmp_path / "data", config=CONFIG, progress=False)
    dataset = load_dataset(tmp_path / "data")
    thirds = {"a": 0, "b": 1, "c": 1, "d": 1, "e": 2, "f": 2, "g": 2}
    for split, back in (("val", -2), ("test", -1)):
        asked = held_out(dataset, split)
        assert [dataset.context_names[i] for i in asked.target_context] == [last[session][back] for session in items]
        assert asked.target_third.tolist() == [thirds[session[back]] for session in items.values()]
        assert asked.session_lengths.tolist() == [4, 6, 5]


def test_some_sessions_are_those_rows_of_every_part(dataset):
    """By a slice and by numbers."""
    prefix = training_prefix(dataset)
    for rows in (slice(1, 3), torch.tensor([2, 0])):
        for field in dataclasses.fields(prefix):
            assert torch.equal(getattr(prefix.of(rows), field.name), getattr(prefix, field.name)[rows])


def test_held_out_rows_do_not_reach_the_training_prefix(tmp_path, folder, dataset):
    """Other items of the same catalogue and flipped flags in the last two rows leave prefix and plays as they are."""
    rows = log_session("1", list("abgg"), [0, 2, 3, 0])
    rows += log_session("2", list("cdefca"), [3, 1, 0, 2, 0, 3], context="charts")
    rows += log_session("3", list("aabeb"), [2, 0, 3, 3, 2])
    prepare_logs([write_log(tmp_path / "edited.csv", rows)], tmp_path / "edited", config=CONFIG, progress=False)
    edited = load_dataset(tmp_path / "edited")
    for name in ("items", "skipped", "lengths"):
        assert torch.equal(getattr(training_prefix(edited), name), getattr(training_prefix(dataset), name))
        assert torch.equal(
            getattr(held_out(edited, "val").inputs, name), getattr(held_out(dataset, "val").inputs, name)
        )
    assert torch.equal(edited.plays, dataset.plays)
    assert edited.digest != dataset.digest
    assert not torch.equal(held_out(edited, "test").targets, held_out(dataset, "test").targets)


def test_parts_move_to_a_device_whole(dataset):
    moved = held_out(dataset, "test").to("meta")
    assert {moved.targets.device.type, moved.inputs.items.device.type, moved.target_repeated.device.type} == {"meta"}
    assert training_prefix(dataset).to("meta").skipped.device.type == "meta"


def test_a_width_is_that_of_the_settings_even_if_no_session_is_as_long(tmp_path):
    log = write_log(tmp_path / "log.csv", log_session("1", list("abcd")))
    prepare_logs([log], tmp_path / "data", config=CONFIG, progress=False)
    dataset = load_dataset(tmp_path / "data")
    assert dataset.items.shape == (1, 6)
    assert training_prefix(dataset).items.shape == (1, 4)
    assert held_out(dataset, "test").inputs.items.shape == (1, 5)


def rewrite(folder: Path, name: str, change) -> None:
    """Change one table of a dataset folder as rows of Python values."""
    path = folder / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sessions", lambda rows: rows[1]["items"].__setitem__(0, 4)),
        ("sessions", lambda rows: rows[1]["skip_levels"].__setitem__(5, 1)),
        ("sessions", lambda rows: rows[0]["contexts"].__setitem__(3, "charts")),
        ("sessions", lambda rows: rows[0].__setitem__("session_id", "0")),
        ("sessions", lambda rows: rows[0].__setitem__("date", rows[0]["date"].replace(day=1))),
        ("sessions", lambda rows: rows.reverse()),
        ("sessions", lambda rows: rows[2]["skip_levels"].pop()),
        ("items", lambda rows: rows[0].__setitem__("item_id", "A")),
        ("items", lambda rows: rows[0].__setitem__("plays", 4)),
        ("items", lambda rows: rows.reverse()),
    ],
)
def test_a_table_that_was_changed_is_refused_by_name(folder, name, change):
    rewrite(folder, name, change)
    with pytest.raises(
        DatasetError, match=rf"data/{name}\.parquet: was changed after preparing: digest \w+, expected \w+"
    ):
        load_dataset(folder)


@pytest.mark.parametrize("name", ["sessions", "items"])
def test_a_table_with_a_row_less_is_refused_with_both_counts(folder, name):
    rewrite(folder, name, lambda rows: rows.pop())
    with pytest.raises(DatasetError, match=rf"{name}\.parquet: has \d rows, expected \d by manifest\.json"):
        load_dataset(folder)


def test_a_missing_value_inside_a_list_is_refused(folder):
    rewrite(folder, "sessions", lambda rows: rows[1]["items"].__setitem__(0, None))
    with pytest.raises(DatasetError, match=r"sessions\.parquet: .*null.*; prepare the logs again"):
        load_dataset(folder)


def test_a_setting_that_was_changed_is_refused(folder):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["settings"]["skip_threshold"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=r"manifest\.json: was changed after preparing"):
        load_dataset(folder)


@pytest.mark.parametrize("name", ["sessions", "items"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text"])
def test_a_table_that_cannot_be_read_is_refused_by_name(folder, name, damage):
    path = folder / f"{name}.parquet"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"text" * 100}[damage])
    with pytest.raises(DatasetError, match=rf"{name}\.parquet: cannot be read \(.*prepare the logs again") as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)


def test_another_table_in_its_place_is_refused_with_its_columns(folder):
    shutil.copy(folder / "items.parquet", folder / "sessions.parquet")
    with pytest.raises(
        DatasetError, match=r"sessions\.parquet: has columns item_index int32, .* expected session_id string"
    ):
        load_dataset(folder)


def test_the_digest_is_of_values_and_not_of_file_bytes(folder, dataset):
    """Other compression and several row groups, each with a dictionary of its own, are the same dataset."""
    for name in ("sessions", "items"):
        path = folder / f"{name}.parquet"
        before, table = path.read_bytes(), pq.read_table(path)
        pq.write_table(table, path, compression="none", row_group_size=1)
        assert path.read_bytes() != before
    assert torch.equal(load_dataset(folder).items, dataset.items)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere/manifest\.json: cannot be read"):
        load_dataset(tmp_path / "nowhere")
