"""The rows that a step reads, and the sum of their gradients by item, against `index_add`."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import skiprec.touched_rows
from skiprec.optimizer import DeferredAdam
from skiprec.touched_rows import (
    Buffers,
    TouchedRows,
    dense_gradient,
    dense_squared_norm,
    group_ids,
    sparse_gradient,
    squared_norm,
    sums,
)

R, D = 50, 8
forms = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
NEAR = {torch.float64: 1e-13, torch.float32: 1e-6}
"""Relative to the largest sum: rounding of a few hundred additions."""


@pytest.fixture
def fixed_size(monkeypatch):
    """As on a CUDA device: no compiled loops, and no shape that depends on data."""
    monkeypatch.setattr(skiprec.touched_rows, "has_kernels", lambda device: False)


def buffers(dtype: torch.dtype = torch.float64, dim: int = D) -> Buffers:
    return Buffers(dim, dtype, torch.device("cpu"))


def a_table(dtype: torch.dtype = torch.float64, rows: int = R) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def reader(table: Tensor):
    return lambda ids, out: torch.index_select(table, 0, ids, out=out)


def touched_of(ids: Tensor, gradients: Tensor) -> TouchedRows:
    """As after a backward pass: a third of the rows leading, all gradients known, padding's 0."""
    gradients[ids == 0] = 0
    return TouchedRows(ids, torch.zeros_like(gradients), gradients, gradients[: len(ids) // 3])


def table_gradient(touched: TouchedRows, shape: torch.Size, *, sparse: bool) -> tuple[Tensor, Tensor]:
    """The gradient of the whole table and its squared norm, as a step puts them together."""
    groups = group_ids(touched.ids)
    gradients = touched.gradients
    out = torch.full(shape, 7, dtype=gradients.dtype)  # left by the step before
    if sparse:
        return sparse_gradient(touched, shape), squared_norm(groups, gradients)
    gradient = dense_gradient(touched, groups, out)
    return gradient, dense_squared_norm(gradient)


def random_gradients(n: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_ids(n: int, highest: int = R, seed: int = 3) -> Tensor:
    """Low ids far more often, 0 among them."""
    share = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (highest * share**3).long()


def by_index_add(ids: Tensor, gradients: Tensor, rows: int = R) -> tuple[Tensor, float]:
    """The dense sum in float64, with nothing for padding; and its squared norm."""
    total = torch.zeros(rows, D, dtype=torch.float64).index_add_(0, ids, gradients.double())
    total[0] = 0
    return total, total.square().sum().item()


def check(ids: Tensor, gradients: Tensor, *, sparse: bool, rows: int = R) -> Tensor:
    """Compare; returns the gradient as it is."""
    touched = touched_of(ids, gradients)
    before = gradients.clone()
    gradient, square = table_gradient(touched, torch.Size((rows, D)), sparse=sparse)
    assert torch.equal(gradients, before)
    total, square_of_total = by_index_add(ids, gradients, rows)
    near = NEAR[gradients.dtype]
    dense = gradient.to_dense() if sparse else gradient
    assert gradient.is_sparse == sparse
    assert dense.dtype == gradients.dtype
    assert dense.shape == (rows, D)
    assert (dense.double() - total).abs().max() <= near * max(1, total.abs().max().item())
    assert not dense[0].any()
    assert square.dtype == torch.float64
    assert square.item() == pytest.approx(square_of_total, rel=10 * near, abs=0)
    return gradient


@forms
@dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 100, 3000])
def test_rows_are_summed_by_item(sparse, dtype, n):
    check(random_ids(n), random_gradients(n, dtype), sparse=sparse)


@forms
@dtypes
@pytest.mark.parametrize("ids", [[5], [0], [49], [0, 0, 0], [5, 5, 5], [0, 5, 0]])
def test_one_id_and_only_padding_and_both(sparse, dtype, ids):
    check(torch.tensor(ids), random_gradients(len(ids), dtype), sparse=sparse)


@forms
@dtypes
def test_the_lowest_item_keeps_its_gradient_where_there_is_no_padding(sparse, dtype):
    gradient = check(torch.tensor([1, 2, 1]), random_gradients(3, dtype), sparse=sparse)
    assert gradient.to_dense()[1].all()


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, R - 1), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    sparse=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_rows_are_summed_by_item_whatever_the_ids(ids, seed, sparse, dtype):
    check(torch.tensor(ids), random_gradients(len(ids), dtype, seed=seed), sparse=sparse)


