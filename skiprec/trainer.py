"""The epochs of a training, with validation and early stopping. Whoever iterates over them saves, logs, or stops."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from skiprec.batches import Batch, batches
from skiprec.dataset import Dataset
from skiprec.errors import OutOfMemory, TrainingDiverged, TrainingStopped
from skiprec.evaluation import Evaluator, ModelScorer
from skiprec.learner import Learners
from skiprec.tracking import NullTracker, Tracker
from skiprec.train_config import TrainConfig

SELECTED_BY = "val/hr_at_10"
"""The metric that chooses the epoch: of the next item alone, so the same for S- and S+ (semantics: section 6)."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch gave."""

    epoch: int
    """From 1."""
    metrics: dict[str, float]
    """By the names that trackers use."""
    is_best: bool
    """Whether this epoch has the best val/hr_at_10 so far; the first of equals stays."""
    train_seconds: float
    """Wall-clock time of the steps."""
    eval_seconds: float
    """Wall-clock time of the validation."""


class Trainer:
    """Trains one model on one dataset.

    Args:
        dataset: The prepared logs.
        config: Everything that decides the numbers.
        device: From `device.settle`.
        tracker: Told the parameters once, and the metrics once an epoch.
        evaluator: Of the validation split; made here if not handed in, shared by the trials of a worker otherwise.
        learners: Keeps what the training before may leave to this one; nothing is left to it if not handed in.
        show_progress: A tqdm bar over sessions, where the output is a terminal.
        should_stop: Asked before each step; a true answer raises TrainingStopped.

    Raises:
        ConfigError: If the catalogue is too small to draw negatives from.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        *,
        device: torch.device | str = "cpu",
        tracker: Tracker | None = None,
        evaluator: Evaluator | None = None,
        learners: Learners | None = None,
        show_progress: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.tracker = tracker or NullTracker()
        self.show_progress = show_progress
        self.should_stop = should_stop
        self.learner = (learners or Learners()).take(dataset, config, self.device)
        self.sessions, self.model = self.learner.sessions, self.learner.model
        self.evaluator = evaluator or Evaluator(dataset, "val", self.device, only_targets=config.only_targets)
        self.epoch = 0
        self.best_epoch = 0
        self.best_value = -1.0

    def epochs(self) -> Iterator[EpochResult]:
        """Train until max_epochs or until patience runs out, from the epoch after the last one done.

        Raises:
            TrainingDiverged: If a loss is not finite, with epoch and cause.
            TrainingStopped: If should_stop said so; the epoch under way is lost, earlier ones are not.
        """
        n = len(self.sessions.lengths)
        with tqdm(
            total=self.config.max_epochs * n,
            initial=self.epoch * n,
            unit=" sessions",
            disable=None if self.show_progress else True,
        ) as bar:
            while not self.is_finished:
                result = self._run_epoch(bar)
                bar.set_postfix(
                    loss=f"{result.metrics['train/loss']:.4f}", val_hr_at_10=f"{result.metrics[SELECTED_BY]:.4f}"
                )
                yield result

    @property
    def is_finished(self) -> bool:
        """Whether max_epochs are done, or patience has run out."""
        waited = self.epoch - self.best_epoch
        return self.epoch >= self.config.max_epochs or waited >= max(1, self.config.patience)

    def step(self, batch: Batch, number: int) -> Float[Tensor, " 3"]:
        """A step of this epoch, as `Learner.step`."""
        return self.learner.step(batch, self.epoch, number)

    def _run_epoch(self, bar: tqdm) -> EpochResult:
        self.epoch += 1
        self.model.train()
        start = time.perf_counter()
        totals = torch.zeros(3, device=self.device, dtype=torch.float64)
        epoch_batches = batches(self.sessions, self.config.batch_size, seed=self.config.seed, epoch=self.epoch)
        for number, batch in enumerate(epoch_batches, start=1):
            if self.should_stop():
                raise TrainingStopped(f"stopped in epoch {self.epoch}, step {number}")
            with memory_errors(self.config):
                totals += self.step(batch, number) * len(batch.lengths)
            bar.update(len(batch.lengths))
        self.learner.flush()
        loss, nll, nce = (totals / len(self.sessions.lengths)).tolist()
        if not torch.isfinite(totals).all():
            raise TrainingDiverged(
                f"epoch {self.epoch}: mean loss is {loss} (next-item {nll}, contrastive {nce}), with {self.config}"
            )
        trained = time.perf_counter()
        try:
            validation = self.validate()
        except TrainingDiverged as error:  # the last step broke the weights
            raise TrainingDiverged(f"epoch {self.epoch}: {error}, with {self.config}") from error
        metrics = {"train/loss": loss, "train/nll": nll, "train/nce": nce} | validation
        is_best = metrics[SELECTED_BY] > self.best_value
        if is_best:
            self.best_epoch, self.best_value = self.epoch, metrics[SELECTED_BY]
        result = EpochResult(self.epoch, metrics, is_best, trained - start, time.perf_counter() - trained)
        self.tracker.log_metrics(metrics, epoch=self.epoch)
        return result

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Sampled metrics of the model as it is."""
        self.learner.flush()
        self.model.eval()
        return self.evaluator.sampled(ModelScorer(self.model))

    @torch.no_grad()
    def measure(self, evaluator: Evaluator) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The model as it is, by every measure and group; and the rank of every target, by measure."""
        self.learner.flush()
        self.model.eval()
        return evaluator.measure(ModelScorer(self.model))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next epoch depends on: tensors by name (in use: a step changes them), and values."""
        return self.learner.state(), {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
        }

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go back to a state that `state` gave; training goes on bit for bit as it would have.

        Raises:
            CheckpointError: If it is of other optimisers.
        """
        self.learner.restore(tensors)
        self.epoch, self.best_epoch = values["epoch"], values["best_epoch"]
        self.best_value = values["best_value"]


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn an allocation that failed into one line.

    Raises:
        OutOfMemory: In place of torch's.
    """
    try:
        yield
    except RuntimeError as error:
        # The CPU's allocator has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"a step with batch_size {config.batch_size}, n_negatives {config.loss.n_negatives} and dim "
            f"{config.model.dim} does not fit the device's memory; make one of them smaller"
        ) from error
