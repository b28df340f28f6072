"""A run's folder: what is in it, and that an interrupted run ends as the uninterrupted one."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import dataset_of, small_config

import skiprec.evaluation
from skiprec.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from skiprec.config import flatten, resolve
from skiprec.errors import CheckpointError, ConfigError, TrainingStopped
from skiprec.evaluation import Evaluator, ModelScorer
from skiprec.run import BEST, CONFIG, HISTORY, METRICS, RECORD, RESUME, Run, load_model, read_record
from skiprec.trainer import SELECTED_BY

CONFIGURED = small_config(max_epochs=4, patience=3)
STEPS = 4  # 120 sessions in batches of 32


class Listing:
    """A tracker that keeps a list of all that it is told."""

    def __init__(self) -> None:
        self.told = []

    def log_params(self, params) -> None:
        self.told.append(("params", dict(params)))

    def log_metrics(self, metrics, *, epoch) -> None:
        self.told.append((epoch, dict(metrics)))

    def log_artifact(self, path) -> None:
        self.told.append(("artifact", path.name))


def make(dataset, folder, config=CONFIGURED, **options) -> Run:
    return Run(dataset, config, folder, show_progress=False, **options)


def train(dataset, folder, **options) -> Run:
    run = make(dataset, folder, **options)
    for _ in run.epochs():
        pass
    run.finish()
    return run


def history(folder) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    return [(line["epoch"], line["metrics"], line["is_best"]) for line in lines]  # seconds differ


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    train(dataset, folder)
    return folder


def stop_after(steps: int):
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) > steps

    return should_stop


def assert_same(folder, whole) -> None:
    assert history(folder) == history(whole)
    for name in (BEST, METRICS, CONFIG):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = read_record(folder), read_record(whole)
    assert ours["weights"] == theirs["weights"]
    assert ours["chosen_epoch"] == theirs["chosen_epoch"]


def test_the_folder_holds_the_run(dataset, whole):
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        [CONFIG, HISTORY, BEST, RESUME, METRICS, RECORD, "ranks_val.parquet"]
    )
    assert resolve(None, whole / CONFIG, []) == CONFIGURED
    assert [epoch for epoch, _, _ in history(whole)] == [1, 2, 3, 4]
    values = {epoch: metrics[SELECTED_BY] for epoch, metrics, _ in history(whole)}
    metrics = json.loads((whole / METRICS).read_text())
    assert metrics["val/hr_at_10"] == max(values.values()) == values[metrics["epoch"]]
    assert {"val/full_hr_at_10", "val/full_new_hr_at_10", "val/heard/hr_at_10", "train/loss"} <= metrics.keys()
    record = read_record(whole)
    assert record["config"] == flatten(CONFIGURED)
    assert record["dataset_digest"] == dataset.digest
    assert record["dataset"] == str(dataset.path.resolve())
    assert (record["epochs"], record["chosen_epoch"]) == (4, metrics["epoch"])
    tensors, about = load_checkpoint(whole / BEST, dataset_digest=dataset.digest)
    assert record["weights"] == weights_digest(tensors)
    assert about["epoch"] == metrics["epoch"]
    for name in ("train_seconds", "eval_seconds", "full_eval_seconds", "save_seconds"):
        assert record[name] > 0, name
    assert record["environment"]["device"] == "cpu"


@pytest.mark.parametrize("steps", [2, 2 * STEPS + 2, 3 * STEPS])
def test_an_interrupted_run_that_goes_on_is_the_uninterrupted_one(dataset, whole, tmp_path, steps):
    """Stopped in its first epoch, in the middle of its third, and before the first step of its fourth."""
    folder = tmp_path / "run"
    run = make(dataset, folder, should_stop=stop_after(steps))
    with pytest.raises(TrainingStopped):
        list(run.epochs())
    done = steps // STEPS
    assert len(history(folder)) == done
    assert not (folder / METRICS).exists()
    again = make(dataset, folder)
    assert again.resumed_from == done
    assert [r.epoch for r in again.epochs()] == list(range(done + 1, 5))
    again.finish()
    assert_same(folder, whole)


def test_a_run_may_be_stopped_at_every_epoch(dataset, whole, tmp_path):
    folder = tmp_path / "run"
    for _ in range(4):
        for _ in make(dataset, folder).epochs():
            break
    make(dataset, folder).finish()
    assert_same(folder, whole)


def test_history_beyond_the_resume_point_is_cut(dataset, whole, tmp_path):
    """Interrupted between writing the history of epoch 3 and its resume point, so that epoch 3 is run again."""
    folder = tmp_path / "run"
    for result in make(dataset, folder).epochs():
        if result.epoch == 2:
            shutil.copy(folder / RESUME, tmp_path / "earlier")
        if result.epoch == 3:
            break
    shutil.copy(tmp_path / "earlier", folder / RESUME)
    assert len(history(folder)) == 3
    run = make(dataset, folder)
    assert len(run.history) == 2
    assert [r.epoch for r in run.epochs()] == [3, 4]
    run.finish()
    assert_same(folder, whole)


def test_a_finished_run_has_nothing_left_to_do(dataset, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    run = make(dataset, folder)
    assert list(run.epochs()) == []
    run.finish()
    assert_same(folder, whole)


def test_going_on_with_other_settings_is_refused(dataset, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        make(dataset, folder, config=small_config(max_epochs=4, patience=3, learning_rate=0.02, alpha=0.25))
    assert str(caught.value) == (
        f"{folder / RESUME}: made with other settings: alpha was 0.5, now 0.25, learning_rate was 0.01, now 0.02"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_setting_that_came_after_a_resume_point_was_at_its_default(dataset, whole, tmp_path):
    """What it was made with does not name it; another value than the default is refused as ever."""
    folder = shutil.copytree(whole, tmp_path / "run")
    tensors, about = load_checkpoint(folder / RESUME)
    del about["config"]["precision"]
    save_checkpoint(folder / RESUME, tensors, about)
    run = make(dataset, folder)
    run.finish()
    assert_same(folder, whole)
    with pytest.raises(CheckpointError, match=r"precision was float32, now bfloat16$"):
        make(dataset, folder, config=small_config(max_epochs=4, patience=3, precision="bfloat16"))


def test_going_on_with_other_data_is_refused(dataset, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    digests = dataset.manifest.digests | {"dataset": "0123456789abcdef"}
    other = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, digests=digests))
    with pytest.raises(CheckpointError, match=rf"made from the dataset {dataset.digest[:8]}, expected 01234567; "):
        make(other, folder)


def test_a_damaged_resume_point_is_refused_by_name(dataset, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    content = bytearray((folder / RESUME).read_bytes())
    content[-9] ^= 1
    (folder / RESUME).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resume\.safetensors: damaged"):
        make(dataset, folder)


# Taken as it is, a history that lacks epochs would make a record that lacks them too.
@pytest.mark.parametrize("text", [None, "", '{"epoch": 1, "metr'], ids=["missing", "empty", "cut"])
def test_a_history_that_lacks_epochs_of_the_resume_point_is_refused_by_name(dataset, whole, tmp_path, text):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / HISTORY).unlink()
    if text is not None:
        (folder / HISTORY).write_text(text)
    with pytest.raises(CheckpointError, match=r"history\.jsonl: "):
        make(dataset, folder)


def test_best_is_the_best_epochs_weights_and_not_the_lasts(dataset, tmp_path):
    class Falling(Evaluator):
        def sampled(self, scorer):
            return {SELECTED_BY: next(values)}

    folder, values = tmp_path / "run", iter([0.2, 0.5, 0.4, 0.3])
    run = make(dataset, folder, evaluators={"val": Falling(dataset, "val")})
    ends = [weights_digest(run.trainer.model.state_dict()) for _ in run.epochs()]
    assert len(set(ends)) == 4
    metrics = run.finish()
    tensors, about = load_checkpoint(folder / BEST, dataset_digest=dataset.digest)
    assert weights_digest(tensors) == ends[1] == read_record(folder)["weights"]
    assert about["epoch"] == 2
    assert metrics[SELECTED_BY] == 0.5
    assert json.loads((folder / METRICS).read_text()) == {"epoch": 2, **metrics}
    assert weights_digest(run.trainer.model.state_dict()) == ends[1]  # finish went back to the chosen epoch


def test_the_tracker_is_told_each_epoch_once(dataset, whole, tmp_path):
    tracker = Listing()
    run = train(dataset, tmp_path / "run", tracker=tracker)
    assert tracker.told[0] == ("params", flatten(CONFIGURED))
    assert tracker.told[1:5] == [(epoch, metrics) for epoch, metrics, _ in history(whole)]
    chosen, full = tracker.told[5]
    assert chosen == run.trainer.best_epoch
    assert full.keys() >= {"val/full_hr_at_10", "val/full_new_hr_at_10"}
    assert not full.keys() & tracker.told[1][1].keys()  # so that no metric is told twice
    assert tracker.told[6:] == [("artifact", name) for name in (CONFIG, BEST, METRICS, RECORD, "ranks_val.parquet")]


def test_the_tracker_of_a_resumed_run_is_told_the_earlier_epochs_first(dataset, whole, tmp_path):
    folder = tmp_path / "run"
    for result in make(dataset, folder).epochs():
        if result.epoch == 2:
            break
    tracker = Listing()
    list(make(dataset, folder, tracker=tracker).epochs())
    assert [name for name, _ in tracker.told] == ["params", 1, 2, 3, 4]
    assert tracker.told[1:] == [(epoch, metrics) for epoch, metrics, _ in history(whole)]


def test_a_new_run_leaves_no_folder_when_it_cannot_start(dataset, tmp_path):
    """Bad settings and data are found before anything is written."""
    with pytest.raises(ConfigError, match="so there may be nothing to draw"):
        make(dataset_of([[1, 2, 3, 4]], n_items=4), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_scores_as_the_run_did(dataset, whole):
    model, about = load_model(whole, dataset)
    assert not model.training
    assert about["config"] == flatten(CONFIGURED)
    with torch.no_grad():
        metrics = Evaluator(dataset, "val").sampled(ModelScorer(model))
    expected = json.loads((whole / METRICS).read_text())
    assert metrics == {name: expected[name] for name in metrics}


def test_a_folder_without_a_finished_run_says_so(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_record(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no readable run.json, expected the folder of a finished `skiprec train`"


def test_ranks_and_groups_of_every_target_are_kept_by_session(dataset, whole):
    """As the evaluator says them, in the dataset's order; validation alone, unless test is asked for."""
    assert not (whole / "ranks_test.parquet").exists()
    model, _ = load_model(whole, dataset)
    evaluator = Evaluator(dataset, "val")
    with torch.no_grad():
        ranks = evaluator.ranks(ModelScorer(model))
    table = pd.read_parquet(whole / "ranks_val.parquet")
    for measure, rank in ranks.items():
        assert np.array_equal(table[measure].to_numpy(), rank.numpy().astype(np.float32), equal_nan=True)
    rows = pq.read_table(dataset.path / "sessions.parquet")
    assert table["context"].tolist() == [contexts[-2] for contexts in rows["contexts"].to_pylist()]
    assert table["length"].tolist() == [len(items) for items in rows["items"].to_pylist()]
    assert table["skipped"].tolist() == [levels[-2] >= 2 for levels in rows["skip_levels"].to_pylist()]
    assert table["repeated"].tolist() == [items[-2] in items[:-2] for items in rows["items"].to_pylist()]
    assert table["popularity"].tolist() == evaluator.questions.target_third.tolist()
    assert table.columns.tolist() == [*ranks, "skipped", "repeated", "context", "popularity", "length"]
    assert table.dtypes.tolist() == ["float32"] * 3 + ["bool"] * 2 + ["category", "int8", "int32"]


