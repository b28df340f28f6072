"""The best model as an MLflow model: the same scores wherever it is asked, and errors that a sender can mend."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
import yaml
from conftest import small_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.pyfunc import scoring_server
from test_recommend import scraps
from test_study import RECIPE, command, run
from test_ui import free_port

from skiprec.dataset import Sessions, load_dataset
from skiprec.errors import CheckpointError, OutputError
from skiprec.evaluation import ModelScorer
from skiprec.prepare import prepare_logs
from skiprec.recommend import Recommender, served
from skiprec.requests import Session
from skiprec.run import Run, load_model, load_recommender
from skiprec.synthetic import synthesize_logs
from study.export import CARD, PROGRAM, export_run
from study.serving import Served

pytestmark = pytest.mark.slow
KINDS = {
    "uni": {},
    "bi": {"architecture": "bidirectional"},
    "told": {"skip_input": True},
    "bi_told": {"architecture": "bidirectional", "skip_input": True, "positions": "from_start", "norm": "post"},
}
ASKED = 1000
FUZZED = int(os.environ.get("SKIPREC_FUZZED", "300"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A dataset, and a run of each kind on it with its exported model."""
    folder = tmp_path_factory.mktemp("export")
    synthesize_logs(folder / "logs", sessions=150, items=200, seed=1, progress=False)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    dataset = load_dataset(folder / "data")
    for kind, config in KINDS.items():
        own = Run(dataset, small_config(max_epochs=1, patience=0, learning_rate=0.01, **config), folder / kind)
        list(own.epochs())
        own.finish()
    # A process of its own: torch.export hands in sizes that the test run's checks of types take for no integers.
    code = f"""
from pathlib import Path
from study.export import export_run
for kind in {list(KINDS)}:
    print(*export_run(Path(kind), Path(kind + "-model"), program=True))
"""
    made = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [f"wrote {kind}-model" for kind in KINDS]
    return folder


@pytest.fixture(scope="module")
def asked(work):
    """Sessions to ask about: beginnings of the data's, of all lengths."""
    dataset = load_dataset(work / "data")
    ids, found = dataset.item_ids(), []
    for start in range(1, dataset.max_length):
        for items, levels, n in zip(
            dataset.items.tolist(), dataset.skip_levels.tolist(), dataset.lengths.tolist(), strict=True
        ):
            if start < n and len(found) < ASKED:
                found.append(Session([ids[i - 1] for i in items[:start]], levels[:start]))
    assert len(found) == ASKED
    return found


def padded(dataset, sessions):
    """Item indices, lengths and skip levels as tensors, as wide as the longest session of the data."""
    index = {item: i for i, item in enumerate(dataset.item_ids(), start=1)}
    items = torch.zeros(len(sessions), dataset.max_length, dtype=torch.long)
    levels = torch.zeros_like(items)
    for row, session in enumerate(sessions):
        items[row, : len(session.items)] = torch.tensor([index[i] for i in session.items])
        levels[row, : len(session.items)] = torch.tensor(session.skip_levels)
    return items, torch.tensor([len(s.items) for s in sessions]), levels


def frame(sessions):
    """As a table."""
    return pd.DataFrame({"items": [s.items for s in sessions], "skip_levels": [s.skip_levels for s in sessions]})


