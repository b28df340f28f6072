"""python scripts/two_workers.py [--sessions 6000] [--epochs 8] [--rounds 2]

What a study with two workers takes beside two trainings at a time without one: four cells, the same four settings. The
study's time is from its first trial's start to its last one's end; that of the trainings is what their own records
name (training, validation, the last evaluation, files), the longer of each two. Both take turns, round after round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from tqdm import tqdm

from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs

RATES = (0.001, 0.0011, 0.0012, 0.0013)
PARTS = ("train_seconds", "eval_seconds", "full_eval_seconds", "save_seconds")


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize_logs(folder / "logs", sessions=options.sessions, items=4 * options.sessions, seed=1, progress=False)
        prepare_logs([folder / "logs"], folder / "data", progress=False)
        apart, together = [], []
        for number in tqdm(range(options.rounds), desc="rounds", disable=None):
            apart.append(trainings(folder, number, options.epochs))
            together.append(study(folder, number, options.epochs))
        ratios = [b / a for a, b in zip(apart, together, strict=True)]
        print(f"trainings {[round(s, 1) for s in apart]} s, the study {[round(s, 1) for s in together]} s")
        print(f"the study takes {100 * (statistics.median(ratios) - 1):+.1f}% (rounds {[round(r, 3) for r in ratios]})")


def trainings(folder: Path, number: int, epochs: int) -> float:
    """Seconds of all four, two at a time."""
    seconds = 0.0
    for pair in (RATES[:2], RATES[2:]):
        outs = [folder / f"run-{number}-{rate}" for rate in pair]
        fixed = (f"max_epochs={epochs}", f"patience={epochs - 1}", "threads=1")
        running = [
            skiprec("train", folder / "data", "--out", out, *(f"--set={s}" for s in (*fixed, f"learning_rate={rate}")))
            for rate, out in zip(pair, outs, strict=True)
        ]
        for process in running:
            assert process.wait() == 0
        records = [json.loads((out / "run.json").read_text()) for out in outs]
        seconds += max(sum(record[part] for part in PARTS) for record in records)
    return seconds


def skiprec(*arguments: object) -> subprocess.Popen:
    """A command, begun."""
    command = [sys.executable, "-m", "skiprec", *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


def study(folder: Path, number: int, epochs: int) -> float:
    """Seconds from the first trial's start to the last one's end."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'name = "two"\nsampler = "exhaustive"\n[settings]\nlearning_rate = {list(RATES)}\nmax_epochs = {epochs}\n'
        f'patience = {epochs - 1}\n[arms."S+"]\nalpha = 0.5\n'
    )
    mlruns = folder / f"mlruns-{number}"
    command = ("run", recipe, "--data", folder / "data", "--workers", 2, "--device", "cpu", "--mlruns", mlruns)
    done = subprocess.run([sys.executable, "-m", "study", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{mlruns / 'optuna.db'}").get_trials()
    ends = max(t.datetime_complete for t in trials)
    return (ends - min(t.datetime_start for t in trials)).total_seconds()


if __name__ == "__main__":
    main()
