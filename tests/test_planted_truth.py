"""End to end on synthetic logs: what was planted is learnt, and what was not is not."""

import pytest
from conftest import small_config

from skiprec.baselines import baselines, evaluate_baselines
from skiprec.dataset import load_dataset
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from skiprec.trainer import SELECTED_BY, Trainer

pytestmark = pytest.mark.slow

SMALL = {
    "alpha": 0.0,
    "dim": 64,
    "n_heads": 4,
    "feed_forward": 64,
    "dropout": 0.1,
    "negatives": "batch",
    "n_negatives": 200,
    "learning_rate": 0.006,
    "batch_size": 64,
    "max_epochs": 8,
    "patience": 7,
}


def validation_hr_at_10(folder, seed: int, succession: float) -> tuple[float, float, float]:
    """Of the chosen epoch of a small S- model, most popular, and session-popular, from logs to metrics."""
    synthesize_logs(folder / "logs", sessions=2000, items=800, seed=seed, succession=succession, progress=False)
    prepare_logs([folder / "logs"], folder / "data", progress=False)
    dataset = load_dataset(folder / "data")
    trainer = Trainer(dataset, small_config(seed=seed, **SMALL), show_progress=False)
    measured = evaluate_baselines(baselines(dataset), trainer.evaluator)
    for _ in trainer.epochs():
        pass
    found = trainer.best_value, *(measured[name][SELECTED_BY] for name in ("most popular", "session-popular"))
    print(
        "seed {}, succession {}: model {:.3f}, most popular {:.3f}, session-popular {:.3f}".format(
            seed, succession, *found
        )
    )
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_planted_succession_is_learnt(tmp_path, seed):
    model, most_popular, session_popular = validation_hr_at_10(tmp_path, seed, succession=1.0)
    assert model >= 1.5 * most_popular
    assert model > session_popular


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_the_succession_shuffled_there_is_nothing_beyond_the_better_baseline(tmp_path, seed):
    model, *baselines = validation_hr_at_10(tmp_path, seed, succession=0.0)
    assert abs(model - max(baselines)) <= 0.02
