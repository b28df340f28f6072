"""Linear layers by oneDNN, the other one of the two libraries for matrix products that PyTorch brings for the CPU.

PyTorch gives float32 products to MKL, which on CPUs that are not Intel's leaves out their widest instructions; oneDNN
is twice as fast there. On Intel's it was not measured.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skiprec.device import has_kernels

# N rows, I numbers in, O numbers out.

ROWS_WORTH_ONEDNN = 128
"""Fewer are done by MKL before oneDNN has begun: a request of one session has some twenty."""


def linear(
    x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*rows O"]:
    """As torch.nn.functional.linear, whose numbers it gives to rounding. It can be differentiated once."""
    is_large = x.numel() >= ROWS_WORTH_ONEDNN * x.shape[-1]
    # An exported program is for other machines, and gets torch's own operation.
    is_cast = torch.is_autocast_enabled(x.device.type)  # which is told of torch's own operations alone
    if torch.compiler.is_exporting() or is_cast or not is_large or not has_onednn(x):
        return F.linear(x, weight, bias)
    return Linear.apply(x, weight, bias)


def applied(layer: nn.Linear, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
    """What a layer of torch's gives."""
    return linear(x, layer.weight, layer.bias)


class Linear(torch.autograd.Function):
    """A linear layer whose products are oneDNN's, but for that of the weight's gradient: for that one both libraries
    first copy a matrix by columns."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
    ) -> Float[Tensor, "*rows O"]:
        """Weighted sums of each row's numbers, and the bias."""
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*rows O"]) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(rows, weight.t()).view(x.shape) if of_x else None,
            summed_products(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(
    a: Float[Tensor, "N I"], b: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "N O"]:
    """Of each row with each row of the other, plus the bias. Either may be a transposed view."""
    if not has_onednn(a):
        return F.linear(a, b, bias)
    # It reads a bias with gaps as if it had none.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, dense(b), bias, "none", [], "")


def summed_products(a: Float[Tensor, "N O"], b: Float[Tensor, "N I"]) -> Float[Tensor, "O I"]:
    """Of each number with each number of the other's row, summed over the rows."""
    if a.dtype != torch.float32 or not has_kernels(a.device):
        return a.t() @ b
    from skiprec.block_kernels import sum_products
    from skiprec.row_kernels import over_rows

    out = a.new_empty(a.shape[1], b.shape[1])
    over_rows(sum_products, len(out), a.contiguous(), b.contiguous(), out, worth_a_thread=1)
    return out


def dense(matrix: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """The matrix without gaps, by rows or by columns: with them oneDNN takes a thousand times as long."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def has_onednn(x: Tensor) -> bool:
    """Whether oneDNN takes this tensor; it takes none without numbers."""
    is_taken = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return is_taken and is_onednn_there() and torch.backends.mkldnn.enabled


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """All layers are MKL's meanwhile, as those of an exported program: to tell its mistakes from another rounding."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@functools.cache
def is_onednn_there() -> bool:
    """Whether this PyTorch brings oneDNN, and the operation by which torch.compile calls it for linear layers."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
