"""One optimiser step, the epochs, early stopping. Yields after each epoch; whoever iterates saves, logs, or stops."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from skiprec.batches import Batch, batches, training_sessions
from skiprec.captured_step import CapturedStep
from skiprec.dataset import Dataset, Sessions
from skiprec.device import has_kernels
from skiprec.errors import CheckpointError, ConfigError, OutOfMemory, TrainingDiverged, TrainingStopped
from skiprec.evaluation import Evaluator, ModelScorer
from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.optimizer import DeferredAdam
from skiprec.randomness import Draws, global_generator
from skiprec.schema import PADDING
from skiprec.touched_rows import (
    Buffers,
    dense_gradient,
    dense_squared_norm,
    group_ids,
    sparse_gradient,
    squared_norm,
)
from skiprec.tracking import NullTracker, Tracker
from skiprec.training_loss import LossConfig, training_loss

SELECTED_BY = "val/hr_at_10"
"""The metric that chooses the epoch: of the next item alone, so the same for S- and S+ (semantics: section 6)."""

DEFERRED_BELOW = 0.5
"""Share of touched rows from which dense fused Adam is the faster one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one model is trained. Recorded whole with every run, so a run can be repeated from it."""

    seed: int = 1
    """Seeds weights, dropout, the order of batches and every draw."""
    learning_rate: float = 0.001
    """Of Adam, with betas .9 and .999, eps 1e-8."""
    weight_decay: float = 0.0
    """Of Adam: the L2 penalty."""
    batch_size: int = 128
    """Sessions a step."""
    max_epochs: int = 24
    """Upper bound; early stopping usually ends a run first."""
    patience: int = 5
    """Epochs without a better val/hr_at_10 before stopping."""
    max_grad_norm: float = 5.0
    """Gradients are scaled down to this L2 norm."""
    skip_threshold: int = 0
    """Least skip level, 1 to 3, that counts as skipped in training; 0: the dataset's own. Evaluation's groups of heard
    and skipped targets are by the dataset's always."""
    session_share: float = 1.0
    """Share of the sessions that is trained on: the same ones whatever the seed, a smaller share within a larger one.
    All are evaluated."""
    only_targets: Literal["all", "heard"] = "all"
    """Held-out targets that are evaluated: with "all", skipped ones stay in, and are reported apart as well."""
    threads: int = 1
    """CPU threads. Part of the configuration: sums are split by thread, so numbers depend on it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("seed", "patience", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.skip_threshold <= 3:
            raise ValueError(f"skip_threshold is {self.skip_threshold}, expected 1 to 3, or 0 for the dataset's own")
        if not 0 < self.session_share <= 1:
            raise ValueError(f"session_share is {self.session_share}, expected more than 0 and at most 1")
        if self.patience >= self.max_epochs:
            raise ValueError(
                f"patience ({self.patience}) must be smaller than max_epochs "
                f"({self.max_epochs}), or early stopping can never act"
            )


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
        show_progress: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if dataset.n_items <= dataset.max_length:
            raise ConfigError(
                f"{dataset.path}: the catalogue has {dataset.n_items} items and a session up to {dataset.max_length}, "
                "so there may be nothing to draw as a negative; expected more items"
            )
        self.config = config
        self.device = torch.device(device)
        self.tracker = tracker or NullTracker()
        self.show_progress = show_progress
        self.should_stop = should_stop
        sessions = training_sessions(dataset, skip_threshold=config.skip_threshold, session_share=config.session_share)
        self.sessions = sessions.to(self.device)
        is_popular = config.loss.alpha > 0 and config.loss.negative_scope == "popular"
        self.plays_up_to = plays_up_to(self.sessions, dataset.n_items) if is_popular else None
        self.evaluator = evaluator or Evaluator(dataset, "val", self.device, only_targets=config.only_targets)
        # On the CPU first: the same on every device.
        with global_generator(config.seed, "weights"):
            self.model = SequenceEncoder(config.model, dataset.n_items, dataset.max_length)
        self.model.to(self.device)
        share = touched_share(config, dataset)
        self.defers = config.weight_decay == 0 and share < DEFERRED_BELOW
        reason = "weight decay moves every row" if config.weight_decay else f"a step touches {share:.0%} of its rows"
        self.optimizer_note = f"Adam, {'deferred' if self.defers else 'dense'} for the item table: {reason}"
        self.optimizers = make_optimizers(self.model, config, defers=self.defers)
        self.buffers = Buffers(config.model.dim, self.model.items.weight.dtype, self.device)
        self.dense_gradient = None if self.defers else torch.empty_like(self.model.items.weight)
        self.draws = Draws(self.device)
        self.captured = CapturedStep(self.device, self.draws) if self.device.type == "cuda" else None
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
        """One optimiser update. Returns loss, nll and nce in nats, still on the device, until the next update."""
        self.draws.start(self.config.seed, self.epoch, number)
        if self.captured is None or len(batch.lengths) != self.config.batch_size:
            return self._step(batch)
        return self.captured(batch, self._step, self._note_replay)

    def _note_replay(self) -> None:
        if self.defers:
            self.optimizers["table"].note_replay()

    def _step(self, batch: Batch) -> Float[Tensor, " 3"]:
        """What the device does of a step. On a GPU it is called for a few steps alone: see `CapturedStep`."""
        table = self.model.items.weight
        parts = training_loss(
            self.model, batch, self.config.loss, self.draws, self.read, self.buffers, self.plays_up_to
        )
        self.model.zero_grad(set_to_none=True)
        parts.loss.backward()
        touched = parts.touched
        touched.gather_leading()
        groups = group_ids(touched.ids)
        if self.defers:
            table.grad = sparse_gradient(touched, table.shape)
            square = squared_norm(groups, touched.gradients)
        else:
            table.grad = dense_gradient(touched, groups, self.dense_gradient)
            square = dense_squared_norm(table.grad)
        clip_gradients(self.model, square, self.config.max_grad_norm)
        for name, optimizer in self.optimizers.items():
            optimizer.step(**({"groups": groups} if name == "table" else {}))
        return torch.stack([parts.loss, parts.nll, parts.nce]).detach()  # no .item(): it would wait for the GPU

    def read(self, ids: Int[Tensor, " N"], out: Float[Tensor, "N D"]) -> None:
        """Rows of the item table as the last step left them."""
        table = self.model.items.weight
        if self.defers:
            self.optimizers["table"].read(table, ids, out)
        else:
            torch.index_select(table.detach(), 0, ids, out=out)

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
        self.flush()
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

    def flush(self) -> None:
        """Bring every row of the item table up to date."""
        if self.defers:
            self.optimizers["table"].flush()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Sampled metrics of the model as it is."""
        self.flush()
        self.model.eval()
        return self.evaluator.sampled(ModelScorer(self.model))

    @torch.no_grad()
    def measure(self, evaluator: Evaluator) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The model as it is, by every measure and group; and the rank of every target, by measure."""
        self.flush()
        self.model.eval()
        return evaluator.measure(ModelScorer(self.model))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next epoch depends on: tensors by name (in use: a step changes them), and values."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for key, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{key}/{index}/{name}": value for name, value in moments.items()}
        return tensors, {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_value": self.best_value}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go back to a state that `state` gave; training goes on bit for bit as it would have.

        Raises:
            CheckpointError: If it is of other optimisers.
        """
        found, expected = {name.split("/")[0] for name in tensors}, {"model", *self.optimizers}
        if not found <= expected:
            raise CheckpointError(f"the state is of {sorted(found)}, expected {sorted(expected)}; train again")
        # A captured step would go on with the memory of the states that are replaced here.
        self.captured = CapturedStep(self.device, self.draws) if self.captured else None
        for key, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"{key}/"):
                    _, index, moment = name.split("/")
                    state.setdefault(int(index), {})[moment] = value.clone()  # Adam writes into what it is given
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        # Weights last: what an optimiser still has to make up for it does before it says what its state is.
        self.model.load_state_dict(
            {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        )
        self.epoch, self.best_epoch = values["epoch"], values["best_epoch"]
        self.best_value = values["best_value"]


def plays_up_to(sessions: Sessions, n_items: int) -> Int[Tensor, " R"]:
    """Plays of all items up to an index, that item's included, in the sessions that are trained on."""
    plays = torch.bincount(sessions.items.flatten().cpu(), minlength=n_items + 1)
    plays[PADDING] = 0
    return plays.cumsum(0).to(sessions.items.device)


def touched_share(config: TrainConfig, dataset: Dataset) -> float:
    """Share of the item table's rows that a step is expected to touch, were all its ids drawn uniformly."""
    if config.loss.negatives == "full":
        return 1.0
    draws = config.batch_size if config.loss.negatives == "session" else 1
    ids = config.batch_size * dataset.max_length + draws * config.loss.n_negatives
    return 1 - (1 - 1 / dataset.n_items) ** ids


def make_optimizers(model: SequenceEncoder, config: TrainConfig, *, defers: bool) -> dict[str, torch.optim.Optimizer]:
    """Adam for the model: one for "all" of it, or one for the item "table" that defers and one for the "rest"."""
    table, *rest = model.parameters()
    assert table is model.items.weight
    adam = functools.partial(torch.optim.Adam, lr=config.learning_rate, fused=True, capturable=table.is_cuda)
    if not defers:
        return {"all": adam([table, *rest], weight_decay=config.weight_decay)}
    return {"table": DeferredAdam([table], lr=config.learning_rate), "rest": adam(rest)}


@torch.no_grad()
def clip_gradients(model: SequenceEncoder, table_square: Float[Tensor, ""], limit: float) -> None:
    """Scale all gradients down to a joint L2 norm, as `nn.utils.clip_grad_norm_`, which takes no sparse ones.

    Args:
        model: Whose gradients.
        table_square: The squared norm of the item table's gradient.
        limit: The largest norm that is left as it is.
    """
    table, *rest = (p.grad for p in model.parameters() if p.grad is not None)
    norms = torch._foreach_norm(rest)
    norm = (torch.stack(norms).square().sum() + table_square).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1).float()
    if not has_kernels(factor.device) or factor < 1:  # asking a GPU would wait for it
        torch._foreach_mul_([*rest, table._values() if table.is_sparse else table], factor)


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