def assert_same(found, scores, ids):
    """The same 20 best, but for ties within rounding: each is worth as much as the one at its place."""
    for items, values, own in zip(found["items"], found["scores"], scores, strict=True):
        assert list(values) == pytest.approx(own.sort(descending=True).values[:20].tolist(), abs=1e-5)
        assert [own[ids[item]].item() for item in items] == pytest.approx(list(values), abs=1e-5)
        assert len(set(items)) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_sessions_have_the_same_scores_and_best_wherever_they_are_asked(work, asked, kind):
    """The trainer's scorer, the run's recommender, the exported model, MLflow's, and torch.export's program."""
    dataset = load_dataset(work / "data")
    model, _ = load_model(work / kind, dataset)
    items, lengths, levels = padded(dataset, asked)
    with torch.no_grad():
        hidden = model.next_item(items, lengths, levels)
        scores = (hidden @ model.items.weight[: model.n_items + 1].T)[:, 1:]
        candidates = ModelScorer(model).candidate_scores
        some = torch.arange(1, 11).expand(ASKED, 10)
        inputs = Sessions(items, levels.to(torch.int8), levels >= 2, lengths)
        assert torch.allclose(candidates(inputs, some), scores[:, :10], atol=1e-5)
    ids = {item: i for i, item in enumerate(dataset.item_ids())}
    for recommender in (
        load_recommender(str(work / kind)),
        Recommender.load(work / f"{kind}-model" / "data" / "model"),
    ):
        answers = recommender.recommend_many(asked, exclude="nothing")
        assert_same({"items": [a.items for a in answers], "scores": [a.scores for a in answers]}, scores, ids)
    pyfunc = mlflow.pyfunc.load_model(str(work / f"{kind}-model"))
    assert_same(pyfunc.predict(frame(asked), params={"exclude": "nothing"}), scores, ids)
    program = torch.export.load(work / f"{kind}-model" / PROGRAM).module()
    assert torch.allclose(program(items, lengths, levels), scores, atol=1e-5)


