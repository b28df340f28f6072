"""On a GPU nothing in a step waits for the host, or has a shape that depends on data: shown without one.

Fake tensors have shapes and no values. Whatever asks one for a value, as `.item()`, `nonzero` and branches do, raises.
"""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from skiprec import encoder_block, learner, negatives, optimizer, sampled_softmax, touched_rows
from skiprec.batches import Batch
from skiprec.learner import clip_gradients
from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.negatives import SCOPES
from skiprec.optimizer import DeferredAdam
from skiprec.randomness import Draws
from skiprec.touched_rows import Buffers, group_ids, sparse_gradient, squared_norm
from skiprec.training_loss import LossConfig, training_loss

B, T, D = 4, 6, 8


def one_step(architecture: str, mode: str, scope: str, alpha: float, precision: str = "float32") -> None:
    """As `Learner.step` does it where updates are deferred, twice."""
    config = ModelConfig(
        architecture=architecture,
        dim=D,
        n_layers=1,
        n_heads=2,
        feed_forward=D,
        init="torch",
        skip_input=True,
        precision=precision,
    )
    model = SequenceEncoder(config, 50, T)
    table, *rest = model.parameters()
    optimizers = DeferredAdam([table]), torch.optim.Adam(rest, fused=True)
    for adam in optimizers:
        adam.param_groups[0]["lr"] = torch.full((), 0.001)
    items = torch.randint(1, 51, (B, T))
    batch = Batch(items, torch.randint(4, (B, T), dtype=torch.int8), torch.rand(B, T) < 0.5, torch.full((B,), T))
    loss = LossConfig(alpha=alpha, negatives=mode, negative_scope=scope, n_negatives=5, skipped_target_weight=0.5)
    buffers, plays = Buffers(D, torch.float32, items.device), torch.arange(51)
    draws = Draws(items.device)
    for step in (1, 2):
        parts = training_loss(
            model,
            batch,
            loss,
            torch.tensor([alpha, 0.5]),
            draws.start(1, 1, step),
            lambda ids, out: optimizers[0].read(table, ids, out),
            buffers,
            plays,
        )
        parts.loss.backward()
        parts.touched.gather_leading()
        groups = group_ids(parts.touched.ids)
        table.grad = sparse_gradient(parts.touched, table.shape)
        clip_gradients(model, squared_norm(groups, parts.touched.gradients), 5.0)
        optimizers[0].step(groups=groups)
        optimizers[1].step()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    for module in (encoder_block, negatives, optimizer, sampled_softmax, touched_rows, learner):
        monkeypatch.setattr(module, "has_kernels", lambda device: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("architecture", "mode", "scope", "alpha"),
    [
        *itertools.product(("unidirectional", "bidirectional"), ("session", "batch", "full"), ["session"], (0.0, 0.5)),
        *itertools.product(("unidirectional", "bidirectional"), ["session"], SCOPES, [0.5]),
    ],
)
def test_a_step_asks_for_no_value(architecture, mode, scope, alpha):
    with FakeTensorMode():
        one_step(architecture, mode, scope, alpha)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_a_step_in_bfloat16_asks_for_no_value(architecture):
    with FakeTensorMode():
        one_step(architecture, "session", "session", 0.5, "bfloat16")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_that_did_would_be_seen(monkeypatch):
    monkeypatch.setattr(learner, "has_kernels", lambda device: True)
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        one_step("unidirectional", "session", "session", 0.0)
