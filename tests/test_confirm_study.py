"""Confirming runs from end to end: a real study, real workers, what is kept, and what is refused."""

import itertools
import json
import re

import pytest
from mlflow import MlflowClient
from test_study import RECIPE, data, runs  # noqa: F401  the fixture is used by name

from skiprec.errors import StudyError
from study.analysis import done_cells
from study.confirm import FEWEST_SEEDS, FIRST_SEED, confirm, finalists, planned_seeds
from study.run import launch
from study.statistics import seeds_needed
from study.storage import open_study, places
from study.tracking import read_ranks

pytestmark = pytest.mark.slow
SEARCH = RECIPE.replace('sampler = "exhaustive"', 'sampler = "exhaustive"\nseeds = [1, 2]')


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory, data):  # noqa: F811
    """A study with a repeat of every cell, and its confirming runs over five seeds."""
    folder = tmp_path_factory.mktemp("confirmed")
    (folder / "tiny.toml").write_text(SEARCH)
    options = {"workers": 2, "show_progress": False, "device": "cpu"}
    handle = launch(str(folder / "tiny.toml"), data, mlruns=folder / "mlruns", **options)
    where = places(folder / "mlruns", None, None)
    return folder, handle, confirm(where, None, seeds=None, **options | {"workers": 1, "trials_per_device": 2})


def test_every_arm_is_run_with_the_same_fresh_seeds_and_measured_on_test(confirmed):
    """Two arms, five pairs; the search has no test figure, and no seed in common with them."""
    _, handle, confirming = confirmed
    assert confirming.name == f"{handle.name}-confirm"
    trials = confirming.study.get_trials()
    pairs = sorted((t.user_attrs["seed"], t.user_attrs["arm"]) for t in trials)
    assert pairs == [(FIRST_SEED + i, arm) for i in range(5) for arm in ("S+", "S-")]
    assert all("test/hr_at_10" in t.user_attrs["result"]["metrics"] for t in trials)
    assert confirming.study.user_attrs["workers"] == 2  # two trials at once, in one process
    spans = sorted((t.datetime_start, t.datetime_complete) for t in trials)
    assert any(second[0] < first[1] for first, second in itertools.pairwise(spans))
    searched = handle.study.get_trials()
    assert not any(name.startswith("test/") for t in searched for name in t.user_attrs["result"]["metrics"])
    assert {t.user_attrs["seed"] for t in searched}.isdisjoint(seed for seed, _ in pairs)


def test_the_settings_are_those_of_the_best_mean_over_repeats(confirmed):
    """Two seeds of each learning rate; the better mean of the two is the arm's."""
    _, handle, confirming = confirmed
    values = {}
    for trial in handle.study.get_trials():
        config = trial.user_attrs["config"]
        values.setdefault((trial.user_attrs["arm"], config["learning_rate"]), []).append(trial.value)
    for arm in ("S-", "S+"):
        best = max((sum(v), rate) for (a, rate), v in values.items() if a == arm)[1]
        used = {t.user_attrs["config"]["learning_rate"] for t in confirming.study.get_trials()
                if t.user_attrs["arm"] == arm}  # fmt: skip
        assert used == {best}


def test_the_tracker_has_the_ranks_and_one_experiment_for_both(confirmed):
    """Rank by rank the metric that the run shows; both parents side by side."""
    folder, handle, confirming = confirmed
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    assert confirming.study.user_attrs["experiment_id"] == handle.study.user_attrs["experiment_id"]
    assert confirming.study.user_attrs["parent_run"] != handle.study.user_attrs["parent_run"]
    for trial in confirming.study.get_trials():
        table = read_ranks(client, trial.user_attrs["run_id"], "test")
        metrics = trial.user_attrs["result"]["metrics"]
        assert (table["sampled"] <= 10).mean() == pytest.approx(metrics["test/hr_at_10"])
        assert (table["full_new"].dropna() <= 10).mean() == pytest.approx(metrics["test/full_new_hr_at_10"])
        assert (table["sampled"][table["skipped"]] <= 10).mean() == pytest.approx(metrics["test/skipped/hr_at_10"])
    assert len(runs(folder)) == 8 + 10


def test_confirming_again_changes_nothing_and_other_seeds_are_refused(confirmed):
    """Test is read once: more seeds after it was read would be chosen by it."""
    folder, handle, confirming = confirmed
    options = {"workers": 1, "show_progress": False, "device": "cpu"}
    assert confirm(handle.where, handle.name, seeds=None, **options).name == confirming.name
    assert len(runs(folder)) == 8 + 10
    with pytest.raises(StudyError, match="is being confirmed with 5 seeds, not 9: test is read once"):
        confirm(handle.where, handle.name, seeds=9, **options)
    with pytest.raises(StudyError, match=r"is being confirmed with 5 seeds, not \d+: test is read once"):
        confirm(handle.where, handle.name, seeds=None, detect=0.03, **options)
    assert len(runs(folder)) == 8 + 10
    with pytest.raises(StudyError, match="--seeds is 4, expected at least 5"):
        confirm(handle.where, handle.name, seeds=4, **options)


