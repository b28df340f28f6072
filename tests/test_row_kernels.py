"""How rows are shared among threads, and the exponential. What the loops compute is tested where they are used."""

import os
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import skiprec.row_kernels
from skiprec.row_kernels import (
    ROWS_WORTH_A_THREAD,
    Team,
    compiled,
    exponential,
    flush_rows,
    in_threads,
    openmp,
    over_rows,
    read_rows,
    square_rows,
    sum_rows,
    update_rows,
)

SIZES = [0, 1, 2, 3, 7] + [k * ROWS_WORTH_A_THREAD + more for k in (1, 2, 3, 4, 5) for more in (-1, 0, 1)]


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    torch.set_num_threads(1)


class Counting:
    """A kernel that counts how often each row is done, and notes who did which."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, str]] = []
        self.lock = threading.Lock()

    def __call__(self, done: np.ndarray, start: int, stop: int) -> None:
        done[start:stop] += 1
        with self.lock:
            self.calls.append((start, stop, threading.current_thread().name))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("n", SIZES)
def test_each_row_is_done_exactly_once(n, threads):
    torch.set_num_threads(threads)
    done = torch.zeros(n + 5, dtype=torch.int64)
    kernel = Counting()
    over_rows(kernel, n, done)
    assert (done[:n] == 1).all()
    assert not done[n:].any()
    assert len(kernel.calls) <= threads
    sizes = [stop - start for start, stop, _ in kernel.calls]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_thread_is_woken_only_for_rows_enough_and_the_caller_does_its_share(threads):
    """One more for each ROWS_WORTH_A_THREAD, up to as many as torch uses."""
    torch.set_num_threads(threads)
    for n in SIZES:
        kernel = Counting()
        over_rows(kernel, n, torch.zeros(n, dtype=torch.int64))
        assert len(kernel.calls) == min(threads, 1 + n // ROWS_WORTH_A_THREAD)
        names = [name for *_, name in kernel.calls]
        assert names.count(threading.current_thread().name) == 1


def test_tensors_are_handed_over_as_arrays_of_the_same_memory_and_the_rest_as_it_is():
    tensor, given = torch.arange(3.0), []
    over_rows(lambda *arguments: given.extend(arguments), 3, tensor, 2.5, np.ones(2))
    assert isinstance(given[0], np.ndarray)
    given[0][1] = 9
    assert tensor.tolist() == [0, 9, 2]
    assert given[1] == 2.5
    assert given[3:] == [0, 3]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_exception_in_any_thread_reaches_the_caller(threads):
    """And the threads go on to serve the next call."""
    torch.set_num_threads(threads)
    n = 4 * ROWS_WORTH_A_THREAD
    for bad in (0, n // 2 + 1, n - 1):

        def broken(start: int, stop: int, bad: int = bad) -> None:
            if start <= bad < stop:
                raise ZeroDivisionError(f"row {bad}")

        with pytest.raises(ZeroDivisionError, match=f"^row {bad}$"):
            over_rows(broken, n)
    done = torch.zeros(n, dtype=torch.int64)
    over_rows(Counting(), n, done)
    assert (done == 1).all()


def test_all_rows_are_done_when_it_returns():
    """However slow another thread is."""
    torch.set_num_threads(2)
    n = 2 * ROWS_WORTH_A_THREAD
    done = torch.zeros(n, dtype=torch.int64)
    caller = threading.current_thread()
    main_done = threading.Event()

    def slow_elsewhere(done: np.ndarray, start: int, stop: int) -> None:
        if threading.current_thread() is caller:
            main_done.set()
        else:
            assert main_done.wait(10)
            threading.Event().wait(0.05)
        done[start:stop] += 1

    over_rows(slow_elsewhere, n, done)
    assert (done == 1).all()


def test_a_compiled_loop_does_its_own_rows_alone():
    """Rows 2 and 3 of 6: what is filled or changed is of these, and each is changed."""
    rng = np.random.default_rng(1)
    storage = np.abs(rng.normal(size=(6, 3, 4))).astype(np.float32)
    slots, rows = np.zeros(6, np.int32), np.arange(6)
    coefficients = np.full((1, 6), 0.5, np.float32)
    gradient = rng.normal(size=(6, 4)).astype(np.float32)
    mine = [False, False, True, True, False, False]

    changed = storage.copy()
    edges = np.arange(7)
    update_rows(changed, slots, coefficients, rows, rows, edges, gradient, np.full(7, 0.5, np.float32), 2, 4)
    assert (changed != storage).any((1, 2)).tolist() == mine
    changed = storage.copy()
    flush_rows(changed, slots, coefficients, 2, 4)
    assert (changed != storage).any((1, 2)).tolist() == mine
    filled = np.zeros((6, 4), np.float32)
    read_rows(storage, slots, coefficients, rows, filled, 2, 4)
    assert (filled != 0).any(1).tolist() == mine
    filled, squares = np.zeros((6, 4), np.float32), np.zeros(6, np.float32)
    sum_rows(rows, rows, edges, gradient, filled, 2, 4)
    square_rows(rows, edges, gradient, squares, 2, 4)
    assert (filled != 0).any(1).tolist() == (squares != 0).tolist() == mine


WITHIN = """
import torch
from skiprec.encoder_block import Block, DropoutMasks, Sight
from skiprec.optimizer import DeferredAdam
from skiprec.row_kernels import ROWS_WORTH_A_THREAD
from skiprec.sampled_softmax import SampledSoftmax
from skiprec.touched_rows import dense_gradient, group_ids, squared_norm, TouchedRows
torch.set_num_threads(2)
for n in (1, 5, 3 * ROWS_WORTH_A_THREAD):
    table = torch.zeros(2 * n, 3)
    optimizer = DeferredAdam([table.requires_grad_()])
    ids, gradients = torch.randint(2 * n, (n,)), torch.ones(n, 3)
    groups = group_ids(ids)
    squared_norm(groups, gradients)
    dense_gradient(TouchedRows(ids, gradients, gradients, gradients[:0]), groups, torch.empty(2 * n, 3))
    table.grad = torch.sparse_coo_tensor(ids[None], gradients, table.shape)
    optimizer.step(groups=groups)
    optimizer.read(table, ids, gradients)
    optimizer.flush()
