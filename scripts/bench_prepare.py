"""python scripts/bench_prepare.py [--gigabytes 2] [--items 1000000] [--rounds 3] [--out FILE.json]

How long `skiprec prepare` takes on synthetic MSSD logs, and the most memory that it holds, beside what pandas needs
only to read them: chunks of 500,000 rows, the columns that are used, with and without ids numbered by dictionaries.
Each round runs all of them, one after the other and each in a process of its own; medians are printed. The logs are
made in a temporary folder (see TMPDIR) and removed.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from skiprec import synthetic
from skiprec.schema import LOG_COLUMNS

BYTES_PER_SESSION = 2900
SESSIONS_PER_FILE = 50_000

READ_WITH_PANDAS = """
import sys
import numpy as np, pandas as pd
from skiprec.schema import READ_COLUMNS
numbers = {"session_id": {}, "track_id_clean": {}} if sys.argv[1] == "ids" else {}
for path in sys.argv[2:]:
    for chunk in pd.read_csv(path, usecols=list(READ_COLUMNS), chunksize=500_000):
        for name, known in numbers.items():
            places, texts = pd.factorize(chunk[name])
            chunk[name] = np.array([known.setdefault(text, len(known)) for text in texts.tolist()])[places]
"""


def make_logs(folder: Path, gigabytes: float, n_items: int) -> list[Path]:
    """Plain CSV logs of about this size, in files as MSSD's are: sessions one after another, by id."""
    rng = np.random.Generator(np.random.PCG64(1))
    world = synthetic.make_world(n_items, rng)
    track_ids = pa.array([f"t_{uuid}" for uuid in synthetic.uuids(n_items, rng)])
    n_sessions = max(1, round(gigabytes * 1e9 / BYTES_PER_SESSION))
    paths = []
    for first in range(0, n_sessions, SESSIONS_PER_FILE):
        plays = synthetic.play(world, min(SESSIONS_PER_FILE, n_sessions - first), rng, 1.0, 1.0)
        paths.append(folder / f"log_{len(paths):04}.csv")
        with open(paths[-1], "wb") as file:
            file.write((",".join(LOG_COLUMNS) + "\n").encode())
            options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
            pyarrow.csv.write_csv(synthetic.as_rows(plays, first, track_ids, rng), file, options)
    return paths


def measure(command: list[str | Path]) -> dict[str, float]:
    """Wall and processor seconds and the peak memory of a command in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[1:4]} ended with {process.returncode}")
    return {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Make the logs, measure in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--items", type=int, default=1_000_000, help="size of the catalogue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as name:
        folder = Path(name)
        # In a process of its own: what this one holds would be counted in the peaks of those that it starts.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as maker:
            logs = maker.submit(make_logs, folder, options.gigabytes, options.items).result()
        size = sum(path.stat().st_size for path in logs)
        print(f"{size / 1e9:.2f} GB in {len(logs)} files")
        commands = {
            "pandas reads": [sys.executable, "-c", READ_WITH_PANDAS, "columns", *logs],
            "pandas reads and numbers ids": [sys.executable, "-c", READ_WITH_PANDAS, "ids", *logs],
            "skiprec prepare": [sys.executable, "-m", "skiprec", "prepare", *logs, "--out"],
        }
        rounds: dict[str, list[dict[str, float]]] = {what: [] for what in commands}
        for i in range(options.rounds):
            for what, command in commands.items():
                end = [folder / f"out{i}"] if what == "skiprec prepare" else []
                rounds[what].append(measure([*command, *end]))
    medians = {
        what: {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        for what, figures in rounds.items()
    }
    print(f"{'median of ' + str(options.rounds):30} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}")
    for what, figures in medians.items():
        print(f"{what:30} {figures['wall_seconds']:8.1f} {figures['cpu_seconds']:8.1f} {figures['peak_mib']:9.0f}")
    ours = medians["skiprec prepare"]
    ratios = {
        f"prepare / {what}, {key}": ours[key] / medians[what][key]
        for what in ("pandas reads", "pandas reads and numbers ids")
        for key in ("wall_seconds", "cpu_seconds")
    }
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.2f}")
    if options.out:
        figures = {"bytes": size, "rounds": rounds, "medians": medians, "ratios": ratios}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
