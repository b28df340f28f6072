"""What the queue of a large study costs: claiming a cell, and `study status`, with a thousand finished cells.

python scripts/queue_cost.py [--finished 1000] [--waiting 100] [--storage URL]

Without --storage on SQLite in a temporary folder; an address is that of an empty database, such as one on the server
that `bash scripts/postgresql.sh start FOLDER` makes. A claim is a worker's whole step between two cells: is any
allowed, which one waits, take it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from skiprec import __version__
from skiprec.config import flatten
from skiprec.train_config import TrainConfig
from study.allowance import allowance_of
from study.locks import claim_lock, make_schema
from study.queue import Cell, Queue, enqueue, finish
from study.storage import Places, open_storage, open_study, places

EPOCHS = 12
METRICS = 120
"""That a run's record has, by group and split."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=100)
    parser.add_argument("--storage")
    task = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        where = places(Path(folder) / "mlruns", task.storage, None)
        make_study(where, task.finished, task.waiting)
        claims, renewed = claim_all(where, task.waiting // 2)
        status = status_seconds(where)
    kind = where.storage.split(":")[0]
    print(f"{kind}, {task.finished:,} finished cells, {task.waiting} waiting")
    print(f"claiming a cell: median {1000 * statistics.median(claims):.0f} ms, longest {1000 * max(claims):.0f} ms")
    print(f"a worker's first claim: {1000 * renewed:.0f} ms")
    print(f"study status: {status:.1f} s, of which {import_seconds():.1f} s are Python's start and imports")


def make_study(where: Places, finished: int, waiting: int) -> None:
    """A study as a real one leaves it: attributes, results, epochs."""
    where.resume("large").mkdir(parents=True)
    make_schema(where)
    study = optuna.create_study(study_name="large", storage=open_storage(where), direction="maximize")
    cells = [Cell(f"{i:064x}", "S-", i, {"learning_rate": 0.001 + i * 1e-6}) for i in range(finished + waiting)]
    about = {
        "recipe": {"max_attempts": 2, "settings": {}, "arms": {"S-": {}}},
        "defaults": flatten(TrainConfig()),
        "versions": {"skiprec": __version__},
        "grace_seconds": 120.0,
        "cells": {c.id: {"arm": c.arm, "seed": c.seed, "params": c.params} for c in cells},
    }
    for name, value in about.items():
        study.set_user_attr(name, value)
    now = datetime.now(UTC).replace(tzinfo=None)
    result = {"metrics": {f"val/metric_{i}": 0.1 for i in range(METRICS)}, "epochs": EPOCHS, "chosen_epoch": EPOCHS}
    for cell in tqdm(cells, desc="making the study", unit=" cells"):
        if cell.seed >= finished:
            enqueue(study, cell, attempt=1)
            continue
        trial = create_trial(
            value=0.4,
            params=cell.params,
            distributions={"learning_rate": FloatDistribution(0.0, 1.0)},
            intermediate_values={epoch: 0.4 for epoch in range(1, EPOCHS + 1)},
            user_attrs={"cell": cell.id, "arm": cell.arm, "seed": cell.seed, "attempt": 1, "result": result},
        )
        trial.datetime_start = trial.datetime_complete = now
        study.add_trial(trial)


def claim_all(where: Places, n: int) -> tuple[list[float], float]:
    """Seconds of each of n claims, and of the first one of a worker that starts."""
    seconds = []
    for _ in range(2):
        study = open_study(where, "large")
        queue = Queue(study, claim_lock(where, "large"))
        for i in range(n // 2):
            start = time.perf_counter()
            allowance = allowance_of(study)
            trial = queue.claim(
                lambda allowance=allowance, study=study: not allowance.is_spent(study, datetime.now(UTC))
            )
            seconds.append((i, time.perf_counter() - start))
            finish(study, trial._trial_id, TrialState.COMPLETE, 0.4)
    return [s for i, s in seconds if i > 0], max(s for i, s in seconds if i == 0)


def status_seconds(where: Places) -> float:
    """Of the command."""
    command = [sys.executable, "-m", "study", "status", "--mlruns", str(where.mlruns), "--storage", where.storage]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def import_seconds() -> float:
    """Of what the command imports."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import study.reaper, study.status"], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