for lengths in ([4, 9, 0, -3], [1]):
    block, hidden = Block(16, 2, 12, 0.3, batch_first=True), torch.randn(len(lengths), 4, 16)
    masks = DropoutMasks(0.3, block.factors(hidden), hidden.device, hidden.dtype)
    block(hidden, Sight(torch.tensor(lengths), True), masks).sum().backward()
for draws in (5, 1):
    predicted, target = torch.randn(2, 5, 70, 16, requires_grad=True).unbind(0)
    negatives = torch.randn(draws, 13, 16)
    weight = torch.rand(5, 70)
    SampledSoftmax.apply(predicted, target, negatives, negatives, weight, None, None, torch.ones(()))
print("within")
"""


def test_nothing_is_asked_for_beyond_an_end(tmp_path):
    """What is asked for ahead changes no number, so only Numba's own check of indices sees a wrong one."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHIN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "within\n", done.stderr


def test_the_exponential_is_that_of_float64():
    """From where a float32 ends to where it would be no number; a loop, as it is used."""

    @compiled
    def all_of(x, out):
        for i in range(x.size):
            out[i] = exponential(x[i])

    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001)]).astype(np.float32)
    out = np.empty_like(x)
    all_of(x, out)
    assert abs(out / np.exp(x.astype(float)) - 1).max() < 3e-7
    assert [exponential(np.float32(value)) for value in (0, -87.01, -1e30, -np.inf)] == [1, 0, 0, 0]
    assert np.isnan(exponential(np.float32(np.nan)))


@pytest.fixture(params=["torch's", "a pool"])
def whose(request, monkeypatch):
    """Threads of torch's operations, or, where those are not OpenMP's, some of our own."""
    if request.param == "a pool":
        monkeypatch.setattr(skiprec.row_kernels, "openmp", lambda: None)
    elif openmp() is None:
        pytest.skip("torch's operations have no threads of GNU OpenMP here")
    return request.param


@pytest.mark.skipif(platform.system() != "Linux", reason="other builds of PyTorch have other threads")
def test_the_threads_of_torch_are_found_where_they_are():
    """Or all would go on beside them, a tenth slower, and nobody would hear of it."""
    assert openmp() is not None


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_every_part_is_done_once_side_by_side(parts):
    torch.set_num_threads(parts)
    barrier, done = threading.Barrier(parts, timeout=60), []

    def work(part):
        barrier.wait()  # passes when all are there
        done.append((part, threading.get_ident()))

    in_threads(work, parts)
    assert sorted(part for part, _ in done) == list(range(parts))
    assert len({thread for _, thread in done}) == parts
    assert (0, threading.get_ident()) in done


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_in_any_part_is_raised_when_all_are_over(failing):
    done = []

    def work(part):
        if part == failing:
            raise ValueError(f"part {part}")
        time.sleep(0.05)
        done.append(part)

    with pytest.raises(ValueError, match=f"part {failing}"):
        in_threads(work, 3)
    assert sorted(done) == sorted({0, 1, 2} - {failing})


def test_with_fewer_threads_than_parts_all_parts_are_done(monkeypatch):
    """As within OpenMP's own loops, or where the system gives no more."""
    if openmp() is None:
        pytest.skip("torch's operations have no threads of GNU OpenMP here")
    team = openmp()
    alone = team._replace(parallel=lambda work, data, parts, flags: team.parallel(work, data, 1, flags))
    monkeypatch.setattr(skiprec.row_kernels, "openmp", lambda: alone)
    done = []
    in_threads(done.append, 5)
    assert done == [0, 1, 2, 3, 4]


def test_a_part_that_nobody_did_is_no_silence(monkeypatch):
    """Ctrl-C can come as a thread enters, where Python prints it and goes on."""
    monkeypatch.setattr(skiprec.row_kernels, "openmp", lambda: Team(lambda *_: None, lambda: 0, lambda: 1))
    with pytest.raises(KeyboardInterrupt):
        in_threads(lambda part: None, 2)
