"""What a study takes for a trial besides its training, in one running worker.

    python scripts/trial_cost.py [--finished N]

A study of 12 tiny cells on synthetic logs, both databases SQLite in a temporary folder, as `study run` with one worker
runs it. A trial takes from its start to the next one's. Less its seconds of training and of validation (that of every
epoch, and that against the whole catalogue), what is left is Optuna, MLflow, resume points, artifacts, and the start of
a run. With --finished N, the study holds N finished trials of other cells already. Wants a machine to itself.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from skiprec.dataset import load_dataset
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study.locks import run_lock
from study.queue import facts
from study.run import Making, create, launch
from study.space import Recipe
from study.storage import places

RECIPE = Recipe(
    name="tiny",
    sampler="exhaustive",
    settings={
        "learning_rate": [0.001, 0.002, 0.003, 0.004, 0.005, 0.006],
        "beta": 0.5,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "n_negatives": 20,
        "max_epochs": 3,
        "patience": 2,
    },
    arms={"S-": {"alpha": 0.0}, "S+ item": {"alpha": 0.5, "context": "item"}},
)
MEASURED = ("train_seconds", "eval_seconds", "full_eval_seconds", "save_seconds")


def add_finished(study: optuna.Study, like: optuna.trial.FrozenTrial, n: int) -> None:
    """Put n finished trials of other cells into a study, each like a real one."""
    for i in range(n):
        about = like.user_attrs | {"cell": f"finished before {i}"}
        parts = {"params": like.params, "distributions": like.distributions, "user_attrs": about}
        parts["intermediate_values"] = like.intermediate_values
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=like.value, **parts))


def measure(study: optuna.Study) -> list[dict[str, float]]:
    """Seconds of each trial but the last: by name, and what is left as `rest`."""
    trials = [t for t in study.get_trials() if not t.user_attrs["cell"].startswith("finished before")]
    trials.sort(key=lambda t: t.datetime_start)
    rows = []
    for trial, following in itertools.pairwise(trials):
        row = {name: facts(trial)[name] for name in MEASURED}
        row["whole"] = (following.datetime_start - trial.datetime_start).total_seconds()
        rows.append(row | {"rest": row["whole"] - sum(row[name] for name in MEASURED)})
    return rows


def main() -> None:
    """Measure, and print medians."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("--finished", type=int, default=0)
    finished = parser.parse_args().finished
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize_logs(folder / "logs", sessions=300, items=400, seed=1, progress=False)
        prepare_logs([folder / "logs"], folder / "data", progress=False)
        options = {"mlruns": folder / "mlruns", "device": "cpu", "show_progress": False}
        handle = launch(RECIPE, folder / "data", **options)
        if finished:
            where, crowded = places(folder / "mlruns", None, None), dataclasses.replace(RECIPE, name="crowded")
            with run_lock(where, "crowded"):
                making = Making(name="crowded", recipe=crowded, dataset=load_dataset(folder / "data"))
                made = create(where, making, 1, "cpu")
                add_finished(made, handle.study.get_trials()[0], finished)
            handle = launch(crowded, folder / "data", name="crowded", **options)
        rows = measure(handle.study)
    print(f"{len(rows)} trials, {finished} finished before; median seconds of a trial (and the least and the most):")
    for name in ("whole", *MEASURED, "rest"):
        values = [row[name] for row in rows]
        print(f"  {name.replace('_', ' '):18} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    saved = statistics.median(row["rest"] + row["save_seconds"] for row in rows)
    print(f"besides training and validation: {saved:.3f}, resume points and checkpoints included")


if __name__ == "__main__":
    main()