def test_a_run_is_measured_on_test_when_that_is_asked_for_and_not_before(dataset, tmp_path, monkeypatch):
    """At the chosen epoch, with the tracker told; validation is what it was."""
    asked = []
    real = skiprec.evaluation.held_out
    monkeypatch.setattr(skiprec.evaluation, "held_out", lambda d, split: asked.append(split) or real(d, split))
    tracker = Listing()
    run = make(dataset, tmp_path / "run", tracker=tracker)
    for _ in run.epochs():
        assert asked == ["val"]
    metrics = run.finish(("val", "test"))
    assert asked == ["val", "test"]
    model, _ = load_model(tmp_path / "run", dataset)
    with torch.no_grad():
        ranks = Evaluator(dataset, "test").ranks(ModelScorer(model))
    assert metrics.keys() >= {"test/nll", "test/skip_gap", "test/popularity/last/full_new_count"}
    assert metrics["test/hr_at_10"] == (ranks["sampled"] <= 10).double().mean().item()
    assert json.loads((tmp_path / "run" / METRICS).read_text())["test/hr_at_10"] == metrics["test/hr_at_10"]
    assert pd.read_parquet(tmp_path / "run" / "ranks_test.parquet")["sampled"].tolist() == ranks["sampled"].tolist()
    told = dict(tracker.told)  # of each epoch what was said last
    assert told[run.trainer.best_epoch]["test/hr_at_10"] == metrics["test/hr_at_10"]
    assert ("artifact", "ranks_test.parquet") in tracker.told