def test_the_seeds_planned_are_those_that_the_noise_of_repeats_and_finalists_asks_for(confirmed):
    """By loops over the validation ranks of the runs that the search made: four pairs of repeats, one claim."""
    _, handle, _ = confirmed
    study = open_study(handle.where, handle.name)
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    cells = done_cells(study.get_trials())
    chosen = finalists(cells, ["S-", "S+"])
    hits = {c.id: (read_ranks(client, c.run_id, "val")["sampled"] <= 10).astype(int).tolist() for c in cells}

    def spread(ours, other):
        """Variance of the difference over sessions, and its mean."""
        d = [a - b for a, b in zip(hits[ours.id], hits[other.id], strict=True)]
        mean = sum(d) / len(d)
        return sum((x - mean) ** 2 for x in d) / (len(d) - 1), mean

    pairs = [
        (one, two)
        for one, two in itertools.combinations(cells, 2)
        if {k: v for k, v in one.config.items() if k != "seed"} == {k: v for k, v in two.config.items() if k != "seed"}
    ]
    assert len(pairs) == 4
    n = len(hits[cells[0].id])
    rest = sum(spread(*pair)[0] for pair in pairs) / 4
    seeds = sum(spread(*pair)[1] ** 2 for pair in pairs) / 4 - rest / n
    sessions = spread(chosen["S+"], chosen["S-"])[0] - rest
    noise = {"seed_sd": max(0, seeds) ** 0.5, "session_sd": max(0, sessions) ** 0.5, "residual_sd": rest**0.5}
    planned = {d: planned_seeds(handle.where, study, chosen, d) for d in (0.3, 0.1, 0.05)}
    expected = {d: seeds_needed(d, **noise, n_sessions=n) for d in planned}
    assert planned == {d: max(FEWEST_SEEDS, k) for d, k in expected.items()}
    assert max(planned.values()) > FEWEST_SEEDS
    with pytest.raises(StudyError, match="no number of seeds is enough for S\\+ less S-, with 300 sessions"):
        planned_seeds(handle.where, study, chosen, 0.0001)


@pytest.mark.parametrize(
    ("seeds", "detect", "message"),
    [
        (None, 2.0, "--detect is 2, expected a difference of HR@10 such as 0.01, which is one point"),
        (None, 0.0, "--detect is 0, expected a difference"),
        (None, -0.01, "--detect is -0.01, expected a difference"),
        (6, 0.05, "--seeds is 6 and --detect 0.05, expected one of them"),
    ],
)
def test_seeds_are_not_planned_for_what_is_no_difference_or_when_they_are_given(tmp_path, seeds, detect, message):
    """Nothing is read or made: how many seeds a study has could not be changed any more."""
    with pytest.raises(StudyError, match=re.escape(message)):
        confirm(places(tmp_path / "none", None, None), None, seeds=seeds, detect=detect)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_study_is_not_confirmed(data, tmp_path):  # noqa: F811
    """Or the arm that is behind would be chosen from fewer cells."""
    (tmp_path / "tiny.toml").write_text(SEARCH)
    from skiprec.dataset import load_dataset
    from study.queue import refill
    from study.run import Making, create
    from study.space import load_recipe

    where = places(tmp_path / "mlruns", None, None)
    making = Making(name="mine", recipe=load_recipe(str(tmp_path / "tiny.toml")), dataset=load_dataset(data))
    where.mlruns.mkdir()
    study = create(where, making, 1, "cpu")
    refill(study, [], 2)
    with pytest.raises(StudyError, match="study mine is not finished; `study run` goes on with it, then confirm it"):
        confirm(where, "mine", seeds=None)


def test_the_report_of_a_confirmed_study_and_its_answer_are_kept_with_its_run(confirmed, tmp_path):
    """The page, the tables, and the note that the UI shows."""
    _, handle, _ = confirmed
    names = {path.name for path in handle.report(tmp_path / "report")}
    assert {"report.html", "claims.csv", "arms.csv", "groups.csv", "claims.png", "learning_curves.png"} <= names
    client = MlflowClient(tracking_uri=handle.where.tracking_uri)
    run = client.get_run(handle.study.user_attrs["parent_run"])
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["answer"]["headline"] in run.data.tags["mlflow.note.content"]
    assert "report.html" in {a.path.split("/")[-1] for a in client.list_artifacts(run.info.run_id, "report")}