@forms
@dtypes
def test_the_bits_do_not_depend_on_the_number_of_threads(sparse, dtype):
    """Over 6,000 rows to be summed: enough for two threads and more to share them."""
    rows, n = 8000, 20_000
    ids, gradients = torch.cat([torch.arange(6000), random_ids(n - 6000, rows)]), random_gradients(n, dtype)
    given = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        gradient, square = table_gradient(touched_of(ids, gradients), torch.Size((rows, D)), sparse=sparse)
        given.append((gradient.to_dense(), square))
    torch.set_num_threads(1)
    check(ids, gradients, sparse=sparse, rows=rows)
    for gradient, square in given[1:]:
        assert torch.equal(gradient, given[0][0])
        assert torch.equal(square, given[0][1])


@dtypes
def test_the_order_of_summation_is_that_of_the_ids(dtype):
    """A large number, its opposite and a small one: only in this order is the small one left whole."""
    gradients = torch.tensor([1e20, -1e20, 1.0], dtype=dtype)[:, None].expand(3, D).contiguous()
    ids = torch.tensor([5, 5, 5])
    gradient, _ = table_gradient(touched_of(ids, gradients), torch.Size((R, D)), sparse=False)
    assert (gradient[5] == 1).all()
    assert (sums(group_ids(ids), gradients) == 1).all()


@dtypes
def test_rows_are_read_in_the_order_in_which_they_are_named_leading_ones_first(dtype):
    table = a_table(dtype)
    leading, others = [torch.tensor([[3, 1], [4, 0]]), torch.tensor([9])], torch.tensor([[[2, 6]], [[5, 3]]])
    touched = buffers(dtype).touch(reader(table), leading, others)
    assert touched.ids.tolist() == [3, 1, 4, 0, 9, 2, 6, 5, 3]
    assert torch.equal(touched.values, table[touched.ids])
    assert torch.equal(touched.leading, table[[3, 1, 4, 0, 9]])
    assert touched.leading.requires_grad
    assert touched.leading.is_leaf
    assert torch.equal(touched.of_others(touched.values), table[[2, 6, 5, 3]])
    assert touched.gradients.shape == touched.values.shape


