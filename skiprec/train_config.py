"""How one model is trained: what the settings of a run become."""

from dataclasses import dataclass, field
from typing import Literal

from skiprec.model import ModelConfig
from skiprec.training_loss import LossConfig


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
