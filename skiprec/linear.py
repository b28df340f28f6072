"""Linear layers by the faster of the two libraries for matrix products that PyTorch brings for the CPU.

PyTorch gives float32 products to MKL, which on CPUs that are not Intel's leaves out their widest instructions; its
other library, oneDNN, is twice as fast there.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# N rows, I numbers in, O numbers out.


def linear(
    x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*rows O"]:
    """As torch.nn.functional.linear, whose numbers it gives to rounding."""
    # An exported program is for other machines, and gets torch's own operation.
    if torch.compiler.is_exporting() or not has_onednn(x):
        return F.linear(x, weight, bias)
    return Linear.apply(x, weight, bias)


def applied(layer: nn.Linear, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
    """What a layer of torch's gives."""
    return linear(x, layer.weight, layer.bias)


class Linear(torch.autograd.Function):
    """A linear layer whose three products are oneDNN's."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
    ) -> Float[Tensor, "*rows O"]:
        """Weighted sums of each row's numbers, and the bias."""
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "*rows O"]) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x = product(rows, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, summed_products(rows, x.flatten(0, -2)), of_bias


def product(
    a: Float[Tensor, "N I"], b: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "N O"]:
    """Of each row with each row of the other, plus the bias. Either may be a transposed view."""
    if has_onednn(a):
        return torch.ops.mkldnn._linear_pointwise(dense(a), dense(b), bias, "none", [], "")
    return F.linear(a, b, bias)


def summed_products(a: Float[Tensor, "N O"], b: Float[Tensor, "N I"]) -> Float[Tensor, "O I"]:
    """Of each number with each number of the other's row, summed over the rows."""
    # The wider one second: oneDNN is slow where its first matrix has more rows than columns to go with.
    return product(b.t(), a.t()).t() if a.shape[1] > b.shape[1] else product(a.t(), b.t())


def dense(matrix: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """The matrix without gaps, by rows or by columns: any other view oneDNN takes too, and needs minutes for."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def has_onednn(x: Tensor) -> bool:
    """Whether oneDNN takes this tensor; it takes none without numbers."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and is_onednn_there()


@functools.cache
def is_onednn_there() -> bool:
    """Whether this PyTorch brings oneDNN, and the operation by which torch.compile calls it for linear layers."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
