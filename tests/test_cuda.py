"""The same code on a CUDA device: run where there is one."""

import pytest
import torch

from skiprec.checkpoint import weights_digest
from skiprec.config import from_flat
from skiprec.device import settle
from skiprec.trainer import Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
SETTINGS = {"dim": 32, "n_heads": 4, "n_negatives": 100, "max_epochs": 2, "patience": 1}


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_training_on_cuda_is_repeatable_and_starts_where_the_cpu_does(dataset, architecture):
    """Same seed, same device, same numbers; the initial weights are the CPU's."""
    config = from_flat(SETTINGS | {"architecture": architecture})
    device = settle("cuda", 1)
    first, second = (Trainer(dataset, config, device=device, show_progress=False) for _ in range(2))
    cpu = Trainer(dataset, config, device="cpu", show_progress=False)
    assert weights_digest(first.model.state_dict()) == weights_digest(cpu.model.state_dict())
    a, b = list(first.epochs()), list(second.epochs())
    assert [r.metrics for r in a] == [r.metrics for r in b]
    assert weights_digest(first.model.state_dict()) == weights_digest(second.model.state_dict())


def test_a_run_resumed_on_cuda_goes_on_bit_for_bit(dataset):
    """One epoch, its state into a fresh trainer, one more: the weights of two epochs in one go."""
    config = from_flat(SETTINGS)
    device = settle("cuda", 1)
    whole, half, rest = (Trainer(dataset, config, device=device, show_progress=False) for _ in range(3))
    list(whole.epochs())
    next(half.epochs())
    rest.restore(*half.state())
    list(rest.epochs())
    assert weights_digest(whole.model.state_dict()) == weights_digest(rest.model.state_dict())
