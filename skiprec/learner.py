"""A model and what it learns with: one optimiser step, in memory that the next training of the same shape goes on with.

So a worker that trains one configuration after the other takes its memory once, and a GPU's step is captured once.
"""

import dataclasses
import functools
import gc
import threading
import weakref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.batches import Batch, training_sessions
from skiprec.captured_step import CapturedStep, is_half_free
from skiprec.dataset import Dataset, Sessions
from skiprec.device import has_kernels
from skiprec.errors import CheckpointError, ConfigError
from skiprec.model import SequenceEncoder
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
from skiprec.train_config import TrainConfig
from skiprec.training_loss import training_loss

DEFERRED_BELOW = 0.5
"""Share of touched rows from which dense fused Adam is the faster one."""


class Learner:
    """Learns from one dataset, by one configuration after the other, as long as `shape_of` is the same for all.

    Args:
        dataset: The prepared logs.
        config: The first configuration.
        device: From `device.settle`.

    Raises:
        ConfigError: If the catalogue is too small to draw negatives from.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, device: torch.device) -> None:
        if dataset.n_items <= dataset.max_length:
            raise ConfigError(
                f"{dataset.path}: the catalogue has {dataset.n_items} items and a session up to {dataset.max_length}, "
                "so there may be nothing to draw as a negative; expected more items"
            )
        self.dataset, self.config, self.device = dataset, config, device
        sessions = training_sessions(dataset, skip_threshold=config.skip_threshold, session_share=config.session_share)
        self.sessions = sessions.to(device)
        is_popular = config.loss.alpha > 0 and config.loss.negative_scope == "popular"
        self.plays_up_to = plays_up_to(self.sessions, dataset.n_items) if is_popular else None
        self.model = new_model(dataset, config).to(device)
        share = touched_share(config, dataset)
        self.defers = config.weight_decay == 0 and share < DEFERRED_BELOW
        reason = "weight decay moves every row" if config.weight_decay else f"a step touches {share:.0%} of its rows"
        self.optimizer_note = f"Adam, {'deferred' if self.defers else 'dense'} for the item table: {reason}"
        # On the device, as a captured step reads them there; fused Adam takes float32 on a GPU, any number elsewhere.
        rate_dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.zeros((), dtype=rate_dtype, device=device)
        self.loss_weights = self.model.items.weight.new_empty(2)
        """Alpha and beta."""
        self.optimizers = make_optimizers(self.model, config, defers=self.defers)
        self.buffers = Buffers(config.model.dim, self.model.items.weight.dtype, device)
        self.dense_gradient = None if self.defers else torch.empty_like(self.model.items.weight)
        self.draws = Draws(device)
        self.captured = CapturedStep(device, self.draws) if device.type == "cuda" else None
        self.is_broken = False
        """Whether a step was not done to its end: where it was being captured, no later one can be."""
        self._set(config)

    def begin(self, config: TrainConfig) -> None:
        """Forget all that was learnt, and be as one made for this configuration, which has the same shape."""
        for name, optimizer in self.optimizers.items():
            if name == "table":
                optimizer.forget()
                continue
            for moments in optimizer.state.values():
                for value in moments.values():
                    value.zero_()
        # Weights last: what an optimiser still has to make up for is no part of them.
        self.model.load_state_dict(new_model(self.dataset, config).state_dict())
        self.model.train()
        self._set(config)

    def _set(self, config: TrainConfig) -> None:
        self.config = config
        self.rate.fill_(config.learning_rate)
        for weight, value in zip(self.loss_weights, (config.loss.alpha, config.loss.beta), strict=True):
            weight.fill_(value)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.rate

    def step(self, batch: Batch, epoch: int, number: int) -> Float[Tensor, " 3"]:
        """One optimiser update. Returns loss, nll and nce in nats, still on the device, until the next update."""
        self.draws.start(self.config.seed, epoch, number)
        self.is_broken = True
        if self.captured is None or len(batch.lengths) != self.config.batch_size:
            result = self._step(batch)
        else:
            result = self.captured(batch, self._step, self._note_replay)
        self.is_broken = False
        return result

    def _note_replay(self) -> None:
        if self.defers:
            self.optimizers["table"].note_replay()

    def _step(self, batch: Batch) -> Float[Tensor, " 3"]:
        """What the device does of a step. On a GPU it is called for a few steps alone: see `CapturedStep`."""
        table = self.model.items.weight
        parts = training_loss(
            self.model,
            batch,
            self.config.loss,
            self.loss_weights,
            self.draws,
            self.read,
            self.buffers,
            self.plays_up_to,
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

    def flush(self) -> None:
        """Bring every row of the item table up to date."""
        if self.defers:
            self.optimizers["table"].flush()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; in use: a step changes it."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for key, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{key}/{index}/{name}": value for name, value in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
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
        self._set(self.config)  # torch.optim.Adam has taken a copy of the learning rate, which the next training frees


class Learners:
    """Keeps learners from one training to those after it, by shape. For one thread: the first that takes one.

    A training that is begun ends the one before. On a CPU, where no captured step is to be had again, the last one is
    kept; on a GPU as many as leave half of its memory free.
    """

    def __init__(self) -> None:
        self.kept: list[Learner] = []
        """The last one last."""
        self.thread: int | None = None

    def take(self, dataset: Dataset, config: TrainConfig, device: torch.device) -> Learner:
        """One for this configuration, as if nothing had been learnt with it before.

        Raises:
            ConfigError: As `Learner`.
            RuntimeError: In another thread than before, which may still be at work with what is kept.
        """
        self.thread = self.thread or threading.get_ident()
        if self.thread != threading.get_ident():
            raise RuntimeError("these learners are another thread's; make some for each")
        self.kept = [learner for learner in self.kept if not learner.is_broken]
        serving = [i for i, learner in enumerate(self.kept) if serves(learner, dataset, config, device)]
        if serving:
            self.kept.append(self.kept.pop(serving[0]))
            self.kept[-1].begin(config)
            return self.kept[-1]
        # Before the next one is made: their memory is free for it.
        while self.kept and not has_room(device):
            self._give_up_oldest()
        self.kept.append(Learner(dataset, config, device))
        return self.kept[-1]

    def _give_up_oldest(self) -> None:
        given_up = weakref.ref(self.kept.pop(0))
        if given_up() is not None:  # as part of a cycle: some import on the way leaves one
            gc.collect()


def has_room(device: torch.device) -> bool:
    """Whether one more learner may stand beside those that are kept."""
    return device.type == "cuda" and is_half_free(device)


def serves(learner: Learner, dataset: Dataset, config: TrainConfig, device: torch.device) -> bool:
    """Whether a learner that was made for another configuration can learn by this one."""
    is_same_place = learner.dataset is dataset and learner.device == device
    return is_same_place and shape_of(learner.config) == shape_of(config)


def shape_of(config: TrainConfig) -> TrainConfig:
    """The configuration without what may change in the midst of a learner's life: all else is built into its step."""
    loss = dataclasses.replace(config.loss, alpha=float(config.loss.alpha > 0), beta=1.0)
    return dataclasses.replace(
        config, seed=0, learning_rate=1.0, max_epochs=2, patience=0, only_targets="all", loss=loss
    )


def new_model(dataset: Dataset, config: TrainConfig) -> SequenceEncoder:
    """With its first weights, on the CPU: the same on every device."""
    with global_generator(config.seed, "weights"):
        return SequenceEncoder(config.model, dataset.n_items, dataset.max_length)


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
