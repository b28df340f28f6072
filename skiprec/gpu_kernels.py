"""Loops over rows of the item table on a CUDA device, in Triton: there what `row_kernels` is on the CPU.

Torch's operations would read and write the rows once for each of a dozen of them. A row is one program's, which takes
its sums in the same order always. Imported where Triton is alone: PyTorch's CUDA builds for Linux bring it.
"""

import inspect
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.schema import PADDING

# R rows of a table, D width, N ids of a step (repeats among them), n groups of them, S slots: see `optimizer`.

NOTHING = tl.constexpr(PADDING)


def kernel(function: Callable) -> Callable:
    """Compile a function when it is first called for a device."""
    # Type checks put a wrapper around it, which Triton cannot compile.
    return triton.jit(inspect.unwrap(function))


@kernel
def drifted(at, c, inside, D: tl.constexpr):
    """Weights of now, and both moments as they were left, of the row at an address."""
    weights, first, second = tl.load(at, inside), tl.load(at + D, inside), tl.load(at + 2 * D, inside)
    A, B, E, F = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    u = tl.sqrt_rn(second)
    # Outside of the row there is no number to divide by.
    below = tl.where(inside, second + E * u + F, 1.0)
    return weights - tl.div_rn(first * (A * u + B), below), first, second


@kernel
def summed(gradients, order, start, stop, d, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """The gradient of one row, from all places that name it."""
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for j in range(start, stop):
        total += tl.load(gradients + tl.load(order + j) * D + d, inside, 0.0)
    return total


@kernel
def read_row(storage, slots, coefficients, rows, out, D: tl.constexpr, WIDTH: tl.constexpr):
    """A row of `DeferredAdam.read`."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    inside = d < D
    row = tl.load(rows + i)
    weights, _, _ = drifted(storage + row * 3 * D + d, coefficients + tl.load(slots + row) * 6, inside, D)
    tl.store(out + i * D + d, weights, inside)


@kernel
def update_row(
    storage,
    slots,
    slot,
    coefficients,
    rows,
    order,
    edges,
    gradients,
    factor,
    scale,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row of `DeferredAdam.step`."""
    i = tl.program_id(0)
    start, stop, row = tl.load(edges + i), tl.load(edges + i + 1), tl.load(rows + i)
    if (start < stop) & (row != NOTHING):
        d = tl.arange(0, WIDTH)
        inside = d < D
        g = summed(gradients, order, start, stop, d, inside, D, WIDTH)
        at, c = storage + row * 3 * D + d, coefficients + tl.load(slots + row) * 6
        weights, first, second = drifted(at, c, inside, D)
        m = first * (tl.load(c + 4) * beta1) + rest1 * g
        v = second * (tl.load(c + 5) * beta2) + rest2 * g * g
        below = tl.sqrt_rn(v) * tl.load(scale) + eps
        tl.store(at, weights - tl.div_rn(tl.load(factor) * m, below), inside)
        tl.store(at + D, m, inside)
        tl.store(at + 2 * D, v, inside)
        tl.store(slots + row, tl.load(slot) + 1)


@kernel
def sum_row(rows, order, edges, gradients, out, D: tl.constexpr, WIDTH: tl.constexpr):
    """A row of `touched_rows.dense_gradient`."""
    i = tl.program_id(0)
    start, stop, row = tl.load(edges + i), tl.load(edges + i + 1), tl.load(rows + i)
    if (start < stop) & (row != NOTHING):
        d = tl.arange(0, WIDTH)
        inside = d < D
        tl.store(out + row * D + d, summed(gradients, order, start, stop, d, inside, D, WIDTH), inside)


@kernel
def square_row(rows, order, edges, gradients, squares, D: tl.constexpr, WIDTH: tl.constexpr):
    """A row of `touched_rows.squared_norm`."""
    i = tl.program_id(0)
    start, stop, row = tl.load(edges + i), tl.load(edges + i + 1), tl.load(rows + i)
    square = 0.0
    if (start < stop) & (row != NOTHING):
        d = tl.arange(0, WIDTH)
        g = summed(gradients, order, start, stop, d, d < D, D, WIDTH)
        square = tl.sum(g * g)
    tl.store(squares + i, square)


def shape(D: int) -> dict[str, int]:
    """What every kernel is compiled for: the width, and the power of two that it fits in."""
    return {"D": D, "WIDTH": triton.next_power_of_2(D), "num_warps": 1}


def read_rows(
    storage: Float[Tensor, "R 3 D"],
    slots: Int[Tensor, " R"],
    coefficients: Float[Tensor, "S 6"],
    rows: Int[Tensor, " n"],
    out: Float[Tensor, "n D"],
) -> None:
    """`DeferredAdam.read`."""
    read_row[(len(rows),)](storage, slots, coefficients, rows, out, **shape(out.shape[1]))


def update_rows(
    storage: Float[Tensor, "R 3 D"],
    slots: Int[Tensor, " R"],
    slot: Int[Tensor, ""],
    coefficients: Float[Tensor, "S 6"],
    groups: tuple[Int[Tensor, " n"], Int[Tensor, " N"], Int[Tensor, " n+1"]],
    gradients: Float[Tensor, "N D"],
    factor: Float[Tensor, ""],
    scale: Float[Tensor, ""],
    betas: tuple[float, float],
    eps: float,
) -> None:
    """`DeferredAdam.step`, the slots with it; row 0 is padding, and left alone.

    Args:
        storage: Rows beside their moments.
        slots: Of all rows; those of the updated ones become the slot after the last.
        slot: The last.
        coefficients: Of `Drift`.
        groups: Distinct rows, the order of the ids, the edges in it.
        gradients: Of all ids.
        factor: Learning rate over the first moment's correction, in the table's dtype.
        scale: Root of one over the second moment's.
        betas: Of Adam.
        eps: Of Adam.
    """
    beta1, beta2 = betas
    update_row[(len(groups[0]),)](
        storage,
        slots,
        slot,
        coefficients,
        *groups,
        gradients,
        factor,
        scale,
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        eps,
        **shape(gradients.shape[1]),
    )


def sum_rows(
    groups: tuple[Int[Tensor, " n"], Int[Tensor, " N"], Int[Tensor, " n+1"]],
    gradients: Float[Tensor, "N D"],
    out: Float[Tensor, "R D"],
) -> None:
    """`touched_rows.dense_gradient`, into a table of zeros."""
    sum_row[(len(groups[0]),)](*groups, gradients, out, **shape(out.shape[1]))


def square_rows(
    groups: tuple[Int[Tensor, " n"], Int[Tensor, " N"], Int[Tensor, " n+1"]], gradients: Float[Tensor, "N D"]
) -> Float[Tensor, " n"]:
    """The squared norm of each row's gradient, for `touched_rows.squared_norm`."""
    squares = torch.empty(len(groups[0]), dtype=gradients.dtype, device=gradients.device)
    square_row[(len(squares),)](*groups, gradients, squares, **shape(gradients.shape[1]))
    return squares
