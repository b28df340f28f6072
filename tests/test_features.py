"""Track features: read right or refused by their row, described, and made groups of."""

import dataclasses
import gzip
import io
import math
import operator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import dataset_of
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run
from test_logs import log_session, write_log

import skiprec.logs
from skiprec.dataset import feature_differences, load_dataset
from skiprec.describe import counts, render
from skiprec.errors import DatasetError
from skiprec.evaluation import Evaluator
from skiprec.features import read_features, thirds
from skiprec.prepare import PrepareConfig, prepare_logs
from skiprec.pseudonyms import pseudonym
from skiprec.reading import Reading
from skiprec.run import ranks_table
from study.analysis._ranks import groups

SMALL = PrepareConfig(min_length=4, max_length=6)
ITEMS = pa.array(["a", "b", "c"])
HEAD = "track_id,tempo,mode,valence"


def table(path: Path, *rows: str, head: str = HEAD) -> Path:
    text = "".join(f"{row}\n" for row in (head, *rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(*paths: Path) -> dict[str, list]:
    return read_features(list(paths), ITEMS, progress=False).to_pydict()


def test_numbers_are_joined_by_track_and_texts_are_left_out(tmp_path):
    """Over two files, one packed; a track that the dataset lacks is passed over, one without values is unknown."""
    one = table(tmp_path / "tf_0.csv", "c,120.5,major,0.25", "zz,1,minor,1")
    other = table(tmp_path / "tf_1.csv.gz", "a,,minor,NA")
    assert read(one, other) == {"item_index": [1, 2, 3], "tempo": [None, None, 120.5], "valence": [None, None, 0.25]}


@pytest.mark.parametrize(
    ("rows", "head", "said"),
    [
        (["a,1,major,1", "b,fast,major,1"], HEAD, r", row 3: tempo is 'fast', expected a number as before"),
        (["a,1,major,1", "b,inf,major,1"], HEAD, r", row 3: tempo is 'inf', expected a number as before"),
        (["a,1,major,1", "b,1e39,major,1"], HEAD, r", row 3: tempo is '1e39', expected a number as before"),
        (["a,1,major,1", "b,NAN,major,1"], HEAD, r", row 3: tempo is 'NAN', expected a number as before"),
        (["a,1,major,1", "b,1,major,1", "a,2,major,2"], HEAD, r", row 4: track 'a' was there before, expected each"),
        (["a,1,1"], "id,tempo,valence", r", row 1: no column track_id or track_id_clean or item_id; found 'id', 'te"),
        (["a,1,1"], "track_id,tempo,tempo", r", row 1: column 'tempo' is there twice, expected once"),
        (["a,major"], "track_id,mode", r", row 2: no column of numbers beside track_id, expected at least one"),
        (["a,1,major"], HEAD, r", rows from 2: cannot be read \(.*\), expected a CSV table"),
        (["a,1,major,\0"], HEAD, r", row 2: holds a NUL byte, expected text"),
        (["x,1,major,1"], HEAD, r": none of the 3 tracks of the dataset is there, expected the features of the same"),
    ],
)
def test_a_wrong_table_is_refused_by_its_row(tmp_path, monkeypatch, rows, head, said):
    """Each row is a block: what holds numbers is decided by the first."""
    monkeypatch.setattr(skiprec.logs, "BLOCK_BYTES", 1)
    monkeypatch.setattr(skiprec.logs, "READ_BYTES", 12)
    path = table(tmp_path / "tf.csv", *rows, head=head)
    with pytest.raises(DatasetError, match=rf"^{path}{said}"):
        read(path)


def logs(folder: Path) -> Path:
    """Tracks a to h; the later in the alphabet, the more are skipped."""
    rows = [row for s in range(6) for row in log_session(f"s{s}", list("abcdefgh")[s % 3 :][:5], [0, 0, 2, 2, 2])]
    return write_log(folder / "log.csv", rows)


def features(folder: Path) -> Path:
    return table(folder / "tf.csv", *(f"{t},{60 + 10 * i},major,{(i * 5) % 8}" for i, t in enumerate("abcdefgh")))


def test_features_are_kept_beside_the_dataset_and_change_nothing_of_it(tmp_path):
    log, tf = logs(tmp_path), features(tmp_path)
    plain = prepare_logs([log], tmp_path / "plain", config=SMALL, progress=False)
    with_features = prepare_logs([log], tmp_path / "data", config=SMALL, features=[tf], progress=False)
    assert with_features.digest == plain.digest
    assert not (tmp_path / "plain" / "features.parquet").exists()
    dataset = load_dataset(tmp_path / "data")
    assert list(dataset.features) == ["tempo", "valence"]
    assert dataset.features["tempo"][1:].tolist() == [60 + 10 * i for i in range(7)]  # h is in no session
    assert math.isnan(dataset.features["tempo"][0])


def test_changed_features_are_refused(tmp_path):
    prepare_logs([logs(tmp_path)], tmp_path / "data", config=SMALL, features=[features(tmp_path)], progress=False)
    path = tmp_path / "data" / "features.parquet"
    values = pq.read_table(path).to_pydict()
    values["tempo"][0] += 1
    pq.write_table(
        pa.table({k: pa.array(v, pa.int32() if k == "item_index" else pa.float32()) for k, v in values.items()}), path
    )
    with pytest.raises(DatasetError, match=r"features\.parquet: was changed after preparing; prepare the logs again"):
        load_dataset(tmp_path / "data")
    path.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"features\.parquet: cannot be read \(.*\); prepare the logs again"):
        load_dataset(tmp_path / "data")


def test_pseudonymised_tracks_keep_their_features(tmp_path):
    reading = Reading(key=b"0" * 16, hash_items=True)
    out = tmp_path / "data"
    prepare_logs([logs(tmp_path)], out, config=SMALL, reading=reading, features=[features(tmp_path)], progress=False)
    dataset = load_dataset(out)
    tempo = dict(zip(dataset.item_ids(), dataset.features["tempo"][1:].tolist(), strict=True))
    assert tempo[pseudonym("c", b"0" * 16, "item")] == 80


def test_the_description_says_how_features_go_with_skips(tmp_path):
    """Means over plays by pandas; the one that tells most comes first."""
    out = tmp_path / "data"
    prepare_logs([logs(tmp_path)], out, config=SMALL, features=[features(tmp_path)], progress=False)
    dataset = load_dataset(out)
    rows = [
        (item, level >= 2)
        for items, levels, n in zip(dataset.items.tolist(), dataset.skip_levels.tolist(), dataset.lengths, strict=True)
        for item, level in zip(items[: n - 2], levels[: n - 2], strict=True)
    ]
    plays = pd.DataFrame(rows, columns=["item", "skipped"])
    expected = {}
    for name in ("tempo", "valence"):
        plays[name] = [float(dataset.features[name][item]) for item in plays["item"]]
        means = plays.groupby("skipped")[name].mean()
        expected[name] = (means[True] - means[False]) / plays[name].std(ddof=0)
    found = counts(dataset)["features"]
    assert {name: f["difference"] for name, f in found.items()} == pytest.approx(expected)
    assert list(found) == sorted(expected, key=lambda name: -abs(expected[name]))
    assert {f["known"] for f in found.values()} == {1.0}
    assert "track features: known of, mean over skipped plays less heard ones" in render(counts(dataset))


@given(st.lists(st.one_of(st.just(math.nan), st.integers(-5, 5).map(float)), min_size=1, max_size=30))
def test_thirds_go_by_value(values):
    """Equal values are together, larger ones never in a lower third, and what is not known in none."""
    found = thirds(np.array(values, dtype=np.float32))
    assert [third == -1 for third in found] == [math.isnan(value) for value in values]
    known = sorted((value, third) for value, third in zip(values, found.tolist(), strict=True) if third >= 0)
    assert [third for _, third in known] == sorted(third for _, third in known)
    assert len({value for value, _ in known}) == len(set(known))
    for value in {value for value, _ in known}:
        less, equal = (sum(op(other, value) for other, _ in known) for op in (operator.lt, operator.eq))
        assert dict(known)[value] == min(2, int(3 * Fraction(2 * less + equal, 2 * len(known))))
    different = [value for value, _ in known]
    if len(different) == len(set(different)) and len(different) % 3 == 0:
        assert [[third for _, third in known].count(i) for i in range(3)] == [len(known) // 3] * 3


def test_targets_are_divided_by_thirds_of_their_features():
    sessions = [[1, 2, 3, i, j] for i in range(4, 7) for j in range(7, 10)]
    own = {"tempo": np.array([np.nan, *range(1, 10)], dtype=np.float32)}
    levels = [[0, 2, 0, 0, 0]] * len(sessions)
    dataset = dataclasses.replace(dataset_of(sessions, levels, n_items=9), features=own)
    assert list(feature_differences(dataset)) == ["tempo"]
    masks = Evaluator(dataset, "val", n_candidates=2).finer_groups()
    assert masks["feature/tempo/middle/"].tolist() == [True] * 9  # items 4 to 6
    assert not masks["feature/tempo/low/"].any()
    test = Evaluator(dataset, "test", n_candidates=2)
    assert test.finer_groups()["feature/tempo/high/"].all()  # items 7 to 9
    ranks = {measure: torch.ones(9) for measure in ("sampled", "full", "full_new")}
    assert pq.read_table(io.BytesIO(ranks_table(test, ranks)))["feature tempo"].to_pylist() == [2] * 9


def test_a_report_has_groups_by_the_three_features_that_tell_most():
    n = 6
    sessions = pd.DataFrame(
        {"skipped": [True, False] * 3, "repeated": [False] * n, "context": ["radio"] * n, "popularity": [0, 1, 2] * 2}
        | {"length": [5] * n}
        | {f"feature {name}": np.array([0, 1, 2, -1, 0, 1], dtype=np.int8) for name in "wxyz"}
    )
    found = [(grouping, group, members.sum()) for grouping, group, members in groups(sessions)]
    assert ("track's w", "low third", 2) in found
    assert ("track's y", "high third", 1) in found
    assert not [grouping for grouping, *_ in found if grouping == "track's z"]


@pytest.mark.slow
def test_from_features_to_groups_by_the_commands(tmp_path):
    rows = [
        row
        for s in range(60)
        for row in log_session(f"s{s:02}", [f"t{(7 * s + 3 * i) % 50}" for i in range(8)], [0, 2] * 4)
    ]
    write_log(tmp_path / "log.csv", rows)
    table(tmp_path / "tf.csv", *(f"t{i},{i},minor,{i % 7}" for i in range(50)))
    prepared = run(
        tmp_path, "skiprec", "prepare", "log.csv", "--out", "data", "--min-length", "4", "--features", "tf*.csv"
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "track features: added" in prepared.stdout
    described = run(tmp_path, "skiprec", "describe", "data")
    assert "  tempo " in described.stdout
    trained = run(
        tmp_path,
        "skiprec",
        "train",
        "data",
        "--out",
        "run",
        *(f"--set={s}" for s in ("dim=8", "n_heads=2", "n_negatives=4", "max_epochs=1", "patience=0")),
    )
    assert trained.returncode == 0, trained.stderr
    shown = run(tmp_path, "skiprec", "evaluate", "run")
    assert "/feature/tempo/low/full_hr_at_10" in shown.stdout
