"""Adam that defers, against torch's dense Adam and a loop written from the paper."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import skiprec.optimizer
from skiprec.optimizer import DeferredAdam

R, D, STEPS = 40, 10, 300
SIZES = torch.logspace(-9, 0, D, dtype=torch.float64)
"""Of the gradients, by column: from far below eps to far above."""


@pytest.fixture(params=["float64", "float32", "compiled"])
def dtype(request, monkeypatch) -> torch.dtype:
    """Of the table: float64, float32 by torch's operations, and float32 by the compiled loops."""
    if request.param != "compiled":
        monkeypatch.setattr(skiprec.optimizer, "has_kernels", lambda table: False)
    return torch.float64 if request.param == "float64" else torch.float32


def rate_of(step: int) -> float:
    """A learning rate that is another in every step, by up to a factor of ten."""
    return 1e-3 * 10 ** (0.5 * math.sin(step))


@functools.cache
def rows_of(step: int) -> list[int]:
    """Rows that step 1, 2, ... touches.

    Row 0 is touched always; 1 to 3 after 1, 10 and 200 missed steps; 4 to 6 at first in step 1, 2 and 250, and 4 and 5
    never again; 7 never; the others at random, with more and more steps between.
    """
    rows = [0]
    rows += [1] * (step % 2 == 1) + [2] * (step % 11 == 1) + [3] * (step % 201 == 5)
    rows += [4] * (step == 1) + [5] * (step == 2) + [6] * (step in (250, 251, 290))
    chance = np.geomspace(0.5, 0.003, R - 8)
    return rows + (8 + np.flatnonzero(np.random.default_rng(step).random(R - 8) < chance)).tolist()


@functools.cache
def gradients_of(step: int, n: int, dtype: torch.dtype) -> Tensor:
    """Of either sign, and of different size from step to step."""
    g = torch.Generator().manual_seed(step)
    return (torch.randn(n, D, generator=g, dtype=torch.float64) * SIZES).to(dtype)


def sparse_rows(rows: list[int], values: Tensor, size: int = R) -> Tensor:
    order = sorted(range(len(rows)), key=rows.__getitem__)
    indices = torch.tensor([[rows[i] for i in order]], dtype=torch.int64)
    return torch.sparse_coo_tensor(
        indices, values[order], (size, values.shape[1]), is_coalesced=True, check_invariants=True
    )


