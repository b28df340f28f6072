"""The same code on a CUDA device: run where there is one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import skiprec.captured_step
import skiprec.learner
import skiprec.touched_rows
from skiprec.checkpoint import weights_digest
from skiprec.config import from_flat
from skiprec.device import own_stream, settle
from skiprec.learner import Learners
from skiprec.losses import sampled_softmax_nll
from skiprec.optimizer import DeferredAdam
from skiprec.sampled_softmax import SampledSoftmax
from skiprec.touched_rows import group_ids, has_triton, squared_norm
from skiprec.trainer import Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
# Of 120 sessions: seven full steps an epoch, of which the first three are warm-up, and one of 8 sessions.
SETTINGS = {"dim": 32, "n_heads": 4, "n_negatives": 4, "batch_size": 16, "max_epochs": 3, "patience": 1}


@pytest.fixture
def device():
    return settle("cuda", 1)


def trained(dataset, device, learners=None, **settings) -> tuple[list, str, Trainer]:
    """Metrics of all epochs, the weights' digest, and who trained."""
    trainer = Trainer(dataset, from_flat(SETTINGS | settings), device=device, learners=learners, show_progress=False)
    metrics = [result.metrics for result in trainer.epochs()]
    return metrics, weights_digest(trainer.model.state_dict()), trainer


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
def test_training_on_cuda_is_repeatable_and_starts_where_the_cpu_does(dataset, device, architecture):
    """Same seed, same device, same numbers; the initial weights are the CPU's."""
    config = from_flat(SETTINGS | {"architecture": architecture})
    on_gpu, on_cpu = (Trainer(dataset, config, device=d, show_progress=False) for d in (device, "cpu"))
    assert weights_digest(on_gpu.model.state_dict()) == weights_digest(on_cpu.model.state_dict())
    assert (
        trained(dataset, device, architecture=architecture)[:2]
        == trained(dataset, device, **{"architecture": architecture})[:2]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"architecture": "bidirectional", "context": "session"},
        {"negatives": "batch", "n_negatives": 20},
        {"negatives": "full"},
        {"weight_decay": 0.01},
        {"n_negatives": 100},
        *({"negative_scope": scope} for scope in ("random", "popular", "in_batch", "other_session")),
    ],
    ids=str,
)
def test_a_captured_step_is_the_step_that_was_captured(dataset, device, monkeypatch, settings):
    """With the graph and without it: the same metrics and the same weights, bit for bit."""
    metrics, digest, trainer = trained(dataset, device, **settings)
    assert trainer.learner.captured.graph is not None
    monkeypatch.setattr(skiprec.captured_step, "WARM_UP_STEPS", 10**9)
    plain_metrics, plain_digest, plain = trained(dataset, device, **settings)
    assert plain.learner.captured.graph is None
    assert plain_metrics == metrics
    assert plain_digest == digest


def test_one_captured_step_serves_trainings_of_the_same_shape(dataset, device):
    """Other seeds, learning rates, alphas and betas by the same graph: bit for bit what each is with its own."""
    changes = [{}, {"seed": 2}, {"learning_rate": 0.02}, {"alpha": 0.9}, {"beta": 0.1}, {}]
    learners, graphs = Learners(), set()
    for c in changes:
        expected = trained(dataset, device, **c)[:2]
        metrics, digest, trainer = trained(dataset, device, learners, **c)
        assert (metrics, digest) == expected
        graphs.add(trainer.learner.captured.graph)
    assert len(graphs) == 1
    assert None not in graphs


def test_a_training_after_a_resumed_one_has_its_own_learning_rate(dataset, device):
    """A step that is captured after a restore reads what the next training sets."""
    learners, config = Learners(), from_flat(SETTINGS | {"seed": 3})
    first, resumed = (Trainer(dataset, config, device=device, learners=learners, show_progress=False) for _ in range(2))
    next(first.epochs())
    tensors, values = first.state()
    resumed.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    list(resumed.epochs())
    assert resumed.learner.captured.graph is not None
    for rate in (0.02, 0.0005):
        used = trained(dataset, device, learners, learning_rate=rate)
        assert used[2].learner is resumed.learner
        assert used[:2] == trained(dataset, device, learning_rate=rate)[:2]


def test_a_step_after_one_that_could_not_be_captured_is_captured(dataset, device, monkeypatch):
    """The thread is on its own stream again, and the next training has a learner that works."""
    learners, before = Learners(), torch.cuda.current_stream()
    with monkeypatch.context() as changed:
        changed.setattr(skiprec.learner, "group_ids", lambda ids: ids.tolist())  # waits, which a capture may not
        changed.setattr(skiprec.captured_step, "WARM_UP_STEPS", 0)
        with pytest.raises(RuntimeError):
            trained(dataset, device, learners)
    assert torch.cuda.current_stream() == before
    used = trained(dataset, device, learners)
    assert used[2].learner.captured.graph is not None
    assert used[:2] == trained(dataset, device)[:2]


def test_trainings_side_by_side_on_one_device_are_what_each_is_alone(dataset, device):
    """Three in threads, on streams of their own, each with a graph: metrics and weights bit for bit."""
    changes = [{"seed": 1}, {"seed": 2, "alpha": 0.0}, {"seed": 3, "negatives": "batch", "n_negatives": 20}]

    def beside(changes):
        with own_stream(device):
            metrics, digest, trainer = trained(dataset, device, **changes)
        assert trainer.learner.captured.graph is not None
        return metrics, digest

    alone = [trained(dataset, device, **c)[:2] for c in changes]
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(beside, changes)) == alone


