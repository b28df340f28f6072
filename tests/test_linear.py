"""Linear layers by oneDNN against torch's own, in float64: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skiprec.linear
from skiprec.linear import applied, is_onednn_there, linear, product, summed_products

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


@needs_onednn
@pytest.mark.parametrize(("shape", "n_calls"), [((5,), 3), ((40, 20), 3), ((1,), 3), ((0, 4), 0)])
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
def test_what_needs_no_gradient_gets_none(calls):
    x, weight = draws(5, 7).float(), draws(6, 7).float().requires_grad_()
    linear(x, weight).sum().backward()
    assert (x.grad, len(calls)) == (None, 2)
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


@needs_onednn
def test_transposed_views_and_parts_of_others(calls):
    a, b = draws(7, 5).float(), draws(6, 7).float()
    torch.testing.assert_close(product(a.t(), b), a.t() @ b.t())
    torch.testing.assert_close(product(b[2:], a.t()), b[2:] @ a)
    torch.testing.assert_close(product(a.t(), b[2:]), a.t() @ b[2:].t())
    torch.testing.assert_close(summed_products(a, b.t()), a.t() @ b.t())
    torch.testing.assert_close(summed_products(b.t(), a), b @ a)
    assert len(calls) == 5


@needs_onednn
def test_views_with_gaps_are_copied_first(calls):
    """Also a gradient that is one number for all."""
    a, b = draws(7, 12).float(), draws(6, 12, seed=2).float()
    torch.testing.assert_close(product(a[:, 3:8], b[:, :5]), a[:, 3:8] @ b[:, :5].t())
    torch.testing.assert_close(summed_products(a[:, 3:8], a[:, ::2]), a[:, 3:8].t() @ a[:, ::2])
    x, weight = a[:, :5].clone().requires_grad_(), b[:, 2:7].clone().requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(7, 5))
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(6, 5))
    assert len(calls) == 5
    assert all(m.is_contiguous() or m.t().is_contiguous() for args in calls for m in args[:2])


def test_a_layer_of_torch():
    layer, x = nn.Linear(7, 6), draws(3, 4, 7).float()
    torch.testing.assert_close(applied(layer, x), layer(x))


@pytest.mark.parametrize("function", [linear, product])
def test_other_numbers_and_other_machines_are_left_to_torch(function, calls, monkeypatch):
    x, weight, bias = draws(5, 7), draws(6, 7, seed=2), draws(6, seed=3)
    assert torch.equal(function(x, weight, bias), F.linear(x, weight, bias))
    monkeypatch.setattr(skiprec.linear, "is_onednn_there", lambda: False)
    x, weight, bias = x.float(), weight.float(), bias.float()
    assert torch.equal(function(x, weight, bias), F.linear(x, weight, bias))
    assert calls == []


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