def test_a_later_step_reads_afresh_whether_it_is_larger_or_smaller():
    table, own = a_table(), buffers()
    for n in (10, 11, 12, 6, 24, 10):
        touched = own.touch(reader(table), [torch.arange(n // 2)], torch.arange(n // 2, n))
        assert torch.equal(touched.values, table[:n])
        assert torch.equal(touched.leading, table[: n // 2])
        assert len(touched.gradients) == n
        touched.gradients.fill_(7)


def test_the_leading_gradient_is_put_beside_the_others():
    """From a backward pass; rows of the leading ones may be written to by whoever learns."""
    table = a_table()
    touched = buffers().touch(reader(table), [torch.tensor([3, 1])], torch.tensor([9, 2, 2]))
    touched.gradients.fill_(torch.nan)
    touched.of_others(touched.gradients).fill_(2.0)
    (touched.leading * torch.tensor([[1.0], [5.0]])).sum().backward()
    touched.gather_leading()
    assert touched.gradients[:, 0].tolist() == [1, 5, 2, 2, 2]
    assert touched.gradients[:, -1].tolist() == [1, 5, 2, 2, 2]
    gradient, _ = table_gradient(touched, table.shape, sparse=False)
    assert gradient[:, 0].nonzero().flatten().tolist() == [1, 2, 3, 9]
    assert gradient[[1, 2, 3, 9], 0].tolist() == [5, 4, 1, 2]


def test_leading_rows_that_the_loss_does_not_use_have_gradient_0():
    touched = buffers().touch(reader(a_table()), [torch.tensor([3, 1])], torch.tensor([9]))
    touched.gradients.fill_(torch.nan)
    touched.of_others(touched.gradients).fill_(2.0)
    touched.gather_leading()
    assert touched.gradients[:, 0].tolist() == [0, 0, 2]


def test_padding_has_no_gradient_whatever_the_loss_says():
    touched = buffers().touch(reader(a_table()), [torch.tensor([0, 3, 0])], torch.tensor([9]))
    touched.of_others(touched.gradients).fill_(2.0)
    (touched.leading * 1e6).sum().backward()
    touched.gather_leading()
    assert touched.gradients[:, 0].tolist() == [0, 1e6, 0, 2]


def test_groups_are_the_distinct_ids_and_their_places():
    groups = group_ids(torch.tensor([7, 3, 7, 0, 3, 7]))
    assert groups.rows.tolist() == [0, 3, 7]
    assert groups.order.tolist() == [3, 1, 4, 0, 2, 5]
    assert groups.edges.tolist() == [0, 1, 3, 6]


many_ids = given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=30))
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@often
@many_ids
def test_groups_are_numpys_unique(ids):
    groups = group_ids(torch.tensor(ids))
    expected, first, counts = np.unique(ids, return_index=True, return_counts=True)
    assert groups.rows.tolist() == expected.tolist()
    assert groups.order.tolist() == np.argsort(ids, kind="stable").tolist()
    assert groups.order[groups.edges[:-1]].tolist() == first.tolist()
    assert groups.edges.tolist() == [0, *np.cumsum(counts).tolist()]


@pytest.mark.usefixtures("fixed_size")
@often
@many_ids
def test_of_fixed_size_the_distinct_ids_are_followed_by_padding_up_to_the_number_of_ids(ids):
    groups = group_ids(torch.tensor(ids))
    distinct, counts = np.unique(ids, return_counts=True)
    beyond = len(ids) - len(distinct)
    assert groups.rows.tolist() == distinct.tolist() + [0] * beyond
    assert groups.edges.tolist() == [0, *np.cumsum(counts).tolist()] + [len(ids)] * beyond
    assert groups.order.tolist() == np.argsort(ids, kind="stable").tolist()


@pytest.mark.usefixtures("fixed_size")
@forms
@often
@given(ids=st.lists(st.integers(0, R - 1), min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_of_fixed_size_the_sum_is_the_same(sparse, ids, seed):
    check(torch.tensor(ids), random_gradients(len(ids), seed=seed), sparse=sparse)


def test_padding_rows_beyond_the_distinct_ones_move_nothing(monkeypatch):
    """The optimizer steps alike with groups of a fixed size and with those of the distinct rows."""
    tables = [torch.nn.Parameter(a_table()) for _ in range(2)]
    optimizers = [DeferredAdam([table]) for table in tables]
    for step in range(5):
        ids, gradients = random_ids(30, seed=step), random_gradients(30, seed=step)
        for is_fixed, table, optimizer in zip((False, True), tables, optimizers, strict=True):
            with monkeypatch.context() as patched:
                if is_fixed:
                    patched.setattr(skiprec.touched_rows, "has_kernels", lambda device: False)
                touched = touched_of(ids, gradients)
                table.grad = sparse_gradient(touched, table.shape)
                optimizer.step(groups=group_ids(ids))
    first, second = (optimizer.state_dict()["state"][0] for optimizer in optimizers)
    assert torch.allclose(tables[0], tables[1], rtol=0, atol=1e-15)
    assert torch.equal(tables[0][0], a_table()[0])
    assert torch.allclose(first["exp_avg_sq"], second["exp_avg_sq"], rtol=1e-14)
