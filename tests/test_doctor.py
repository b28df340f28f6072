"""What the doctor finds: all well, and each thing that can be wrong."""

import numpy
import optuna
import pytest
from mlflow import MlflowClient

from skiprec import __version__
from skiprec.dataset import load_dataset
from skiprec.errors import ConfigError
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study import doctor
from study.doctor import examine
from study.locks import make_schema
from study.storage import open_storage, open_study, places
from study.tracking import make_schema as make_tracking_schema

pytestmark = pytest.mark.slow


@pytest.fixture
def where(tmp_path):
    """Both databases, with a study on a dataset."""
    synthesize_logs(tmp_path / "logs", sessions=50, items=100, seed=1, progress=False)
    prepare_logs([tmp_path / "logs"], tmp_path / "data", progress=False)
    where = places(tmp_path / "mlruns", None, None)
    make_schema(where)
    make_tracking_schema(where)
    study = optuna.create_study(study_name="mine", storage=open_storage(where))
    dataset = load_dataset(tmp_path / "data")
    study.set_user_attr("versions", {"skiprec": __version__, "numpy": numpy.__version__, "device": "cpu"})
    study.set_user_attr("dataset", str(dataset.path.resolve()))
    study.set_user_attr("dataset_digest", dataset.digest)
    study.set_user_attr("cells", {})
    return where


def wrong(where, name=None):
    """What is not well, by name."""
    return {finding.what: finding.text for finding in examine(where, name) if not finding.is_well}


def test_a_study_in_order_has_nothing_wrong_and_its_probes_are_gone(where):
    """Every check is said; no study, run or file of its own is left to be seen."""
    findings = list(examine(where, None))
    assert [str(f).split(":")[0] for f in findings] == [
        "ok    storage", "ok    tracker", "ok    folder", "ok    versions", "ok    dataset",
    ]  # fmt: skip
    assert optuna.get_all_study_names(open_storage(where)) == ["mine"]
    assert MlflowClient(tracking_uri=where.tracking_uri).search_runs(["0"]) == []
    assert not list(where.mlruns.glob(".probe*"))


def test_before_anything_is_made_there_is_nothing_wrong(tmp_path):
    """And nothing is made."""
    where = places(tmp_path / "not" / "there", None, None)
    assert wrong(where) == {}
    (folder,) = (f for f in examine(where, None) if f.what == "folder")
    assert folder.text.startswith(f"{where.mlruns}: can be made, ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_is_to_be_is_said(tmp_path):
    """There, or on the way there."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "mlruns"):
        assert "Not a directory" in wrong(places(path, None, None))["folder"]


def test_a_study_that_is_not_there_is_said(where):
    """With those that are."""
    assert wrong(where, "no") == {"study": "no study named 'no', found mine"}


def test_a_tracker_that_does_not_answer_is_said_and_the_rest_is_tried(where, monkeypatch):
    """Nobody listens at its port."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = places(where.mlruns, None, "http://127.0.0.1:9")
    assert list(wrong(away)) == ["tracker"]
    assert wrong(away)["tracker"].startswith("http://127.0.0.1:9: ")


def test_a_database_that_is_none_is_said(where):
    """Somebody wrote over it."""
    (where.mlruns / "optuna.db").write_bytes(b"not a database, at all" * 100)
    assert "file is not a database" in wrong(where)["storage"]


def test_other_packages_and_other_data_are_said(where):
    """With what the study was made with."""
    study = open_study(where, None)
    study.set_user_attr("versions", {"skiprec": __version__, "numpy": "0.9"})
    study.set_user_attr("dataset_digest", "0" * 64)
    found = wrong(where)
    assert f"the study was made with numpy 0.9, here {numpy.__version__}" in found["versions"]
    assert "expected 00000000: no longer the data of this study" in found["dataset"]


def test_a_study_of_another_version_of_the_program_is_refused_by_name(where):
    """To whoever opens it."""
    open_study(where, None).set_user_attr("versions", {"skiprec": "0.0.1"})
    message = f"study mine was made by skiprec 0.0.1, this is {__version__}"
    with pytest.raises(ConfigError, match=message):
        open_study(where, None)
    assert wrong(where)["study"].startswith(message)


def test_too_little_room_is_said(where, monkeypatch):
    """As much as no disk has."""
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e12)
    assert wrong(where)["folder"].endswith("GB free, expected 1e+12; free space, or give another")


def test_a_clock_that_is_wrong_is_said(new_database, tmp_path, monkeypatch):
    """The database's and ours, half a minute apart."""
    where = places(tmp_path / "mlruns", new_database(), None)
    assert "clock" not in wrong(where)
    real = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() + 30)
    assert "the database's clock is -30 s from this machine's" in wrong(where)["clock"]
