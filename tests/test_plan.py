"""What `study plan` prints: counts by hand, seconds from a stub, and one real timing."""

import pytest

from skiprec.dataset import load_dataset
from skiprec.errors import StudyError
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study.cells import plan
from study.confirm import FEWEST_SEEDS
from study.plan import arm_plan, plan_study
from study.space import Recipe

ARMS = {"S-": {"alpha": 0.0, "max_epochs": [6, 10]}, "S+": {"alpha": 0.5, "max_epochs": [6, 10]}}
SMALL = {"dim": 16, "n_heads": 2, "n_negatives": 20, "max_epochs": 4, "patience": 2}


def test_an_arm_takes_its_cells_epochs_times_what_one_takes():
    """S- at 2 s an epoch: 6 and 10 epochs are 32 s; its confirming runs are five of the longest cell."""
    recipe = Recipe(name="r", sampler="exhaustive", arms=ARMS)
    cells = plan(recipe, "0" * 64, threads=1)
    planned = arm_plan(recipe, "S-", cells, lambda arm, settings: 2.0 if settings["alpha"] == 0 else 100.0)
    assert (planned.cells, planned.search_seconds) == (2, 32.0)
    assert planned.confirm_seconds == FEWEST_SEEDS * 20.0


@pytest.mark.parametrize("workers", [0, -1])
def test_a_plan_without_workers_is_refused(workers):
    with pytest.raises(StudyError, match=rf"^--workers is {workers}, expected at least 1"):
        plan_study(Recipe(name="r", sampler="exhaustive", arms=ARMS), None, workers=workers, device="cpu")


@pytest.mark.slow
def test_the_plan_says_cells_runs_claims_and_time_and_writes_nothing(tmp_path):
    """By timing a few real batches."""
    synthesize_logs(tmp_path / "logs", sessions=300, items=400, seed=1, progress=False)
    prepare_logs([tmp_path / "logs"], tmp_path / "data", progress=False)
    before = sorted(tmp_path.rglob("*"))
    arms = {"S-": {"alpha": 0.0, "learning_rate": [0.001, 0.01]}, "S+": {"alpha": [0.1, 0.5]}}
    recipe = Recipe(name="mine", asks="Do they?", sampler="exhaustive", settings=SMALL, arms=arms)
    text = plan_study(recipe, load_dataset(tmp_path / "data"), workers=2, device="cpu", show_progress=False)
    assert text.startswith("mine: Do they?\ndata: data (")
    assert "4 cells and 10 confirming runs, 14 trainings: about " in text
    assert "every arm may spend the same" in text
    assert text.endswith(
        "claims, tested by the confirming runs (worthwhile from 1 points):\n  S+ is above S- in test/hr_at_10"
    )
    assert sorted(tmp_path.rglob("*")) == before
