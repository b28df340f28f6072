"""What `skiprec train` takes over its bare steps: logging, checkpoints, progress; start-up and validation left out.

The command trains on synthetic logs while this process notes when each epoch's line is in its history. From the first
epoch's end to the last one's, less the seconds of validation that the history names, is what the epochs between took.
The same epochs are then gone through here by nothing but `trainer.step(batch, number)`. `figure` is the ratio.
"""

import skiprec  # noqa: F401, I001  first of all, as the commands do: it has a word on how torch is loaded

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
from measuring import DROPOUT

from skiprec.batches import batches
from skiprec.config import resolve
from skiprec.dataset import load_dataset
from skiprec.device import settle
from skiprec.prepare import prepare_logs
from skiprec.synthetic import synthesize_logs
from skiprec.trainer import Trainer

EPOCHS = 4
SESSIONS_A_SECOND = 8000
"""Sessions of the dataset for each second that was asked for. What the command writes at an epoch's end is the same
however long that was; with 3 seconds the epoch has 24,000 sessions, a twentieth of what the paper trains on."""


def epoch_ends(command: list[str], history: Path) -> list[float]:
    """Run the command; the time of each change of its history, by the file's own clock.

    Raises:
        RuntimeError: If the command failed.
    """
    times: list[float] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if history.exists() and history.stat().st_size and history.stat().st_mtime not in times:
            times.append(history.stat().st_mtime)
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(process.stderr.read().strip().splitlines()[-1])
    return times


def main() -> None:
    """Print the ratio and its parts."""
    task = measuring.read_task()
    device = settle("cpu", task.threads)
    n_sessions = max(600, int(SESSIONS_A_SECOND * task.seconds))
    settings = ["alpha=0.0", f"dropout={DROPOUT}", f"max_epochs={EPOCHS}", f"patience={EPOCHS - 1}"]
    settings.append(f"threads={task.threads}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize_logs(folder / "logs", sessions=n_sessions, items=task.items, seed=1, progress=False)
        prepare_logs([folder / "logs"], folder / "data", progress=False)
        command = [sys.executable, "-m", "skiprec", "train", str(folder / "data"), "--out", str(folder / "run")]
        command += ["--device", "cpu"] + [part for setting in settings for part in ("--set", setting)]
        start = time.perf_counter()
        ends = epoch_ends(command, folder / "run" / "history.jsonl")
        whole = time.perf_counter() - start
        if len(ends) != EPOCHS:
            raise RuntimeError(
                f"saw {len(ends)} epochs end, expected {EPOCHS}: they are too short, give more --seconds"
            )
        history = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
        record = json.loads((folder / "run" / "run.json").read_text())
        validation = sum(epoch["eval_seconds"] for epoch in history[1:])
        command_epoch = (ends[-1] - ends[0] - validation) / (EPOCHS - 1)

        config = resolve(None, None, settings, threads=task.threads)
        trainer = Trainer(load_dataset(folder / "data"), config, device=device, show_progress=False)
        n_items = trainer.model.n_items
        bare = []
        for _ in range(EPOCHS):
            trainer.epoch += 1
            trainer.model.train()
            before = time.perf_counter()
            epoch = batches(trainer.sessions, config.batch_size, seed=config.seed, epoch=trainer.epoch)
            for number, batch in enumerate(epoch, start=1):
                trainer.step(batch, number)
            bare.append(time.perf_counter() - before)
        bare_epoch = statistics.mean(bare[1:])
    figures = {
        "figure": command_epoch / bare_epoch,
        "command_epoch_seconds": command_epoch,
        "bare_epoch_seconds": bare_epoch,
        "steps_only_ratio": statistics.mean(epoch["train_seconds"] for epoch in history[1:]) / bare_epoch,
        "command_seconds": whole,
        "sessions_per_second": n_sessions / command_epoch,
        "save_seconds_an_epoch": record["save_seconds"] / EPOCHS,
    }
    notes = f"figure: x of the bare loop; {n_sessions:,} sessions, {n_items:,} items, {EPOCHS - 1} epochs"
    measuring.report(figures, notes=notes)


if __name__ == "__main__":
    main()
