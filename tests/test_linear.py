"""Linear layers by oneDNN against torch's own, in float64: values and gradients."""

import itertools
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skiprec.linear
from skiprec.linear import ROWS_WORTH_ONEDNN, applied, is_onednn_there, linear, product, summed_products, without_onednn
from skiprec.model import ModelConfig, SequenceEncoder

needs_onednn = pytest.mark.skipif(not is_onednn_there(), reason="this PyTorch brings no oneDNN")


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch):
    """What oneDNN was asked."""
    if not is_onednn_there():
        return []
    real, made = torch.ops.mkldnn._linear_pointwise, []
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: made.append(args) or real(*args))
    return made


@pytest.fixture
def few(monkeypatch):
    """Few rows are for oneDNN, too."""
    monkeypatch.setattr(skiprec.linear, "ROWS_WORTH_ONEDNN", 1)


@pytest.mark.skipif((platform.machine(), platform.system()) != ("x86_64", "Linux"), reason="other builds of PyTorch")
def test_onednn_is_there_where_it_was():
    """Or all would go on by MKL, and nobody would hear of it."""
    assert is_onednn_there()


EDGE = ROWS_WORTH_ONEDNN


@needs_onednn
@pytest.mark.parametrize(
    ("shape", "n_calls"), [((EDGE,), 2), ((40, 20), 2), ((EDGE - 1,), 0), ((5, 3), 0), ((0, 4), 0), ((), 0)]
)
@pytest.mark.parametrize("wide", [6, 9])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape, n_calls, wide, has_bias, calls):
    x, weight, bias = draws(*shape, 7), draws(wide, 7, seed=2), draws(wide, seed=3) if has_bias else None
    by_output = draws(*shape, wide, seed=4)
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias) if t is not None]
        output = function(*leaves)
        output.backward(by_output.to(dtype))
        results.append([output, *(leaf.grad for leaf in leaves)])
    assert len(calls) == n_calls
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@needs_onednn
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_what_needs_no_gradient_gets_none(wanted, calls):
    leaves = [draws(5, 7).float(), draws(6, 7).float(), draws(6).float()]
    for leaf, is_wanted in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(is_wanted)
    output = linear(*leaves)
    assert output.requires_grad == any(wanted)
    if any(wanted):
        output.sum().backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == wanted
    assert len(calls) == 1 + wanted[0]
    with torch.no_grad():
        assert not linear(*leaves).requires_grad


@needs_onednn
@pytest.mark.usefixtures("few")
def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight = draws(5, 7).float().requires_grad_(), draws(6, 7).float().requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@needs_onednn
def test_transposed_views_and_parts_of_others(calls):
    a, b = draws(7, 5).float(), draws(6, 7).float()
    torch.testing.assert_close(product(a.t(), b), a.t() @ b.t())
    torch.testing.assert_close(product(b[2:], a.t()), b[2:] @ a)
    torch.testing.assert_close(product(a.t(), b[2:]), a.t() @ b[2:].t())
    torch.testing.assert_close(summed_products(a, b.t()), a.t() @ b.t())
    torch.testing.assert_close(summed_products(b.t(), a), b @ a)
    torch.testing.assert_close(summed_products(b.t().double(), a.double()), (b @ a).double())
    assert len(calls) == 3


@needs_onednn
@pytest.mark.usefixtures("few")
def test_views_with_gaps_are_read_right_and_the_second_matrix_is_copied_first(calls):
    """Also a gradient that is one number for all."""
    a, b = draws(7, 12).float(), draws(6, 12, seed=2).float()
    bias = draws(6, 2).float()
    torch.testing.assert_close(product(a, b, bias[:, 0]), a @ b.t() + bias[:, 0])
    torch.testing.assert_close(product(a, b, torch.ones(1).expand(6)), a @ b.t() + 1)
    torch.testing.assert_close(product(a[:, 3:8], b[:, :5]), a[:, 3:8] @ b[:, :5].t())
    torch.testing.assert_close(summed_products(a[:, 3:8], a[:, ::2]), a[:, 3:8].t() @ a[:, ::2])
    x, weight = a[:, :5].clone().requires_grad_(), b[:, 2:7].clone().requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(7, 5))
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(6, 5))
    assert len(calls) == 5
    assert all(second.is_contiguous() or second.t().is_contiguous() for _, second, *_ in calls)


def test_a_layer_of_torch():
    layer, x = nn.Linear(7, 6), draws(3, 4, 7).float()
    torch.testing.assert_close(applied(layer, x), layer(x))


@needs_onednn
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("n_layers", [1, 3])
def test_all_layers_of_the_encoder_are_onednns(n_layers, calls, monkeypatch):
    """Of one that is not trained, four a block and the head; and the numbers are MKL's."""
    torch.manual_seed(1)
    config = ModelConfig(dim=16, n_heads=2, feed_forward=24, n_layers=n_layers, dropout=0.0)
    model = SequenceEncoder(config, 30, 8)
    sessions, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    results = []
    model.eval()
    for is_there in (True, False):
        monkeypatch.setattr(skiprec.linear, "is_onednn_there", lambda is_there=is_there: is_there)
        results.append([model(sessions, lengths)])
    assert len(calls) == 4 * n_layers + 1
    assert {args[2] is None for args in calls} == {False}
    for by_onednn, by_mkl in zip(*results, strict=True):
        torch.testing.assert_close(by_onednn, by_mkl, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("function", [linear, product])
def test_other_numbers_and_other_machines_are_left_to_torch(function, calls, monkeypatch):
    x, weight, bias = draws(5, 7), draws(6, 7, seed=2), draws(6, seed=3)
    assert torch.equal(function(x, weight, bias), F.linear(x, weight, bias))
    x, weight, bias = x.float(), weight.float(), bias.float()
    with without_onednn():
        assert torch.equal(function(x, weight, bias), F.linear(x, weight, bias))
    monkeypatch.setattr(skiprec.linear, "is_onednn_there", lambda: False)
    assert torch.equal(function(x, weight, bias), F.linear(x, weight, bias))
    assert calls == []


@needs_onednn
@pytest.mark.usefixtures("few")
def test_onednn_is_back_after_an_error(calls):
    with pytest.raises(ZeroDivisionError), without_onednn():
        _ = 1 / 0
    linear(draws(5, 7).float(), draws(6, 7, seed=2).float())
    assert len(calls) == 1


@pytest.mark.usefixtures("few")
def test_an_exported_program_has_torchs_own_operation(calls):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 6)

        def forward(self, x):
            return applied(self.layer, x)

    program = torch.export.export(Model(), (draws(3, 4, 7).float(),))
    assert "aten.linear" in str(program.graph)
    assert calls == []
