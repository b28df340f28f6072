"""The rows of the item table that one step touches: their values, and the sum of their gradients by item."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.schema import PADDING

# R rows of the table, D width, N ids of a step (repeats among them), n distinct ones.

Reader = Callable[[Int[Tensor, " N"], Float[Tensor, "N D"]], object]
"""Fills its second argument with the table's rows."""


@dataclass(frozen=True, slots=True)
class TouchedRows:
    """What a step read of the table, in the order in which it names items; nothing of size (R, D) is among it.

    The leading rows are differentiated by autograd, through `leading`; the gradients of the others are written by
    whoever works on them.
    """

    ids: Int[Tensor, " N"]
    values: Float[Tensor, "N D"]
    gradients: Float[Tensor, "N D"]
    leading: Float[Tensor, "L D"]
    """The first values, as a leaf of their own."""

    def of_others(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "n D"]:
        """Those of the values, or of the gradients, that are not leading."""
        return rows[len(self.leading) :]

    def gather_leading(self) -> None:
        """Put the gradient of the leading rows, known after the backward pass, beside the others'."""
        if self.leading.grad is None:  # the loss does not depend on them
            self.gradients[: len(self.leading)] = 0
        else:
            self.gradients[: len(self.leading)] = self.leading.grad


class Buffers:
    """Memory for the rows of a step, kept from one step to the next: page faults cost more than the arithmetic."""

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pair = torch.empty(2, 0, dim, dtype=dtype, device=device)
        self.summed = self.pair[0]

    def touch(self, read: Reader, leading: list[Tensor], others: Tensor) -> TouchedRows:
        """Read rows.

        Args:
            read: Where rows come from.
            leading: Item indices of any shape, whose rows autograd is to differentiate.
            others: Item indices whose gradients are written by hand.
        """
        ids = torch.cat([*(items.flatten() for items in leading), others.flatten()])
        if len(ids) > self.pair.shape[1]:
            self.pair = self.pair.new_empty(2, len(ids), self.pair.shape[2])
        values, gradients = self.pair[:, : len(ids)]
        read(ids, values)
        n_leading = len(ids) - others.numel()
        return TouchedRows(ids, values, gradients, values[:n_leading].clone().requires_grad_())

    def rows_for(self, n: int) -> Float[Tensor, "n D"]:
        """Memory for n summed rows."""
        if n > len(self.summed):
            self.summed = self.pair.new_empty(n, self.pair.shape[2])
        return self.summed[:n]


def table_gradient(
    touched: TouchedRows, shape: torch.Size, buffers: Buffers, *, sparse: bool
) -> tuple[Float[Tensor, "R D"], Float[Tensor, ""]]:
    """The gradient of the whole table, each row's sum taken in the same order always; and its squared norm.

    Padding's row is 0. On a CUDA device a sparse gradient has as many rows as there are ids, so that no shape depends
    on data: what is beyond the distinct ones is padding's row again.

    Args:
        touched: A step's rows, with all their gradients.
        shape: (R, D).
        buffers: Where the sums are put; the next step's take their place.
        sparse: Whether to give a coalesced sparse tensor of the touched rows, or a dense one.
    """
    rows, order, starts = distinct(touched.ids)
    gradients = touched.gradients
    out = buffers.rows_for(len(rows)) if sparse else buffers.rows_for(shape[0]).zero_()
    if gradients.device.type == "cpu" and gradients.dtype == torch.float32:
        from skiprec.row_kernels import over_rows, sum_rows

        squares = torch.empty(len(rows))
        ends = F.pad(starts, (0, 1), value=len(order))
        places = torch.arange(len(rows)) if sparse else rows
        over_rows(sum_rows, len(rows), order, ends, places, gradients, out, squares)
    else:
        summed = F.embedding_bag(order, gradients, starts, mode="sum")
        squares = summed.square().sum(1)
        out = out.copy_(summed) if sparse else out.index_copy_(0, rows, summed)
    # Rows ascend, so padding's are first; out[0] is the table's own row 0 where it is dense.
    is_item = rows[0] != PADDING
    out[0] *= is_item
    squares[0] *= is_item
    if sparse:
        out = torch.sparse_coo_tensor(rows[None], out, shape, check_invariants=False, is_coalesced=True)
    return out, squares.sum(dtype=torch.float64)


def distinct(ids: Int[Tensor, " N"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " N"], Int[Tensor, " n"]]:
    """The distinct ids, ascending; the places of all ids in that order; and where among these each one's start.

    On a CUDA device n is N, whatever the data: what is beyond the distinct ids is PADDING, starting at the end.
    """
    ordered, order = ids.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    if not ids.is_cuda:
        starts = is_first.nonzero().squeeze(1)
        return ordered[starts], order, starts
    number = is_first.cumsum(0) - 1
    places = torch.arange(len(ids), device=ids.device)
    starts = torch.full_like(ids, len(ids)).scatter_reduce_(0, number, places, "amin")
    return torch.full_like(ids, PADDING).scatter_reduce_(0, number, ordered, "amax"), order, starts
