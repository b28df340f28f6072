"""What a trial of a study costs besides training: Optuna, MLflow, making the model, files. One worker, tiny cells.

From one trial's start to the next one's, less the training and validation that the trial names; `figure` is the median
in seconds, over all trials but the last. The worker's own start is not in it.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring
import optuna
from optuna.trial import TrialState

from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from study.queue import facts

RECIPE = """
name = "bench"
sampler = "exhaustive"
[settings]
learning_rate = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]
beta = 0.5
dim = 16
n_heads = 2
n_negatives = 20
max_epochs = 3
patience = 2
[arms."S-"]
alpha = 0.0
[arms."S+"]
alpha = 0.5
context = "item"
"""
CELLS = 12


def main() -> None:
    """Print the median and the single gaps."""
    measuring.read_task()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench.toml").write_text(RECIPE)
        synthesize_logs(folder / "logs", sessions=300, items=400, seed=1, progress=False)
        prepare_logs([folder / "logs"], folder / "data", progress=False)
        command = [sys.executable, "-m", "study", "run", "bench.toml", "--data", "data", "--workers", "1"]
        done = subprocess.run([*command, "--device", "cpu"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'mlruns' / 'optuna.db'}")
        trials = optuna.load_study(study_name=None, storage=storage).get_trials(states=[TrialState.COMPLETE])
        storage.engine.dispose()
    trials.sort(key=lambda trial: trial.datetime_start)
    if len(trials) != CELLS:
        raise RuntimeError(f"{len(trials)} trials are complete, expected {CELLS}")
    gaps = [
        (after.datetime_start - trial.datetime_start).total_seconds()
        - sum(facts(trial)[name] for name in ("train_seconds", "eval_seconds", "full_eval_seconds"))
        for trial, after in itertools.pairwise(trials)
    ]
    figures = {"figure": statistics.median(gaps), "worst": max(gaps), "gaps": gaps}
    measuring.report(
        figures,
        notes=f"figure: seconds a trial besides training and evaluation; {CELLS} cells, 3 epochs of 300 sessions",
    )


if __name__ == "__main__":
    main()
