"""Held-out rows never reach training: edit them in the raw logs, and the trained weights are the same bytes."""

import csv
import gzip
from pathlib import Path

import pytest
from conftest import small_config

from skiprec.baselines import baselines
from skiprec.checkpoint import weights_digest
from skiprec.dataset import Dataset, held_out, load_dataset, training_prefix
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from skiprec.trainer import Trainer

VARIANTS = {
    "S-": {"alpha": 0.0},
    "S+ session": {"context": "session"},
    "S+ item": {"context": "item"},
    "bidirectional": {"architecture": "bidirectional", "context": "session"},
    "bidirectional visible": {"architecture": "bidirectional", "context": "item", "visible_positive": True},
    "other session": {"negative_scope": "other_session"},
    "random": {"negative_scope": "random"},
    "popular": {"negative_scope": "popular"},
    "in batch": {"negative_scope": "in_batch"},
    "skip input": {"skip_input": True},
    "skip input, bidirectional": {"skip_input": True, "architecture": "bidirectional"},
    "threshold": {"skip_threshold": 1},
    "skipped targets left out": {"skipped_target_weight": 0.0},
    "whole catalogue": {"negatives": "full"},
    "batch negatives": {"negatives": "batch"},
}

LEVELS = [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 1, 0), (1, 1, 1, 0)]
FLAGS = ("skip_1", "skip_2", "skip_3", "not_skipped")


def read_log(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def prepared(rows: list[dict[str, str]], folder: Path) -> Dataset:
    """The dataset of these rows."""
    folder.mkdir()
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    prepare_logs([folder / "log.csv"], folder / "data", progress=False)
    return load_dataset(folder / "data")


def is_held_out(row: dict[str, str]) -> bool:
    return int(row["session_position"]) > int(row["session_length"]) - 2


def flipped(row: dict[str, str]) -> dict[str, str]:
    """Skipped where it was heard, heard where it was skipped."""
    flags = LEVELS[0] if row["skip_2"] == "True" else LEVELS[3]
    return row | dict(zip(FLAGS, (str(bool(flag)) for flag in flags), strict=True))


def edited_held_out(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Held-out rows get the item of the next session's, and the opposite flag: the catalogue stays what it is."""
    held = [i for i, row in enumerate(rows) if is_held_out(row)]
    items = [rows[i]["track_id_clean"] for i in held]
    edited = list(rows)
    for i, item in zip(held, items[2:] + items[:2], strict=True):
        edited[i] = flipped(rows[i] | {"track_id_clean": item})
    return edited


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("leak")
    (path,) = synthesize_logs(folder / "logs", sessions=150, items=200, seed=4, progress=False)
    return read_log(path)


@pytest.fixture(scope="module")
def original(rows, tmp_path_factory) -> Dataset:
    return prepared(rows, tmp_path_factory.mktemp("original") / "d")


@pytest.fixture(scope="module")
def edited(rows, tmp_path_factory) -> Dataset:
    return prepared(edited_held_out(rows), tmp_path_factory.mktemp("edited") / "d")


def trained(dataset: Dataset, **changes) -> tuple[str, dict[str, float]]:
    """The digest of the weights after one epoch, and its metrics."""
    trainer = Trainer(dataset, small_config(max_epochs=1, patience=0, **changes), show_progress=False)
    (result,) = trainer.epochs()
    return weights_digest(trainer.model.state_dict()), result.metrics


def test_the_edit_is_of_every_held_out_row_and_of_no_other(original, edited):
    before, after = training_prefix(original), training_prefix(edited)
    assert before.items.equal(after.items)
    assert before.skipped.equal(after.skipped)
    assert original.item_ids() == edited.item_ids()
    assert original.plays.equal(edited.plays)
    assert original.digest != edited.digest
    for split in ("val", "test"):
        was, now = held_out(original, split), held_out(edited, split)
        assert (was.targets != now.targets).double().mean() > 0.9  # some neighbours have the same item
        assert (was.target_skipped != now.target_skipped).all()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_held_out_rows_do_not_reach_the_weights(original, edited, changes):
    weights, metrics = trained(original, **changes)
    weights_of_edited, metrics_of_edited = trained(edited, **changes)
    assert weights_of_edited == weights
    for name in ("train/loss", "train/nll", "train/nce"):
        assert metrics_of_edited[name] == metrics[name]
    assert metrics_of_edited["val/nll"] != metrics["val/nll"]  # the question is another


@pytest.mark.parametrize("what", ["item", "flag"])
def test_one_row_of_a_prefix_does_reach_the_weights(rows, original, what, tmp_path):
    """The contrast, without which equal weights would say nothing: the last prefix row of one session is changed."""
    at = next(i for i, row in enumerate(rows) if int(row["session_position"]) == int(row["session_length"]) - 2)
    other = next(row["track_id_clean"] for row in rows if row["track_id_clean"] != rows[at]["track_id_clean"])
    changed = list(rows)
    changed[at] = flipped(rows[at]) if what == "flag" else rows[at] | {"track_id_clean": other}
    dataset = prepared(changed, tmp_path / "d")
    assert dataset.n_items == original.n_items  # so that nothing but the row is another
    assert trained(dataset)[0] != trained(original)[0]


def test_held_out_rows_do_not_reach_the_baselines(original, edited):
    """Asked the same, all answer the same, though what they are asked in evaluation is another."""
    inputs = training_prefix(original)
    scorers = baselines(edited)
    for name, scorer in baselines(original).items():
        assert scorer.catalogue_scores(inputs).equal(scorers[name].catalogue_scores(inputs)), name


@pytest.mark.parametrize("name", ["most popular", "session-popular", "Markov", "item-kNN", "session-kNN"])
def test_one_row_of_a_prefix_does_reach_the_baselines(rows, original, name, tmp_path):
    """The contrast: the last prefix row of one session is changed."""
    at = next(i for i, row in enumerate(rows) if int(row["session_position"]) == int(row["session_length"]) - 2)
    other = next(row["track_id_clean"] for row in rows if row["track_id_clean"] != rows[at]["track_id_clean"])
    changed = list(rows)
    changed[at] = rows[at] | {"track_id_clean": other}
    dataset = prepared(changed, tmp_path / "d")
    assert dataset.n_items == original.n_items  # so that nothing but the row is another
    inputs = training_prefix(original)
    before, after = (baselines(d)[name].catalogue_scores(inputs)[:, 1:] for d in (original, dataset))
    assert not before.equal(after)
