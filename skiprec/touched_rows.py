"""The rows of the item table that one step touches: their values, and the sum of their gradients by item."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.device import has_kernels, use_huge_pages
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
    """Until they are written over."""
    gradients: Float[Tensor, "N D"]
    """In the memory of the values: of each row first the one is needed, then the other."""
    leading: Float[Tensor, "L D"]
    """The first values, as a leaf of their own."""

    def of_others(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "n D"]:
        """Those of the values, or of the gradients, that are not leading."""
        return rows[len(self.leading) :]

    def gather_leading(self) -> None:
        """Put the gradient of the leading rows, known after the backward pass, beside the others'. Padding has none."""
        leading = self.gradients[: len(self.leading)]
        if self.leading.grad is None:  # the loss does not depend on them
            leading.zero_()
        else:
            is_item = self.ids[: len(leading), None] != PADDING
            torch.mul(self.leading.grad, is_item, out=leading)


class Buffers:
    """Memory for the rows of a step, kept from one step to the next: page faults cost more than the arithmetic."""

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = torch.empty(0, dim, dtype=dtype, device=device)

    def touch(self, read: Reader, leading: list[Tensor], others: Tensor) -> TouchedRows:
        """Read rows.

        Args:
            read: Where rows come from.
            leading: Item indices of any shape, whose rows autograd is to differentiate.
            others: Item indices whose gradients are written by hand.
        """
        ids = torch.cat([*(items.flatten() for items in leading), others.flatten()])
        if len(ids) > len(self.rows):
            self.rows = use_huge_pages(self.rows.new_empty(len(ids), self.rows.shape[1]))
        rows = self.rows[: len(ids)]
        read(ids, rows)
        n_leading = len(ids) - others.numel()
        return TouchedRows(ids, rows, rows, rows[:n_leading].clone().requires_grad_())


@dataclass(frozen=True, slots=True)
class Groups:
    """Ids by the row that they name."""

    rows: Int[Tensor, " n"]
    """The distinct ids, ascending. On a CUDA device n is N whatever the data, and the last ones are PADDING again."""
    order: Int[Tensor, " N"]
    """The places of all ids, in the order of the rows."""
    edges: Int[Tensor, " n+1"]
    """Where in `order` the places of each row start and end."""


def group_ids(ids: Int[Tensor, " N"]) -> Groups:
    """Find the distinct ids, and where each one stands."""
    ordered, order = ids.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    if has_kernels(ids.device):
        starts = is_first.nonzero().squeeze(1)
        return Groups(ordered[starts], order, F.pad(starts, (0, 1), value=len(ids)))
    # As many as there are ids, so that no shape depends on data and nothing waits for the device.
    number = is_first.cumsum(0) - 1
    places = torch.arange(len(ids), device=ids.device)
    edges = ids.new_full((len(ids) + 1,), len(ids)).scatter_reduce_(0, number, places, "amin")
    return Groups(torch.full_like(ids, PADDING).scatter_reduce_(0, number, ordered, "amax"), order, edges)


def sums(groups: Groups, gradients: Float[Tensor, "N D"]) -> Float[Tensor, "n D"]:
    """The gradient of each row: the sum over its places, taken in the same order always."""
    return F.embedding_bag(groups.order, gradients, groups.edges[:-1], mode="sum")


def squared_norm(groups: Groups, gradients: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Of all rows' gradients, in float64."""
    if gradients.dtype == torch.float32 and has_kernels(gradients.device):
        from skiprec.row_kernels import over_rows, square_rows

        squares = torch.empty(len(groups.rows))
        over_rows(square_rows, len(groups.rows), groups.order, groups.edges, gradients, squares)
    elif has_gpu_kernels(gradients):
        from skiprec import gpu_kernels

        squares = gpu_kernels.square_rows((groups.rows, groups.order, groups.edges), gradients)
    else:
        squares = sums(groups, gradients).square().sum(1)
    return squares.sum(dtype=torch.float64)


def dense_squared_norm(gradient: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """Of a table's whole gradient, in float64: where ids are many and repeat, much less work than `squared_norm`."""
    return torch.linalg.vector_norm(gradient, dim=1).square().sum(dtype=torch.float64)


def sparse_gradient(touched: TouchedRows, shape: torch.Size) -> Float[Tensor, "R D"]:
    """The table's gradient as autograd gives a sparse embedding's: not coalesced, a value for each id."""
    return torch.sparse_coo_tensor(touched.ids[None], touched.gradients, shape, check_invariants=False)


def dense_gradient(touched: TouchedRows, groups: Groups, out: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """The table's gradient, in memory that is handed in."""
    out.zero_()
    if out.dtype == torch.float32 and has_kernels(out.device):
        from skiprec.row_kernels import over_rows, sum_rows

        over_rows(sum_rows, len(groups.rows), groups.rows, groups.order, groups.edges, touched.gradients, out)
        return out
    if has_gpu_kernels(out):
        from skiprec import gpu_kernels

        gpu_kernels.sum_rows((groups.rows, groups.order, groups.edges), touched.gradients, out)
        return out
    # Added, not copied: on a CUDA device padding is named again and again, with zeros.
    return out.index_add_(0, groups.rows, sums(groups, touched.gradients))


def has_gpu_kernels(table: Tensor) -> bool:
    """Whether the compiled loops of `gpu_kernels` serve this table."""
    return table.is_cuda and table.dtype == torch.float32 and has_triton()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed, as it is with PyTorch's CUDA builds for Linux."""
    return importlib.util.find_spec("triton") is not None
