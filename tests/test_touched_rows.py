"""The rows that a step reads, and the sum of their gradients by item, against `index_add`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skiprec.optimizer import DeferredAdam
from skiprec.touched_rows import Buffers, TouchedRows, distinct, table_gradient

R, D = 50, 8
forms = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
NEAR = {torch.float64: 1e-13, torch.float32: 1e-6}
"""Relative to the largest sum: rounding of a few hundred additions."""


class OnCuda(Tensor):
    """A tensor on the CPU that says it is on a CUDA device, so that what runs there is tested here."""

    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # what is made of it is a plain tensor


def buffers(dtype: torch.dtype = torch.float64, dim: int = D) -> Buffers:
    return Buffers(dim, dtype, torch.device("cpu"))


def a_table(dtype: torch.dtype = torch.float64, rows: int = R) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def reader(table: Tensor):
    return lambda ids, out: torch.index_select(table, 0, ids, out=out)


def touched_of(ids: Tensor, gradients: Tensor, *, on_cuda: bool = False) -> TouchedRows:
    """As after a backward pass: a third of the rows leading, all gradients known."""
    return TouchedRows(
        ids.as_subclass(OnCuda) if on_cuda else ids, torch.zeros_like(gradients), gradients, gradients[: len(ids) // 3]
    )


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


def check(ids: Tensor, gradients: Tensor, *, sparse: bool, own: Buffers | None = None, rows: int = R) -> Tensor:
    """Compare; returns the gradient as it is."""
    own = own or buffers(gradients.dtype)
    before = gradients.clone()
    gradient, square = table_gradient(touched_of(ids, gradients), torch.Size((rows, D)), own, sparse=sparse)
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


@dtypes
def test_the_sparse_form_holds_the_touched_rows_in_ascending_order_each_once(dtype):
    ids = torch.tensor([7, 3, 7, 0, 49, 3, 7])
    gradient = check(ids, random_gradients(7, dtype), sparse=True)
    assert gradient.is_coalesced()
    assert gradient.indices().tolist() == [[0, 3, 7, 49]]
    assert gradient.sparse_dim() == 1
    assert gradient.values().shape == (4, D)


@forms
@dtypes
@pytest.mark.parametrize("ids", [[5], [0], [49], [0, 0, 0], [5, 5, 5], [0, 5, 0]])
def test_one_id_and_only_padding_and_both(sparse, dtype, ids):
    check(torch.tensor(ids), random_gradients(len(ids), dtype), sparse=sparse)


@forms
@dtypes
def test_paddings_gradient_is_in_neither_the_table_nor_the_norm(sparse, dtype):
    gradients = random_gradients(3, dtype)
    gradients[0] = 1e6
    ids = torch.tensor([0, 4, 9])
    gradient, square = table_gradient(touched_of(ids, gradients), torch.Size((R, D)), buffers(dtype), sparse=sparse)
    assert not gradient.to_dense()[0].any()
    assert square.item() == pytest.approx(gradients[1:].double().square().sum().item(), rel=1e-6)


@forms
@dtypes
def test_the_lowest_item_keeps_its_gradient_where_there_is_no_padding(sparse, dtype):
    gradient = check(torch.tensor([1, 2, 1]), random_gradients(3, dtype), sparse=sparse)
    assert gradient.to_dense()[1].all()


@forms
@dtypes
def test_what_steps_before_have_left_does_not_show(sparse, dtype):
    """Memory is kept from step to step: a large one, a small one, then one that needs more than ever."""
    own = buffers(dtype)
    for step, n in enumerate([200, 10, 1, 400, 10]):
        check(random_ids(n, seed=step), random_gradients(n, dtype, seed=step), sparse=sparse, own=own)


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
        gradient, square = table_gradient(
            touched_of(ids, gradients), torch.Size((rows, D)), buffers(dtype), sparse=sparse
        )
        given.append((gradient.to_dense(), square))
    torch.set_num_threads(1)
    check(ids, gradients, sparse=sparse, rows=rows)
    for gradient, square in given[1:]:
        assert torch.equal(gradient, given[0][0])
        assert torch.equal(square, given[0][1])


@forms
@dtypes
def test_the_order_of_summation_is_that_of_the_ids(sparse, dtype):
    """A large number, its opposite and a small one: only in this order is the small one left whole."""
    gradients = torch.tensor([1e20, -1e20, 1.0], dtype=dtype)[:, None].expand(3, D).contiguous()
    gradient, _ = table_gradient(
        touched_of(torch.tensor([5, 5, 5]), gradients), torch.Size((R, D)), buffers(dtype), sparse=sparse
    )
    assert (gradient.to_dense()[5] == 1).all()


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
    gradient, _ = table_gradient(touched, table.shape, buffers(), sparse=False)
    assert gradient[:, 0].nonzero().flatten().tolist() == [1, 2, 3, 9]
    assert gradient[[1, 2, 3, 9], 0].tolist() == [5, 4, 1, 2]


def test_leading_rows_that_the_loss_does_not_use_have_gradient_0():
    touched = buffers().touch(reader(a_table()), [torch.tensor([3, 1])], torch.tensor([9]))
    touched.gradients.fill_(torch.nan)
    touched.of_others(touched.gradients).fill_(2.0)
    touched.gather_leading()
    assert touched.gradients[:, 0].tolist() == [0, 0, 2]


def test_distinct_ids_their_places_and_their_starts():
    rows, order, starts = distinct(torch.tensor([7, 3, 7, 0, 3, 7]))
    assert rows.tolist() == [0, 3, 7]
    assert order.tolist() == [3, 1, 4, 0, 2, 5]
    assert starts.tolist() == [0, 1, 3]


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_distinct_is_numpys_unique(ids):
    rows, order, starts = distinct(torch.tensor(ids))
    expected, first, counts = np.unique(ids, return_index=True, return_counts=True)
    assert rows.tolist() == expected.tolist()
    assert order.tolist() == np.argsort(ids, kind="stable").tolist()
    assert order[starts].tolist() == first.tolist()
    assert starts.tolist() == (np.cumsum(counts) - counts).tolist()


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_on_cuda_the_distinct_ids_are_followed_by_padding_up_to_the_number_of_ids(ids):
    rows, order, starts = distinct(torch.tensor(ids).as_subclass(OnCuda))
    some_rows, same_order, some_starts = distinct(torch.tensor(ids))
    beyond = len(ids) - len(some_rows)
    assert rows.tolist() == some_rows.tolist() + [0] * beyond
    assert starts.tolist() == some_starts.tolist() + [len(ids)] * beyond
    assert torch.equal(order, same_order)


@forms
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, R - 1), min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_on_cuda_the_sum_is_the_same_in_a_fixed_number_of_rows(sparse, ids, seed):
    ids, gradients = torch.tensor(ids), random_gradients(len(ids), seed=seed)
    touched = touched_of(ids, gradients, on_cuda=True)
    gradient, square = table_gradient(touched, torch.Size((R, D)), buffers(), sparse=sparse)
    total, square_of_total = by_index_add(ids, gradients)
    if sparse:
        assert gradient._values().shape == (len(ids), D)
        assert torch.equal(gradient._indices()[0], distinct(touched.ids)[0])
        assert not gradient._values()[gradient._indices()[0] == 0].any()
    assert torch.allclose(gradient.to_dense(), total, rtol=0, atol=1e-13)
    assert square.item() == pytest.approx(square_of_total, rel=1e-12, abs=0)


def test_padding_rows_beyond_the_distinct_ones_move_nothing():
    """The optimizer steps alike with a gradient of a fixed size and with one of the distinct rows."""
    tables = [torch.nn.Parameter(a_table()) for _ in range(2)]
    optimizers = [DeferredAdam([table]) for table in tables]
    for step in range(5):
        ids, gradients = random_ids(30, seed=step), random_gradients(30, seed=step)
        for on_cuda, table, optimizer in zip((False, True), tables, optimizers, strict=True):
            touched = touched_of(ids, gradients, on_cuda=on_cuda)
            table.grad, _ = table_gradient(touched, table.shape, buffers(), sparse=True)
            optimizer.step()
    first, second = (optimizer.state_dict()["state"][0] for optimizer in optimizers)
    assert torch.allclose(tables[0], tables[1], rtol=0, atol=1e-15)
    assert torch.equal(tables[0][0], a_table()[0])
    assert torch.allclose(first["exp_avg_sq"], second["exp_avg_sq"], rtol=1e-14)
