"""The project itself, through its public classes. Variants: "" is S- (alpha 0); "s-plus" adds the contrastive loss."""

import skiprec  # noqa: F401, I001  first of all, as the commands do: it has a word on how torch is loaded

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import measuring
import torch
from measuring import BLOCKS, DROPOUT, FEED_FORWARD, HEADS, LEARNING_RATE, MAX_GRAD_NORM, WHOLE, B, D, N
from torch import Tensor

from skiprec.batches import Batch, batches
from skiprec.dataset import Dataset
from skiprec.device import settle
from skiprec.evaluation import Evaluator
from skiprec.model import ModelConfig
from skiprec.prepare import Manifest, PrepareConfig
from skiprec.train_config import TrainConfig
from skiprec.trainer import Trainer
from skiprec.training_loss import LossConfig


def dataset_in_memory(sessions: Tensor, items: int) -> Dataset:
    """Whole sessions as a dataset without files; a third of all plays is skipped."""
    is_skipped = torch.rand(sessions.shape, generator=torch.Generator().manual_seed(2)) < 1 / 3
    return Dataset(
        path=Path("bench"),
        manifest=Manifest(
            format=1,
            settings=dataclasses.asdict(PrepareConfig(min_length=WHOLE, max_length=WHOLE)),
            sources=[],
            counts={},
            dropped={},
            digests={"sessions": "", "items": "", "dataset": "bench"},
        ),
        items=sessions,
        skip_levels=torch.where(is_skipped, 2, 0).to(torch.int8),
        lengths=torch.full((len(sessions),), WHOLE),
        plays=torch.bincount(sessions[:, :-2].flatten(), minlength=items + 1),
        held_out_contexts=torch.zeros(len(sessions), 2, dtype=torch.int64),
        context_names=("none",),
    )


def config_of(task: measuring.Task) -> TrainConfig:
    """The work as a configuration."""
    with_skips = task.variant == "s-plus"
    return TrainConfig(
        learning_rate=LEARNING_RATE,
        batch_size=B,
        max_grad_norm=MAX_GRAD_NORM,
        threads=task.threads,
        model=ModelConfig(dim=D, n_layers=BLOCKS, n_heads=HEADS, feed_forward=FEED_FORWARD, dropout=DROPOUT),
        loss=LossConfig(
            alpha=0.5 if with_skips else 0.0,
            beta=0.5 if with_skips else 1.0,
            context="item",
            negatives="batch" if task.mode == "shared" else "session",
            n_negatives=N,
        ),
    )


def numbered_batches(trainer: Trainer) -> Iterator[tuple[int, Batch]]:
    """Epoch after epoch, as the trainer goes through them, without what stands around the steps."""
    while True:
        trainer.epoch += 1
        trainer.model.train()
        epoch = batches(trainer.sessions, B, seed=trainer.config.seed, epoch=trainer.epoch)
        yield from enumerate(epoch, start=1)


def main() -> None:
    """Measure what the command line asks for."""
    task = measuring.read_task()
    device = settle(task.device, task.threads)
    sessions = measuring.whole_sessions(task)
    # Candidates are drawn once for a dataset, at a cost that is no step's: for few sessions, whatever is measured.
    evaluator = Evaluator(dataset_in_memory(sessions[: measuring.N_EVALUATED], task.items), "val", device)
    trainer = Trainer(
        dataset_in_memory(sessions, task.items),
        config_of(task),
        device=device,
        evaluator=evaluator,
        show_progress=False,
    )
    if task.measure == "train":
        steps = numbered_batches(trainer)

        def step(_: int) -> int:
            number, batch = next(steps)
            trainer.step(batch, number)
            return len(batch.lengths)

        measuring.report(measuring.clock(step, task.seconds))
        return

    def evaluate(_: int) -> int:
        trainer.validate()
        return len(trainer.sessions.lengths)

    measuring.report(measuring.clock(evaluate, task.seconds), notes="21 input positions, all metrics by group")


if __name__ == "__main__":
    main()