def test_a_run_on_cuda_is_near_the_same_run_on_the_cpu(dataset, device):
    """Dropout and negatives are other draws there, so over the epochs the losses are alike, not equal."""
    on_gpu, on_cpu = (trained(dataset, d, dropout=0.0, n_negatives=50)[0] for d in (device, "cpu"))
    for gpu, cpu in zip(on_gpu, on_cpu, strict=False):
        assert gpu["train/loss"] == pytest.approx(cpu["train/loss"], rel=0.05)
        assert gpu["val/nll"] == pytest.approx(cpu["val/nll"], rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.01}], ids=str)
def test_a_run_resumed_on_cuda_goes_on_bit_for_bit(dataset, device, settings):
    """One epoch, its state into a fresh trainer and into one that trained on: the weights of all epochs in one go."""
    config = from_flat(SETTINGS | settings)
    whole, half, rest = (Trainer(dataset, config, device=device, show_progress=False) for _ in range(3))
    list(whole.epochs())
    next(half.epochs())
    tensors, values = half.state()
    state = {name: tensor.clone() for name, tensor in tensors.items()}, values
    rest.restore(*state)
    list(half.epochs())
    half.restore(*state)
    for trainer in (rest, half):
        list(trainer.epochs())
        assert weights_digest(whole.model.state_dict()) == weights_digest(trainer.model.state_dict())


@pytest.mark.parametrize("triton", [True, False])
def test_deferred_adam_is_adam(device, monkeypatch, triton):
    """300 steps, some rows untouched for 1, 10 and 200 of them: torch.optim.Adam within 1e-3 of how far a row went."""
    if triton and not has_triton():
        pytest.skip("needs Triton, and it is not installed")
    monkeypatch.setattr(skiprec.touched_rows, "has_triton", lambda: triton)
    R, D = 400, 24
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(R, D, generator=generator) * 0.02
    start[0] = 0
    tables = [torch.nn.Parameter(start.clone().to(device)) for _ in range(2)]
    deferred, dense = DeferredAdam([tables[0]], lr=0.01, max_deferred=64), torch.optim.Adam([tables[1]], lr=0.01)
    for step in range(300):
        ids = torch.randint(0, 100, (60,), generator=generator)
        ids[:20] += 100 * (step % 2 == 0) + 200 * (step % 11 == 0)
        ids[20] = 390 + (step // 200)
        gradients = torch.randn(60, D, generator=generator) * (ids != 0)[:, None]
        ids, gradients = ids.to(device), gradients.to(device)
        tables[0].grad = torch.sparse_coo_tensor(ids[None], gradients, (R, D), check_invariants=False)
        tables[1].grad = torch.zeros(R, D, device=device).index_add_(0, ids, gradients)
        deferred.step()
        dense.step()
    read = deferred.read(tables[0], torch.arange(R, device=device), torch.empty(R, D, device=device))
    deferred.flush()
    moved = (tables[1] - start.to(device)).abs().amax()
    assert moved > 0.1
    for found in (tables[0], read):
        assert ((found - tables[1]).abs().amax() / moved).item() < 1e-3


def test_kernels_sum_what_torch_sums(device, monkeypatch):
    """Norms and dense gradients of ids with many repeats, against torch's operations in float64."""
    ids = torch.randint(0, 50, (1000,), device=device)
    gradients = torch.randn(1000, 40, device=device) * (ids != 0)[:, None]
    groups = group_ids(ids)
    expected = torch.zeros(60, 40, device=device, dtype=torch.float64).index_add_(0, ids, gradients.double())
    touched = skiprec.touched_rows.TouchedRows(ids, gradients, gradients, gradients[:0])
    dense = skiprec.touched_rows.dense_gradient(touched, groups, torch.full((60, 40), 7.0, device=device))
    torch.testing.assert_close(dense.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squared_norm(groups, gradients), expected.square().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_fused_loss_is_the_plain_one(device, is_shared):
    """Value and gradients, against autograd through `losses.sampled_softmax_nll` in float64."""
    B, P, N, D = 8, 6, 50, 16
    generator = torch.Generator().manual_seed(1)
    predicted, target = (torch.randn(B, P, D, generator=generator).to(device).requires_grad_() for _ in range(2))
    negatives = torch.randn(1 if is_shared else B, N, D, generator=generator).to(device)
    mask = (torch.rand(B, P, generator=generator) < 0.7).to(device)
    real = (torch.rand(B, N, generator=generator) < 0.9).to(device) if is_shared else None
    filled = torch.empty_like(negatives)
    loss, _ = SampledSoftmax.apply(
        predicted, target, negatives.clone(), filled, mask.float(), real, None, torch.ones((), device=device)
    )
    loss.backward()
    plain = [x.detach().double().requires_grad_() for x in (predicted, target, negatives)]
    expected = sampled_softmax_nll(
        plain[0], plain[1], plain[2].expand(B, -1, -1), position_mask=mask, negative_mask=real
    )
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for found, reference in zip((predicted.grad, target.grad, filled), plain, strict=True):
        torch.testing.assert_close(found.double(), reference.grad, rtol=1e-4, atol=1e-6)
