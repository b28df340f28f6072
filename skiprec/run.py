"""One training run and its folder: `skiprec train` and every trial of a study go through here.

The folder holds config.toml, history.jsonl (an epoch a line, as it happens), best.safetensors, resume.safetensors,
and, when the run is done, metrics.json (the chosen epoch), ranks_val.parquet and run.json (digests, versions, device,
seconds).
"""

import dataclasses
import functools
import io
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from skiprec import __version__
from skiprec.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from skiprec.config import flatten, from_flat, to_toml
from skiprec.dataset import Dataset, Split, load_dataset
from skiprec.errors import CheckpointError, ConfigError
from skiprec.evaluation import Evaluator
from skiprec.features import FEATURE
from skiprec.files import new_folder, write_file
from skiprec.learner import Learners
from skiprec.model import SequenceEncoder
from skiprec.recommend import Recommender
from skiprec.tracking import NullTracker, Tracker
from skiprec.train_config import TrainConfig
from skiprec.trainer import SELECTED_BY, EpochResult, Trainer

CONFIG = "config.toml"
HISTORY = "history.jsonl"
BEST = "best.safetensors"
RESUME = "resume.safetensors"
METRICS = "metrics.json"
RECORD = "run.json"


class Run:
    """A run in a folder, from its start or from its last epoch's end.

    Args:
        dataset: The prepared logs.
        config: Everything that decides the numbers.
        folder: Made here, or holding this very run up to some epoch's end.
        device: From `device.settle`.
        tracker: Told of every epoch once, earlier ones of a resumed run first.
        evaluators: By split, where several runs share them.
        learners: Of the runs that come one after the other in this thread; the one before must be over.
        show_progress: A tqdm bar, where the output is a terminal.
        should_stop: Asked before each step.

    Raises:
        CheckpointError: If the folder's resume point is damaged or belongs to other data or another configuration.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        tracker: Tracker | None = None,
        evaluators: Mapping[Split, Evaluator] | None = None,
        learners: Learners | None = None,
        show_progress: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.folder = folder
        self.device = device
        self.evaluators = dict(evaluators or {})
        self.tracker = tracker or NullTracker()
        self.history: list[EpochResult] = []
        self.save_seconds = 0.0
        """Wall-clock time of putting epochs' ends on disk, since this process took the run up."""
        self.trainer = Trainer(
            dataset,
            config,
            device=device,
            tracker=self.tracker,
            evaluator=self.evaluators.get("val"),
            learners=learners,
            show_progress=show_progress,
            should_stop=should_stop,
        )
        self.about = {"config": flatten(config), "dataset_digest": dataset.digest}
        if (folder / RESUME).exists():
            self._resume()
        elif folder.exists():  # stopped before its first epoch's end
            if len((folder / HISTORY).read_text().splitlines() if (folder / HISTORY).exists() else []) > 1:
                raise CheckpointError(f"{folder / RESUME}: missing, though {HISTORY} has epochs after it; train again")
            self._write_start(folder)
        else:
            with new_folder(folder) as beside:
                self._write_start(beside)
        self.resumed_from = self.trainer.epoch

    def epochs(self) -> Iterator[EpochResult]:
        """Train, and put each epoch's end on disk before it is yielded. A resumed run yields its new epochs alone."""
        self.tracker.log_params(flatten(self.config))
        for past in self.history:
            self.tracker.log_metrics(past.metrics, epoch=past.epoch)
        for result in self.trainer.epochs():
            start = time.perf_counter()
            self.history.append(result)
            tensors, values = self.trainer.state()
            if result.is_best:
                save_checkpoint(
                    self.folder / BEST, self.trainer.model.state_dict(), self.about | {"epoch": result.epoch}
                )
            # History before the resume point: if it is too long it is cut later, a gap could not be mended.
            write_file(self.folder / HISTORY, "".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in self.history))
            save_checkpoint(self.folder / RESUME, tensors, self.about | values)
            self.save_seconds += time.perf_counter() - start
            yield result

    def finish(self, splits: Sequence[Split] = ("val",)) -> dict[str, float]:
        """Go back to the chosen epoch, measure it in every way, and write the run's record.

        Beside metrics by group each split gets `ranks_SPLIT.parquet`: the rank of every target by measure, and its
        groups, a row a session in the dataset's order. Nothing in it names a session or an item.

        Args:
            splits: What is measured. "test" is for confirming runs, which choose nothing by it.

        Returns:
            Every metric of the chosen epoch.
        """
        tensors, _ = load_checkpoint(self.folder / BEST, dataset_digest=self.dataset.digest)
        self.trainer.model.load_state_dict(tensors)
        chosen = next(r for r in self.history if r.epoch == self.trainer.best_epoch)
        start = time.perf_counter()
        measured: dict[str, float] = {}
        for split in splits:
            evaluator = self._evaluator(split)
            values, ranks = self.trainer.measure(evaluator)
            measured |= values
            write_file(self.folder / ranks_file(split), ranks_table(evaluator, ranks))
        full_eval_seconds = time.perf_counter() - start
        # Trackers show a metric's last value; lists of runs are to be sorted by the chosen epoch's.
        best = {"val/best_hr_at_10": chosen.metrics[SELECTED_BY]}
        new = {name: value for name, value in measured.items() if name not in chosen.metrics}
        self.tracker.log_metrics(new | best, epoch=chosen.epoch)
        metrics = chosen.metrics | new
        write_file(self.folder / METRICS, json.dumps({"epoch": chosen.epoch, **metrics}, indent=2) + "\n")
        record = self.about | {
            "weights": weights_digest(tensors),
            "dataset": str(self.dataset.path.resolve()),
            "epochs": len(self.history),
            "chosen_epoch": chosen.epoch,
            "train_seconds": sum(r.train_seconds for r in self.history),
            "eval_seconds": sum(r.eval_seconds for r in self.history),
            # Apart: the first is once a run, not once an epoch; the second of this process's epochs alone.
            "full_eval_seconds": full_eval_seconds,
            "save_seconds": self.save_seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "optimizer": self.trainer.learner.optimizer_note,
            "environment": environment(self.trainer.device),
        }
        write_file(self.folder / RECORD, json.dumps(record, indent=2) + "\n")
        for name in (CONFIG, BEST, METRICS, RECORD, *map(ranks_file, splits)):
            self.tracker.log_artifact(self.folder / name)
        return metrics

    def _evaluator(self, split: Split) -> Evaluator:
        if split == "val":
            return self.trainer.evaluator
        if split not in self.evaluators:
            targets = self.config.only_targets
            self.evaluators[split] = Evaluator(self.dataset, split, self.device, only_targets=targets)
        return self.evaluators[split]

    def _write_start(self, folder: Path) -> None:
        write_file(folder / CONFIG, to_toml(self.config))
        write_file(folder / HISTORY, "")

    def _resume(self) -> None:
        path = self.folder / RESUME
        tensors, about = load_checkpoint(path, dataset_digest=self.dataset.digest)
        theirs = flatten(TrainConfig()) | about["config"]  # a setting that came later was at its default then
        differs = sorted(k for k, v in self.about["config"].items() if theirs[k] != v)
        if differs:
            raise CheckpointError(
                f"{path}: made with other settings: "
                + ", ".join(f"{k} was {theirs[k]}, now {self.about['config'][k]}" for k in differs)
            )
        self.history = read_history(self.folder / HISTORY, about["epoch"])
        self.trainer.restore(tensors, about)