@pytest.fixture(scope="module", params=KINDS)
def server(work, request):
    """`mlflow models serve` on loopback: which kind it serves, and its address."""
    port, model = free_port(), work / f"{request.param}-model"
    process = subprocess.Popen(
        command("mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"MLFLOW_MODELS_WORKERS": "1"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield request.param, address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def post(address, body):
    """Status and answer."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_served_model_answers_as_the_loaded_one(work, asked, server):
    """Over HTTP, all thousand at once; the loaded one answers as the trainer scores, as is shown above."""
    kind, address = server
    rows = [{"items": list(s.items), "skip_levels": list(s.skip_levels)} for s in asked]
    status, answer = post(address, {"dataframe_records": rows, "params": {"exclude": "nothing", "k": 20}})
    assert status == 200
    expected = mlflow.pyfunc.load_model(str(work / f"{kind}-model")).predict(
        frame(asked), params={"exclude": "nothing"}
    )
    assert len(answer["predictions"]) == ASKED
    for found, own in zip(answer["predictions"], expected.to_dict("records"), strict=True):
        assert found["scores"] == pytest.approx(own["scores"], abs=1e-5)
        assert found["items"] == own["items"]
    example = json.loads((work / f"{kind}-model" / "serving_input_example.json").read_text())
    assert post(address, example)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"items": []}]},
        {"dataframe_records": [{"items": "a"}]},
        {"dataframe_records": [{"items": [1]}]},
        {"dataframe_records": [{"items": ["a"], "skip_levels": [9]}]},
        {"dataframe_records": [{"items": ["a"], "skip_levels": [0, 1]}]},
        {"dataframe_records": [{"other": ["a"]}]},
        {"dataframe_records": [{"items": ["a"]}], "params": {"k": 0}},
        {"dataframe_records": [{"items": ["a"]}], "params": {"exclude": "all"}},
        {"sessions": 1},
    ],
)
def test_a_served_model_answers_a_wrong_request_with_400(server, body):
    status, answer = post(server[1], body)
    assert status == 400
    assert answer["error_code"] in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


plain_scraps = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_scraps = st.recursive(
    plain_scraps,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["items", "skip_levels", "k", "x"])
columns = st.dictionaries(names, st.lists(st.text(max_size=3) | json_scraps, max_size=3) | json_scraps, max_size=3)
tables = st.lists(columns, max_size=3) | columns | json_scraps
# Names of columns that are lists or objects end in a TypeError of MLflow 3.17's own reader, before any model is asked.
split = st.fixed_dictionaries({}, optional={"columns": st.lists(names | plain_scraps), "data": tables, "index": tables})


@settings(max_examples=FUZZED, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(["dataframe_records", "dataframe_split", "inputs", "instances", "sessions"]),
    body=tables | split,
    params=st.none() | st.dictionaries(st.sampled_from(["k", "exclude", "x"]), json_scraps) | json_scraps,
)
def test_whatever_a_server_is_sent_it_answers_or_refuses_as_a_bad_request(pyfunc, form, body, params):
    """By the very function that `mlflow models serve` answers with."""
    loaded, _ = pyfunc
    text = json.dumps({form: body, "params": params})
    try:
        status = scoring_server.invocations(text, "application/json", loaded, loaded.metadata.get_input_schema()).status
    except MlflowException as error:
        status = error.get_http_status_code()
    assert status in (200, 400)


@pytest.mark.parametrize("place", ["../../elsewhere", "data/../../elsewhere/data/model", "{work}/bi"])
def test_a_model_whose_own_metadata_leads_out_of_it_is_refused(work, tmp_path, place):
    """MLmodel names the folder of the weights: by a path that climbs, or one of its own."""
    model = tmp_path / "model"
    shutil.copytree(work / "uni-model", model)
    meta = yaml.safe_load((model / "MLmodel").read_text())
    meta["flavors"]["python_function"]["data"] = place.format(work=work)
    (model / "MLmodel").write_text(yaml.safe_dump(meta))
    with pytest.raises(CheckpointError, match="MLmodel leads outside of its own folder, expected `data: data/model`"):
        mlflow.pyfunc.load_model(str(model))
    # Read without MLflow, its metadata is not looked at.
    assert served(model) == model / "data" / "model"


def test_an_exported_model_needs_nothing_that_trains_and_unpickles_nothing(work):
    """Nor anything of studies: it carries the few modules that it is loaded with, and stays as it was."""
    model = work / "uni-model"
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*.*") if "__pycache__" not in path.parts}
    code = f"""
import sys, mlflow.pyfunc
def watch(event, arguments):
    assert event != "pickle.find_class", arguments
sys.addaudithook(watch)
model = mlflow.pyfunc.load_model({str(model)!r})
model.predict(model.input_example)
import skiprec
print(skiprec.__file__, [m for m in ("optuna", "skiprec.trainer", "skiprec.prepare", "study.run") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{model / 'code' / 'skiprec' / '__init__.py'} []"
    after = {path: path.stat().st_mtime_ns for path in model.rglob("*.*") if path.suffix != ".pyc"}
    assert after == before


def test_nothing_in_an_exported_model_is_a_pickle_or_names_the_machine(work):
    """Nor does any file of it hold an id of a session."""
    model = work / "bi-model"
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".md", ".txt", ".yaml", ".json", ".py", ".safetensors", ".pt2"}
    session = pd.read_parquet(work / "data" / "sessions.parquet", columns=["session_id"])["session_id"][0]
    for path in files:
        content = path.read_bytes()
        assert session.encode() not in content
        assert str(work).encode() not in content
    card = (model / CARD).read_text()
    assert load_dataset(work / "data").digest in card
    assert "| against 1,000 drawn tracks |" in card


def test_what_cannot_be_exported_leaves_nothing(work, tmp_path):
    """A place that is taken; weights that were changed."""
    with pytest.raises(OutputError, match="already exists"):
        export_run(work / "uni", work / "bi-model")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("run.json", "metrics.json", "config.toml"):
        (run_folder / name).write_bytes((work / "uni" / name).read_bytes())
    weights = (work / "uni" / "best.safetensors").read_bytes()
    (run_folder / "best.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        export_run(run_folder, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def pyfunc(work):
    """The loaded model; and what it calls, with this process's own class."""
    loaded = mlflow.pyfunc.load_model(str(work / "uni-model"))
    return loaded, Served(Recommender.load(work / "uni-model" / "data" / "model"))


cells = st.lists(st.text(max_size=3) | scraps, max_size=3) | scraps


@settings(max_examples=FUZZED, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.fixed_dictionaries({}, optional={"items": cells, "skip_levels": cells, "x": scraps}), max_size=3),
    params=st.none() | st.fixed_dictionaries({}, optional={"k": scraps, "exclude": scraps}),
)
def test_whatever_the_loaded_model_is_asked_is_answered_or_refused_as_invalid(pyfunc, rows, params):
    """MLflow's own check of the table comes first; what passes that is ours."""
    try:
        table = pd.DataFrame(rows)
    except (ValueError, TypeError, OverflowError):
        return  # no table at all
    loaded, served = pyfunc
    assert_answered_or_invalid(lambda: loaded.predict(table, params=params), len(table))
    assert_answered_or_invalid(lambda: served.predict(table, params), len(table))


def assert_answered_or_invalid(ask, n):
    """A row a session, or the error that a server makes 400 of."""
    try:
        assert len(ask()) == n
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise


@pytest.fixture(scope="module")
def study(work):
    """A small finished study: its folder."""
    folder = work / "study"
    folder.mkdir()
    (folder / "tiny.toml").write_text(RECIPE)
    done = run(folder, "study", "run", "tiny.toml", "--data", work / "data", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_study_is_exported_and_registered(study, work):
    """Its best cell, before and after it is confirmed; every version of the registered model answers."""
    for number, name in enumerate(("first", "confirmed"), start=1):
        done = run(study, "study", "export", "--out", name, "--register", "next-track")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"wrote {name}",
            f"registered next-track, version {number}",
            f"next: skiprec recommend {name} --session ID,ID:skipped, "
            f"or mlflow models serve -m {name} --env-manager local",
        ]
        if number == 1:
            confirmed = run(study, "study", "confirm", "--device", "cpu")
            assert confirmed.returncode == 0, confirmed.stderr
    assert "is not confirmed" in (study / "first" / CARD).read_text()
    card = (study / "confirmed" / CARD).read_text()
    assert "over 5 confirming seeds" in card
    rates = next(line for line in card.splitlines() if line.startswith("| against 1,000 drawn tracks |"))
    assert re.fullmatch(r"\| against 1,000 drawn tracks \|( 0?\.\d{4} \(0?\.\d{4} to 0?\.\d{4}\) \|){4}", rates), rates
    assert "Test chose nothing" in card
    client = MlflowClient(tracking_uri=f"sqlite:///{study / 'mlruns' / 'mlflow.db'}")
    source = client.get_model_version("next-track", "2").source
    assert (Path(source.removeprefix("file://")) / "MLmodel").exists()
    ids = load_dataset(work / "data").item_ids()
    asked = run(
        study, "skiprec", "recommend", "confirmed", "--session", f"{ids[0]},{ids[1]}:skipped,{ids[1]}:skiped", "--k", 3
    )
    assert asked.returncode == 0, asked.stderr
    assert len(asked.stdout.splitlines()) == 5
    assert asked.stdout.splitlines()[-2:] == [
        f"unknown, and left out: {ids[1]}:skiped",
        "what follows a colon is part of an id, unless it is :skipped or :0 to :3",
    ]


LARGE = """
from pathlib import Path
import torch
from skiprec.errors import CheckpointError
from skiprec.model import ModelConfig, SequenceEncoder
from study.export import write_program
torch.manual_seed(1)
shape = ModelConfig(dim=512, feed_forward=512, n_layers=6, init="torch")
model = SequenceEncoder(shape, 20_000, 60).eval()
write_program(model, Path("large.pt2"), 60)
real = torch.export.export
class Other:
    def __init__(self, *arguments, **options):
        self.made = real(*arguments, **options).module()
    def module(self):
        return lambda *inputs: 1.0001 * self.made(*inputs)
torch.export.export = Other
try:
    write_program(model, Path("other.pt2"), 60)
except CheckpointError as error:
    print(error)
"""


def test_a_program_may_differ_by_rounding_and_by_no_more(tmp_path):
    """Of scores of some 40, which oneDNN and MKL round in different ways."""
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "other.pt2: torch.export's program gives other scores than the model; not written\n", (
        done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["large.pt2"]