def a_table(dtype: torch.dtype = torch.float64, rows: int = R, dim: int = D, seed: int = 1) -> nn.Parameter:
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(0.02 * torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def one_step(optimizer: DeferredAdam, table: Tensor, step: int) -> None:
    set_rate(optimizer, rate_of(step))
    rows = rows_of(step)
    table.grad = sparse_rows(rows, gradients_of(step, len(rows), table.dtype))
    optimizer.step()


def dense_step(optimizer: torch.optim.Adam, table: Tensor, step: int, dtype: torch.dtype) -> None:
    """The same in float64 by torch's Adam; gradients have the digits that `dtype` leaves them."""
    set_rate(optimizer, rate_of(step))
    rows = rows_of(step)
    table.grad = sparse_rows(rows, gradients_of(step, len(rows), dtype).double()).to_dense()
    optimizer.step()


def all_rows(optimizer: DeferredAdam, table: Tensor) -> Tensor:
    rows = torch.arange(len(table))
    return optimizer.read(table, rows, torch.empty(table.shape, dtype=table.dtype))


def close_by_row(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Each row's difference is a small share of the row."""
    difference, size = (actual.double() - expected).norm(dim=1), expected.norm(dim=1)
    return bool((difference <= tolerance * size).all())


BY_ROW = {torch.float64: 1e-9, torch.float32: 2e-3}
BY_NUMBER = {torch.float64: 1e-9, torch.float32: 0.05}
"""Learning rates that a single weight may be off."""


def moved_alike(actual: Tensor, expected: Tensor, start: Tensor) -> None:
    """How far the rows have come: weights themselves would hide an error behind their size."""
    assert close_by_row(actual - start, expected - start.double(), BY_ROW[actual.dtype])
    assert close_by_row(actual, expected, BY_ROW[actual.dtype] / 2)
    assert (actual.double() - expected).abs().max() < BY_NUMBER[actual.dtype] * 1e-3


READ_AFTER = (1, 2, 3, 10, 38, 100, 250, 300)


@functools.cache
def dense_run(dtype: torch.dtype) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Weights after some steps, and the state at the end, by torch's Adam."""
    dense = nn.Parameter(a_table(dtype).detach().double())
    adam, weights = torch.optim.Adam([dense]), {}
    for step in range(1, STEPS + 1):
        dense_step(adam, dense, step, dtype)
        if step in READ_AFTER:
            weights[step] = dense.detach().clone()
    return weights, adam.state[dense]


@pytest.mark.parametrize("max_deferred", [7, 299])
def test_it_is_torchs_dense_adam(dtype, max_deferred):
    """Over 300 steps, read after some of them, and with the moments at the end."""
    expected, state = dense_run(dtype)
    table = a_table(dtype)
    start = table.detach().clone()
    optimizer = DeferredAdam([table], max_deferred=max_deferred)
    for step in range(1, STEPS + 1):
        one_step(optimizer, table, step)
        if step in READ_AFTER:
            moved_alike(all_rows(optimizer, table), expected[step], start)
    optimizer.flush()
    moved_alike(table.detach(), expected[STEPS], start)
    assert torch.equal(all_rows(optimizer, table), table)
    for name in ("exp_avg", "exp_avg_sq"):
        moments = optimizer.state[table][name]
        assert close_by_row(moments, state[name], min(1e-5, BY_ROW[dtype])), name
        assert torch.allclose(moments.double(), state[name], rtol=1e-4, atol=1e-30), name
    assert optimizer.state[table]["step"] == state["step"] == STEPS
    touched = {row for step in range(1, STEPS + 1) for row in rows_of(step)}
    assert (table != start).any(1).nonzero().flatten().tolist() == sorted(touched)
    assert 7 not in touched
    assert len(touched) > R - 4


@pytest.mark.parametrize("max_deferred", [1, 2, 38, 39])
def test_however_often_rows_are_brought_up_to_date(dtype, max_deferred):
    """After every step; or just before, or just after, rows are read."""
    expected, _ = dense_run(dtype)
    table = a_table(dtype)
    start = table.detach().clone()
    optimizer = DeferredAdam([table], max_deferred=max_deferred)
    for step in range(1, 39):
        one_step(optimizer, table, step)
        if step in READ_AFTER:
            moved_alike(all_rows(optimizer, table), expected[step], start)
        if step % max_deferred == 0:
            assert torch.equal(all_rows(optimizer, table), table)
    assert max_deferred == 39 or not torch.equal(table[4], start[4])


def by_hand(gradients: dict[int, np.ndarray], steps: int, betas: tuple[float, float], eps: float) -> np.ndarray:
    """How far one row moves: Kingma & Ba 2015, algorithm 1."""
    m, v, moved = np.zeros(D), np.zeros(D), np.zeros(D)
    for t in range(1, steps + 1):
        g = gradients.get(t, np.zeros(D))
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        moved -= rate_of(t) * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return moved


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_a_row_moves_as_the_algorithm_says(dtype, betas, eps):
    """Touched in steps 3, 4, 9 and 60 of 80, by a loop over one row."""
    gradients = {step: gradients_of(step, 1, dtype)[0].double().numpy() for step in (3, 4, 9, 60)}
    table = a_table(dtype)
    start = table.detach().clone()
    optimizer = DeferredAdam([table], betas=betas, eps=eps)
    for step in range(1, 81):
        rows = [2, 5] if step in gradients else [5]
        set_rate(optimizer, rate_of(step))
        values = torch.ones(len(rows), D, dtype=dtype)
        if step in gradients:
            values[0] = torch.tensor(gradients[step])
        table.grad = sparse_rows(rows, values)
        optimizer.step()
        if 12 < step < 59:
            continue
        moved = (all_rows(optimizer, table)[2].double() - start[2].double()).numpy()
        expected = by_hand(gradients, step, betas, eps)
        if dtype == torch.float64:
            assert np.allclose(moved, expected, rtol=1e-9, atol=1e-16)
        else:
            assert np.linalg.norm(moved - expected) <= 1e-3 * np.linalg.norm(expected)
            assert np.allclose(moved, expected, rtol=0, atol=5e-5)


def test_a_row_that_misses_few_steps_moves_on_even_without_gradient():
    """By hand: after one gradient g, the next step moves by lr * (.9 * .1 / .19) / sqrt(.999 * .001 / .001999)."""
    table = a_table()
    optimizer = DeferredAdam([table], lr=0.1, eps=1e-300)
    rows = torch.tensor([3])
    table.grad = sparse_rows([3], torch.full((1, D), 5.0, dtype=torch.float64))
    optimizer.step()
    after_one = optimizer.read(table, rows, torch.empty(1, D, dtype=torch.float64))
    assert torch.allclose(after_one - a_table()[3], torch.tensor(-0.1, dtype=torch.float64), rtol=1e-12)
    table.grad = sparse_rows([8], torch.full((1, D), 5.0, dtype=torch.float64))
    optimizer.step()
    after_two = optimizer.read(table, rows, torch.empty(1, D, dtype=torch.float64))
    expected = -0.1 * (0.09 / 0.19) / math.sqrt(0.999 * 0.001 / 0.001999)
    assert torch.allclose(after_two - after_one, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_the_compiled_loops_are_torchs_operations_to_rounding(monkeypatch):
    """Through steps, reads, flushes in between and at the end; more rows than torch works on at once."""
    rows, dim = 3000, 5
    runs = []
    for kernels in (True, False):
        monkeypatch.setattr(skiprec.optimizer, "has_kernels", lambda table, kernels=kernels: kernels)
        table = a_table(torch.float32, rows, dim)
        optimizer = DeferredAdam([table], lr=0.01, max_deferred=25)
        for step in range(1, 61):
            g = torch.Generator().manual_seed(step)
            touched = torch.randperm(rows, generator=g)[: 1500 if step % 3 else 20].tolist()
            values = torch.randn(len(touched), dim, generator=g) * torch.logspace(-9, 0, dim)
            table.grad = sparse_rows(touched, values, rows)
            optimizer.step()
        seen = all_rows(optimizer, table)
        optimizer.flush()
        runs.append((seen, table.detach(), optimizer.state[table]["exp_avg"], optimizer.state[table]["exp_avg_sq"]))
    start = a_table(torch.float32, rows, dim).detach()
    for compiled, plain in zip(runs[0][:2], runs[1][:2], strict=True):
        assert (compiled - plain).abs().max() < 1e-6  # of movements up to 0.3
        assert (compiled - start).abs().max() > 0.1
    for compiled, plain in zip(runs[0][2:], runs[1][2:], strict=True):
        assert torch.allclose(compiled, plain, rtol=1e-4, atol=1e-7 * compiled.abs().max())
        assert ((compiled - plain).norm(dim=0) <= 1e-6 * plain.norm(dim=0)).all()


def test_the_number_of_threads_changes_no_bit():
    """Of the compiled loops; 7,000 rows are shared by up to four."""
    rows, ends = 9000, []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table = a_table(torch.float32, rows, 3)
        optimizer = DeferredAdam([table])
        for step in range(1, 4):
            g = torch.Generator().manual_seed(step)
            touched = torch.randperm(rows, generator=g)[:7000].tolist()
            table.grad = sparse_rows(touched, torch.randn(7000, 3, generator=g), rows)
            optimizer.step()
        ends.append((all_rows(optimizer, table), optimizer.state_dict()["state"][0]["exp_avg_sq"]))
    torch.set_num_threads(1)
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(end, ends[0], strict=True))


def test_reading_changes_nothing_and_gives_any_rows_in_any_order(dtype):
    table = a_table(dtype)
    optimizer = DeferredAdam([table])
    for step in range(1, 20):
        one_step(optimizer, table, step)
    before = [table.detach().clone(), *(x.clone() for x in optimizer.state[table].values() if isinstance(x, Tensor))]
    rows = torch.tensor([5, 0, 5, 39, 7, 5, 2])
    out = torch.full((7, D), torch.nan, dtype=dtype)
    assert optimizer.read(table, rows, out) is out
    assert torch.equal(out, all_rows(optimizer, table)[rows])
    after = [table.detach(), *(x for x in optimizer.state[table].values() if isinstance(x, Tensor))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not out.requires_grad
    assert not torch.equal(out[1:2], table[5:6])  # the table itself is behind
    none = optimizer.read(table, rows[:0], out[:0])
    assert none.shape == (0, D)


def test_reading_in_between_changes_no_later_step(dtype):
    ends = []
    for reads in (False, True):
        table = a_table(dtype)
        optimizer = DeferredAdam([table])
        for step in range(1, 30):
            one_step(optimizer, table, step)
            if reads:
                all_rows(optimizer, table)
        ends.append(all_rows(optimizer, table))
    assert torch.equal(*ends)


def test_a_second_flush_does_nothing(dtype):
    table = a_table(dtype)
    optimizer = DeferredAdam([table])
    optimizer.flush()
    assert torch.equal(table, a_table(dtype))
    for step in range(1, 30):
        one_step(optimizer, table, step)
    optimizer.flush()
    once = [x.clone() for x in (table, optimizer.state[table]["exp_avg"], optimizer.state[table]["exp_avg_sq"])]
    optimizer.flush()
    twice = [table, optimizer.state[table]["exp_avg"], optimizer.state[table]["exp_avg_sq"]]
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_more_rows_than_are_worked_on_at_once(dtype, monkeypatch):
    """Parts of 7 rows give the bits of one part."""
    ends = []
    monkeypatch.setattr(skiprec.optimizer, "has_kernels", lambda table: False)
    for at_a_time in (1024, 7):
        monkeypatch.setattr(skiprec.optimizer, "ROWS_AT_A_TIME", {"cpu": at_a_time})
        table = a_table(dtype)
        optimizer = DeferredAdam([table], max_deferred=20)
        for step in range(1, 50):
            one_step(optimizer, table, step)
        ends.append((all_rows(optimizer, table), optimizer.state_dict()["state"][0]["exp_avg"], table.detach()))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(*ends, strict=True))


def test_several_tables_of_other_sizes(dtype):
    """Touched at other times; each is as dense Adam has it."""
    shapes = {"a": (5, 3), "b": (R, D), "c": (9, 1), "d": (1, 2)}
    tables = {name: a_table(dtype, *shape) for name, shape in shapes.items()}
    dense = {name: nn.Parameter(table.detach().double().clone()) for name, table in tables.items()}
    starts = {name: table.detach().clone() for name, table in tables.items()}
    numbers = {"lr": 2e-3, "betas": (0.8, 0.99), "eps": 1e-6}
    deferred, adam = (
        DeferredAdam(tables.values(), **numbers, max_deferred=11),
        torch.optim.Adam(dense.values(), **numbers),
    )
    for step in range(1, 60):
        for number, (name, (size, dim)) in enumerate(shapes.items()):
            g = torch.Generator().manual_seed(100 * step + number)
            touched = torch.randperm(size, generator=g)[: 1 + step % 3].tolist()
            tables[name].grad = sparse_rows(touched, torch.randn(len(touched), dim, generator=g).to(dtype), size)
            dense[name].grad = tables[name].grad.to_dense().double()
        deferred.step()
        adam.step()
    before = {name: all_rows(deferred, table) for name, table in tables.items()}
    deferred.flush()
    for name, table in tables.items():
        expected = dense[name].detach() - starts[name]
        assert close_by_row(before[name] - starts[name], expected, BY_ROW[dtype] / 10)
        assert close_by_row(table - starts[name], expected, BY_ROW[dtype] / 10)
        for moment in ("exp_avg", "exp_avg_sq"):
            ours, theirs = deferred.state[table][moment], adam.state[dense[name]][moment]
            assert close_by_row(ours, theirs, BY_ROW[dtype] / 100)


def test_a_table_without_a_gradient_is_left_alone_and_its_step_not_counted(dtype):
    """As dense Adam, which moves it by nothing and counts nothing."""
    tables = [a_table(dtype), a_table(dtype, seed=2)]
    dense = [nn.Parameter(table.detach().double().clone()) for table in tables]
    deferred, adam = DeferredAdam(tables), torch.optim.Adam(dense)
    for step in range(1, 40):
        for i, table in enumerate(tables):
            table.grad = dense[i].grad = None
            if i == 0 or step in (5, 6, 30):
                rows = rows_of(step)
                table.grad = sparse_rows(rows, gradients_of(step, len(rows), dtype))
                dense[i].grad = table.grad.to_dense().double()
        before = all_rows(deferred, tables[1])
        deferred.step()
        adam.step()
        if tables[1].grad is None:
            assert torch.equal(all_rows(deferred, tables[1]), before)
    deferred.flush()
    assert [int(deferred.state[table]["step"]) for table in tables] == [39, 3]
    for table, other, start in zip(tables, dense, (a_table(dtype), a_table(dtype, seed=2)), strict=True):
        assert close_by_row(table - start, other - start.double(), BY_ROW[dtype])


def saved(optimizer: DeferredAdam, table: Tensor) -> tuple[dict, Tensor]:
    """As a file would hold it."""
    state = copy.deepcopy(optimizer.state_dict())
    return state, table.detach().clone()


@pytest.mark.parametrize("at", [0, 1, 60])
def test_a_state_taken_in_mid_run_goes_on_bit_for_bit(dtype, at):
    table = a_table(dtype)
    optimizer = DeferredAdam([table], max_deferred=50)
    for step in range(1, at + 1):
        one_step(optimizer, table, step)
    state, weights = saved(optimizer, table)
    fresh_table = nn.Parameter(weights)
    fresh = DeferredAdam([fresh_table], lr=0.7, betas=(0.1, 0.2), eps=0.3, max_deferred=50)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)
    for step in range(at + 1, at + 70):
        one_step(optimizer, table, step)
        one_step(fresh, fresh_table, step)
        if step % 10 == 1:
            assert torch.equal(all_rows(fresh, fresh_table), all_rows(optimizer, table))
    for ours, theirs in zip(
        saved(optimizer, table)[0]["state"][0].values(), fresh.state_dict()["state"][0].values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(table, fresh_table)


def test_taking_a_state_brings_every_row_up_to_date():
    table = a_table()
    optimizer = DeferredAdam([table])
    for step in range(1, 30):
        one_step(optimizer, table, step)
    now = all_rows(optimizer, table)
    optimizer.state_dict()
    assert torch.allclose(table, now, rtol=1e-12)


def test_what_is_loaded_is_copied():
    """Steps after it do not write into what was handed in, nor does the optimizer see later changes of it."""
    table = a_table()
    optimizer = DeferredAdam([table])
    for step in range(1, 10):
        one_step(optimizer, table, step)
    state, _ = saved(optimizer, table)
    kept = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    for step in range(10, 20):
        one_step(optimizer, table, step)
    optimizer.flush()
    for name, value in kept["state"][0].items():
        assert torch.equal(value, state["state"][0][name])
    assert optimizer.state[table]["step"] == 19
    assert state["state"][0]["step"] == 9


def test_a_state_is_of_adams_form_and_adam_goes_on_with_it(dtype):
    """The same names, shapes and values as dense Adam's; which, given it, goes on as it would have; and back."""
    table = a_table(dtype)
    dense = nn.Parameter(table.detach().double().clone())
    start = table.detach().clone()
    deferred, adam = DeferredAdam([table]), torch.optim.Adam([dense])
    for step in range(1, 30):
        one_step(deferred, table, step)
        dense_step(adam, dense, step, dtype)
    ours, theirs = deferred.state_dict(), adam.state_dict()
    assert ours["state"].keys() == theirs["state"].keys() == {0}
    assert ours["state"][0].keys() == theirs["state"][0].keys()
    for name, value in theirs["state"][0].items():
        assert ours["state"][0][name].shape == value.shape
        assert torch.allclose(ours["state"][0][name].double(), value.double(), rtol=1e-4, atol=1e-30)
    assert ours["param_groups"][0]["params"] == [0]
    other = nn.Parameter(table.detach().clone())
    handed_over = torch.optim.Adam([other])
    handed_over.load_state_dict(handed_over.state_dict() | {"state": copy.deepcopy(ours["state"])})
    back_table = nn.Parameter(dense.detach().to(dtype))
    back = DeferredAdam([back_table])
    back.load_state_dict(back.state_dict() | {"state": copy.deepcopy(theirs["state"])})
    for step in range(30, 60):
        dense_step(adam, dense, step, dtype)
        set_rate(handed_over, rate_of(step))
        other.grad = dense.grad.to(dtype)
        handed_over.step()
        one_step(back, back_table, step)
    moved_alike(other.detach(), dense.detach(), start)
    moved_alike(all_rows(back, back_table), dense.detach(), start)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    table = a_table()
    optimizer = DeferredAdam([table])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        table.grad = sparse_rows([3], torch.ones(1, D, dtype=torch.float64))
        return torch.tensor(2.5)

    with torch.no_grad():
        assert optimizer.step(closure) == 2.5
    assert calls == [True]
    assert torch.allclose(table[3] - a_table()[3], torch.tensor(-1e-3, dtype=torch.float64), rtol=1e-6)
    assert optimizer.step() is None


def test_a_step_that_touches_no_row_is_counted_and_lets_the_others_drift():
    table, dense = a_table(), a_table()
    deferred, adam = DeferredAdam([table]), torch.optim.Adam([dense])
    for step in range(1, 9):
        rows = [3] if step == 1 else []
        table.grad = sparse_rows(rows, torch.ones(len(rows), D, dtype=torch.float64))
        dense.grad = table.grad.to_dense()
        deferred.step()
        adam.step()
    assert torch.allclose(all_rows(deferred, table), dense, rtol=1e-12)


def test_weights_keep_their_values_when_the_optimizer_is_made_and_can_be_restored_in_place(dtype):
    table = a_table(dtype)
    module = nn.Embedding.from_pretrained(table.detach().clone(), freeze=False)
    optimizer = DeferredAdam(module.parameters())
    assert torch.equal(module.weight, table)
    module.load_state_dict({"weight": 2 * table.detach()})
    assert torch.equal(all_rows(optimizer, module.weight), 2 * table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0, expected more than 0"),
        ({"lr": -1.0}, "lr is -1.0, expected more than 0"),
        ({"lr": math.nan}, "lr is nan, expected more than 0"),
        (
            {"betas": (1.0, 0.999)},
            "betas are (1.0, 0.999), expected one from 0 to less than 1, and one between 0 and 1",
        ),
        ({"betas": (0.9, 0.0)}, "betas are (0.9, 0.0), expected one from 0 to less than 1, and one between 0 and 1"),
        ({"betas": (0.9, -0.1)}, "betas are (0.9, -0.1), expected one from 0 to less than 1, and one between 0 and 1"),
        (
            {"betas": (0.9, math.nan)},
            "betas are (0.9, nan), expected one from 0 to less than 1, and one between 0 and 1",
        ),
        ({"eps": 0.0}, "eps is 0.0, expected more than 0"),
        ({"eps": math.nan}, "eps is nan, expected more than 0"),
        ({"max_deferred": 0}, "max_deferred is 0, expected at least 1"),
    ],
)
def test_a_number_out_of_range_says_so(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        DeferredAdam([a_table()], **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameter", "found"),
    [
        (torch.zeros(3), "torch.float32 of shape (3,)"),
        (torch.zeros(3, 2, 2), "torch.float32 of shape (3, 2, 2)"),
        (torch.zeros(3, 2, dtype=torch.int64), "torch.int64 of shape (3, 2)"),
    ],
)
def test_a_parameter_that_is_no_table_is_refused(parameter, found):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        DeferredAdam([a_table(), parameter])
    assert str(caught.value) == f"a parameter is {found}, expected a 2-D table"


@pytest.mark.parametrize(
    "gradient",
    [torch.zeros(R, D, dtype=torch.float64), torch.ones(R, D, dtype=torch.float64).to_sparse(2)],
    ids=["dense", "of single numbers"],
)
def test_a_gradient_that_is_no_sparse_tensor_of_rows_is_refused(gradient):
    table = a_table()
    optimizer = DeferredAdam([table])
    table.grad = gradient
    with pytest.raises(ValueError, match=r"^a gradient is dense, expected a sparse tensor of rows"):
        optimizer.step()
    assert torch.equal(table, a_table())
    assert optimizer.state[table]["step"] == 0


def test_a_row_that_is_named_twice_takes_the_sum(dtype):
    """Of values as an embedding's sparse gradient has them, not coalesced."""
    once, twice = a_table(dtype), a_table(dtype)
    first, second = DeferredAdam([once]), DeferredAdam([twice])
    values = torch.linspace(-1, 2, 3 * D, dtype=dtype).view(3, D)
    once.grad = sparse_rows([1, 4], torch.stack([values[0] + values[2], values[1]]))
    twice.grad = torch.sparse_coo_tensor([[1, 4, 1]], values, (R, D), check_invariants=True)
    first.step()
    second.step()
    assert torch.equal(once, twice)
    assert not torch.equal(once[1], a_table(dtype)[1])


def test_a_state_of_other_groups_is_refused():
    state = DeferredAdam([a_table(), a_table()]).state_dict()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        DeferredAdam([a_table()]).load_state_dict(state)
    assert str(caught.value) == "the state is of groups of [2] tables, expected [1]"


def test_a_learning_rate_in_a_tensor_may_be_changed_in_place():
    """As a captured graph needs it."""
    rate = torch.tensor(1e-3, dtype=torch.float64)
    table, dense = a_table(), a_table()
    deferred, adam = DeferredAdam([table], lr=rate), torch.optim.Adam([dense])
    for step in range(1, 10):
        rate.fill_(rate_of(step))
        rows = rows_of(step)
        table.grad = sparse_rows(rows, gradients_of(step, len(rows), torch.float64))
        deferred.step()
        dense_step(adam, dense, step, torch.float64)
    assert torch.allclose(all_rows(deferred, table), dense, rtol=0, atol=1e-12)


def test_a_learning_rate_of_0_moves_nothing(dtype):
    """A schedule may start or end there."""
    table = a_table(dtype)
    optimizer = DeferredAdam([table])
    set_rate(optimizer, 0.0)
    values = torch.ones(1, D, dtype=dtype)
    values[0, 4] = 0
    table.grad = sparse_rows([3], values)
    optimizer.step()
    assert torch.equal(all_rows(optimizer, table), a_table(dtype))


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_what_is_forgotten_leaves_nothing(dtype, steps):
    """After some steps, with rows that have some to make up for: the next ones are those of a new optimiser, bit for
    bit, and all rows are brought up to date at the same ones."""
    found = []
    for before in (0, steps):
        table = nn.Parameter(torch.ones(R, D, dtype=dtype))
        optimizer = DeferredAdam([table], lr=0.01, max_deferred=7)
        for step in range(1, before + 1):
            step_of(optimizer, table, step, dtype)
        optimizer.forget()
        with torch.no_grad():
            table.fill_(1)
        for step in range(1, 18):
            step_of(optimizer, table, step, dtype)
        state = optimizer.state_dict()["state"][0]
        found.append([table.detach().clone(), *(state[name].clone() for name in ("step", "exp_avg", "exp_avg_sq"))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def step_of(optimizer: DeferredAdam, table: nn.Parameter, step: int, dtype: torch.dtype) -> None:
    rows = rows_of(step)
    table.grad = sparse_rows(rows, gradients_of(step, len(rows), dtype))
    optimizer.step()