def ranks_file(split: Split) -> str:
    """The name of a split's ranks in a run's folder, and among its artifacts."""
    return f"ranks_{split}.parquet"


def ranks_table(evaluator: Evaluator, ranks: Mapping[str, Tensor]) -> bytes:
    """Ranks and groups of every target as a parquet file: float32 is exact for them, halves included, to 8 million."""
    asked, names = evaluator.questions, pa.array(evaluator.context_names, pa.string())
    columns = {measure: pa.array(rank.cpu().numpy().astype(np.float32)) for measure, rank in ranks.items()}
    columns |= {
        "skipped": pa.array(asked.target_skipped.cpu().numpy()),
        "repeated": pa.array(asked.target_repeated.cpu().numpy()),
        "context": pa.DictionaryArray.from_arrays(asked.target_context.cpu().numpy().astype(np.int32), names),
        "popularity": pa.array(asked.target_third.cpu().numpy().astype(np.int8)),
        "length": pa.array(asked.session_lengths.cpu().numpy().astype(np.int32)),
    }
    columns |= {f"{FEATURE}{name}": pa.array(of.cpu().numpy()) for name, of in evaluator.feature_thirds.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def read_history(path: Path, n_epochs: int) -> list[EpochResult]:
    """The first epochs of a run's history; later ones were written just before a stop, and come again.

    Raises:
        CheckpointError: If these epochs are not all there.
    """
    try:
        history = [EpochResult(**json.loads(line)) for line in path.read_text().splitlines()[:n_epochs]]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}), expected a line an epoch; train again") from error
    if [result.epoch for result in history] != list(range(1, n_epochs + 1)):
        raise CheckpointError(
            f"{path}: has the epochs {[result.epoch for result in history]}, expected 1 to {n_epochs}; train again"
        )
    return history


@functools.cache  # the versions are read from files, which takes longer than a small epoch
def environment(device: torch.device) -> dict[str, str]:
    """Versions and machine, as a run's record names them."""
    packages = ["torch", "numpy", "pandas", "pyarrow", "safetensors"]
    packages += ["numba"] if find_spec("numba") else []  # a GPU does without
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return (
        {"skiprec": __version__}
        | {p: version(p) for p in packages}
        | {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(device),
            "device_name": name,
        }
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What run.json says of a finished run.

    Raises:
        ConfigError: If the folder holds no finished run.
    """
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: no readable {RECORD}, expected the folder of a finished `skiprec train`"
        ) from error


def load_recommender(
    folder: str | Path, data: str | Path | None = None, device: torch.device | str = "cpu"
) -> Recommender:
    """What answers with the chosen model of a run.

    Args:
        folder: The run's.
        data: The dataset folder, if it is no longer where it was: it has the item ids.
        device: Where scores are computed.

    Raises:
        ConfigError: If the folder holds no finished run.
        DatasetError: If the dataset is not there, or was changed.
        CheckpointError: If the checkpoint is missing, damaged, or from other data.
    """
    folder = Path(folder)
    dataset = load_dataset(data or Path(read_record(folder)["dataset"]))
    model, about = load_model(folder, dataset)
    sizes = {"max_length": dataset.max_length, "skip_threshold": dataset.manifest.config.skip_threshold}
    return Recommender(model.to(device), dataset.item_ids(), **sizes, about=about)


def load_model(folder: Path, dataset: Dataset) -> tuple[SequenceEncoder, dict[str, Any]]:
    """The chosen model of a run, on the CPU, ready to score; and what its checkpoint says of itself.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or from other data.
    """
    tensors, about = load_checkpoint(folder / BEST, dataset_digest=dataset.digest)
    model = SequenceEncoder(from_flat(about["config"]).model, dataset.n_items, dataset.max_length)
    model.load_state_dict(tensors)
    return model.eval(), about