def test_evaluators_that_are_handed_in_are_asked_and_none_is_made(dataset, tmp_path, monkeypatch):
    """Candidates are drawn once for all runs of a worker."""
    evaluators = {split: Evaluator(dataset, split) for split in ("val", "test")}
    monkeypatch.setattr(skiprec.evaluation, "draw_candidates", lambda *args: pytest.fail("drawn again"))
    run = make(dataset, tmp_path / "run", evaluators=evaluators)
    for _ in run.epochs():
        pass
    metrics = run.finish(("val", "test"))
    with torch.no_grad():
        expected, _ = evaluators["test"].measure(ModelScorer(run.trainer.model))
    assert expected.items() <= metrics.items()


def test_a_run_of_heard_targets_asks_about_no_others(dataset, tmp_path):
    """On every split, at each epoch and at the chosen one."""
    run = make(dataset, tmp_path / "run", dataclasses.replace(CONFIGURED, only_targets="heard"))
    for result in run.epochs():
        assert result.metrics["val/skipped/count"] == 0
    metrics = run.finish(("val", "test"))
    for split in ("val", "test"):
        table = pd.read_parquet(tmp_path / "run" / f"ranks_{split}.parquet")
        assert 0 < table["skipped"].sum() < len(table)
        assert table["sampled"].isna().tolist() == table["skipped"].tolist()
        assert metrics[f"{split}/count"] == metrics[f"{split}/full_count"] == (~table["skipped"]).sum()
