"""Loops over rows of a float32 table on the CPU, compiled by Numba: one pass over memory, where torch needs a dozen.

What they compute is in `optimizer.py` and `touched_rows.py`, whose torch forms run on other devices and are what
these are tested against; and in `seeds.py`, whose random bits are NumPy's there.
"""

import ctypes
import functools
import hashlib
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# R rows of a table, D width, n rows at a time, S slots, N gradients.

ROWS_WORTH_A_THREAD = 2048
"""Fewer rows are done by one thread: waking another would take longer."""
AHEAD = 4
"""How many rows before it is worked on a row is asked for: each is at a random place, and slow to come."""
GRADIENTS_AHEAD = 12
"""The same of gradients, which are a third as long as rows with their moments."""
LINE_BYTES = 64
"""Of a cache."""
CALLED = ("row_kernels.py", "products.py")
"""Files with functions that loops of other files call."""
IS_EXPORTED = (Path(__file__).parents[2] / "MLmodel").exists()
"""Whether this is the copy that an exported model carries."""


def compiled(function: Callable[..., None], **options: Any) -> Callable[..., None]:
    """Compile a loop at its first call; the code is kept beside the source, or in the user's cache folder.

    Not beside an exported model's own copy: the model stays as it is, and Numba would unpickle what it finds there.

    What a loop calls is compiled into it, and Numba looks at the date of the loop's own file alone: so the name of the
    code has a digest of the files that others call.

    Arrays are indexed one by one: loops over what was unpacked from an array are not vectorised (Numba 0.68), and take
    three times as long.
    """
    # Unwrapped: a test run checks the shapes of every function by a wrapper, which Numba cannot compile.
    function = inspect.unwrap(function)
    function.__qualname__ += f"-{digest_of_called()}"
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=not IS_EXPORTED, **options)(function)
    except RuntimeError:  # there is no folder that can be written, as in a container: compile in every process
        return numba.njit(nogil=True, error_model="numpy", **options)(function)


@functools.cache
def digest_of_called() -> str:
    """Of the files whose functions are compiled into loops of others."""
    folder = Path(__file__).parent
    paths = [path for name in CALLED if (path := folder / name).exists()]  # an exported model has not all
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


@intrinsic
def prefetch(context: Any, array: Any, row: Any, byte: Any) -> tuple[Any, Any]:
    """Compiled code alone: ask for the cache line at a byte of array[row], and do not wait for it."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read, keep, data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        struct = target.make_array(signature.args[0])(target, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, struct.strides)[0]
        address = builder.gep(
            builder.bitcast(struct.data, cgutils.voidptr_t),
            [builder.add(builder.mul(arguments[1], stride), arguments[2])],
        )
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *(number.type for number in (read, keep, data))])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, read, keep, data])
        return target.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@compiled
def ask_for(array: Any, row: Any) -> None:
    """Compiled code alone: ask for the whole of array[row]."""
    for byte in range(0, array.strides[0], LINE_BYTES):
        prefetch(array, row, byte)


@compiled
def copy(row: Any, out: Any) -> None:
    """Compiled code alone: out = row. What Numba makes of `out[:] = row` takes a second to compile."""
    for d in range(out.size):
        out[d] = row[d]


@intrinsic
def two_to(context: Any, shifted: Any) -> tuple[Any, Any]:
    """Compiled code alone: 2 to the n of a float32 that is n + 3 * 2**22, whose last bits are n."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.bitcast(arguments[0], ir.IntType(32)), ir.IntType(32)(23))
        return builder.bitcast(builder.add(bits, ir.IntType(32)(127 << 23)), ir.FloatType())

    return types.float32(types.float32), generate


# A product and the sum that it goes into may be rounded once, as in `products.py`.
fused = functools.partial(compiled, fastmath={"contract"})


@fused
def exponential(x: float) -> float:
    """Compiled code alone: e to the x, for x from -87 to 88 and to 3e-7 of it; 0 for less than -87.

    A loop over it is vectorised, and one over Numba's own is not. As in Cephes' expf: e**x = 2**n e**r, with |r| at
    most log(2) / 2, and a polynomial for the latter.
    """
    is_small = x < np.float32(-87)
    shifted = x * np.float32(1.44269504) + np.float32(3 << 22)
    n = shifted - np.float32(3 << 22)
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return np.float32(0) if is_small else (y * (r * r) + r + np.float32(1)) * two_to(shifted)


@compiled
def read_rows(
    storage: Float32[np.ndarray, "R 3 D"],
    slots: Int32[np.ndarray, " R"],
    coefficients: Float32[np.ndarray, "S 6"],
    rows: Int64[np.ndarray, " n"],
    out: Float32[np.ndarray, "n D"],
    start: int,
    stop: int,
) -> None:
    """Rows start to stop of `DeferredAdam.read`."""
    for i in range(start, stop):
        ask_for(storage, rows[min(i + AHEAD, stop - 1)])
        row, into = rows[i], out[i]
        weights, first, second = storage[row, 0], storage[row, 1], storage[row, 2]
        c = coefficients[slots[row]]
        A, B, E, F = c[0], c[1], c[2], c[3]
        if A == 0 and B == 0:  # the row has missed nothing
            copy(weights, into)
            continue
        for d in range(into.size):
            u = np.sqrt(second[d])
            into[d] = weights[d] - first[d] * (A * u + B) / (second[d] + E * u + F)


@compiled
def update_rows(
    storage: Float32[np.ndarray, "R 3 D"],
    slots: Int32[np.ndarray, " R"],
    coefficients: Float32[np.ndarray, "S 6"],
    rows: Int64[np.ndarray, " n"],
    order: Int64[np.ndarray, " N"],
    edges: Int64[np.ndarray, " n+1"],
    gradients: Float32[np.ndarray, "N D"],
    numbers: Float32[np.ndarray, " 7"],
    start: int,
    stop: int,
) -> None:
    """Rows start to stop of `DeferredAdam.step`. Numbers: both betas, both 1 - beta; lr / c1, c2^-1/2, eps."""
    beta1, beta2, rest1, rest2 = numbers[0], numbers[1], numbers[2], numbers[3]
    factor, scale, eps = numbers[4], numbers[5], numbers[6]
    summed = np.empty(gradients.shape[1], dtype=np.float32)
    last = edges[stop] - 1
    for i in range(start, stop):
        ask_for(storage, rows[min(i + AHEAD, stop - 1)])
        ask_for(gradients, order[min(edges[i] + GRADIENTS_AHEAD, last)])
        row, g = rows[i], gradients[order[edges[i]]]
        if edges[i + 1] - edges[i] > 1:
            copy(g, summed)
            for j in range(edges[i] + 1, edges[i + 1]):
                more = gradients[order[j]]
                for d in range(summed.size):
                    summed[d] += more[d]
            g = summed
        weights, first, second = storage[row, 0], storage[row, 1], storage[row, 2]
        c = coefficients[slots[row]]
        A, B, E, F, decay1, decay2 = c[0], c[1], c[2], c[3], c[4] * beta1, c[5] * beta2
        for d in range(g.size):
            u = np.sqrt(second[d])
            drifted = weights[d] - first[d] * (A * u + B) / (second[d] + E * u + F)
            m = first[d] * decay1 + rest1 * g[d]
            v = second[d] * decay2 + rest2 * g[d] * g[d]
            weights[d] = drifted - factor * m / (np.sqrt(v) * scale + eps)
            first[d] = m
            second[d] = v


@compiled
def flush_rows(
    storage: Float32[np.ndarray, "R 3 D"],
    slots: Int32[np.ndarray, " R"],
    coefficients: Float32[np.ndarray, "S 6"],
    start: int,
    stop: int,
) -> None:
    """Rows start to stop of `DeferredAdam.flush`."""
    for i in range(start, stop):
        weights, first, second = storage[i, 0], storage[i, 1], storage[i, 2]
        c = coefficients[slots[i]]
        A, B, E, F, decay1, decay2 = c[0], c[1], c[2], c[3], c[4], c[5]
        for d in range(weights.size):
            u = np.sqrt(second[d])
            weights[d] -= first[d] * (A * u + B) / (second[d] + E * u + F)
            first[d] *= decay1
            second[d] *= decay2


@compiled
def sum_rows(
    rows: Int64[np.ndarray, " n"],
    order: Int64[np.ndarray, " N"],
    edges: Int64[np.ndarray, " n+1"],
    gradients: Float32[np.ndarray, "N D"],
    out: Float32[np.ndarray, "R D"],
    start: int,
    stop: int,
) -> None:
    """Rows start to stop of `touched_rows.dense_gradient`."""
    last = edges[stop] - 1
    for i in range(start, stop):
        total = out[rows[i]]
        ask_for(gradients, order[min(edges[i] + GRADIENTS_AHEAD, last)])
        copy(gradients[order[edges[i]]], total)
        for j in range(edges[i] + 1, edges[i + 1]):
            ask_for(gradients, order[min(j + GRADIENTS_AHEAD, last)])
            more = gradients[order[j]]
            for d in range(total.size):
                total[d] += more[d]


# The squares of a row are summed in any order, or that could not be vectorised; it is the same order in every run.
@functools.partial(compiled, fastmath={"reassoc", "contract"})
def square_rows(
    order: Int64[np.ndarray, " N"],
    edges: Int64[np.ndarray, " n+1"],
    gradients: Float32[np.ndarray, "N D"],
    squares: Float32[np.ndarray, " n"],
    start: int,
    stop: int,
) -> None:
    """Rows start to stop of `touched_rows.squared_norm`."""
    summed = np.empty(gradients.shape[1], dtype=np.float32)
    last = edges[stop] - 1
    for i in range(start, stop):
        ask_for(gradients, order[min(edges[i] + GRADIENTS_AHEAD, last)])
        total = gradients[order[edges[i]]]
        if edges[i + 1] - edges[i] > 1:
            copy(total, summed)
            for j in range(edges[i] + 1, edges[i + 1]):
                more = gradients[order[j]]
                for d in range(summed.size):
                    summed[d] += more[d]
            total = summed
        square = np.float32(0)
        for d in range(total.size):
            square += total[d] * total[d]
        squares[i] = square


# A product is summed in any order, as above.
@functools.partial(compiled, fastmath={"reassoc", "contract"})
def score_rows(
    storage: Float32[np.ndarray, "R slices D"],
    items: Int32[np.ndarray, "B C"],
    predicted: Float32[np.ndarray, "B D"],
    out: Float32[np.ndarray, "B C"],
    start: int,
    stop: int,
) -> None:
    """Sessions start to stop of `evaluation.ModelScorer.candidate_scores`; a row's first slice is its embedding."""
    for b in range(start, stop):
        query = predicted[b]
        for c in range(items.shape[1]):
            for byte in range(0, 4 * query.size, LINE_BYTES):
                prefetch(storage, items[b, min(c + AHEAD, items.shape[1] - 1)], byte)
            row = storage[items[b, c], 0]
            score = np.float32(0)
            for d in range(query.size):
                score += query[d] * row[d]
            out[b, c] = score


@compiled
def fill_bits(key: int, out: Int64[np.ndarray, " n"], start: int, stop: int) -> None:
    """Words start to stop of `seeds.counter_bits` of 0, 1, 2 and so on: random bits by SplitMix64."""
    words = out.view(np.uint64)
    for i in range(start, stop):
        z = np.uint64(i + 1) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[i] = z ^ (z >> np.uint64(31))


def over_rows(
    kernel: Callable[..., None],
    n: int,
    *arguments: Any,
    worth_a_thread: int = ROWS_WORTH_A_THREAD,
    threads: int | None = None,
) -> None:
    """Call a kernel for rows 0 to n, split among threads, as many as torch uses unless said. Each row is one thread's.

    So no sum depends on how many there are.
    """
    arguments = tuple(a.numpy() if isinstance(a, torch.Tensor) else a for a in arguments)
    threads = min(threads or torch.get_num_threads(), 1 + n // worth_a_thread)
    if threads == 1:
        kernel(*arguments, 0, n)
        return
    in_threads(lambda part: kernel(*arguments, n * part // threads, n * (part + 1) // threads), threads)


def in_threads(work: Callable[[int], None], parts: int) -> None:
    """Do parts 0 to `parts` of some work side by side, and wait for all; also after Ctrl-C.

    By the threads of torch's own operations where they are OpenMP's: those wait busily for a while for what comes next,
    and threads beside them would wait as long for a core.

    Raises:
        KeyboardInterrupt: Also where a signal's handler raised something else just as a thread came in: Python prints
            that and goes on.
    """
    team = openmp()
    if team is None:
        others = [pool(parts).submit(work, part) for part in range(1, parts)]
        try:
            work(0)
        finally:
            wait(others)
        for other in others:
            other.result()
        return
    errors: list[BaseException] = []
    done: list[int] = []

    def share(_: None) -> None:
        try:
            # There may be fewer threads than were asked for.
            for part in range(team.thread(), parts, team.threads()):
                work(part)
                done.append(part)
        except BaseException as error:
            errors.append(error)

    team.parallel(TEAM_WORK(share), None, parts, 0)
    if errors:
        raise errors[0]
    if len(done) < parts:
        raise KeyboardInterrupt


TEAM_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team(NamedTuple):
    """Functions of GNU OpenMP."""

    parallel: Callable[[Any, None, int, int], None]
    """Call a function in so many threads; the calling one is the first of them."""
    thread: Callable[[], int]
    """Which of them this is."""
    threads: Callable[[], int]
    """How many there are."""


@functools.cache
def openmp() -> Team | None:
    """Of the library that torch has loaded for its own operations, or None where that has other threads."""
    if "OpenMP" not in torch.__config__.parallel_info().partition("ATen parallel backend:")[2]:
        return None
    try:
        # Once with Python's lock let go, and twice with it kept: those two are over at once.
        parallel, kept = ctypes.CDLL(None).GOMP_parallel, ctypes.PyDLL(None)
        thread, threads = kept.omp_get_thread_num, kept.omp_get_num_threads
    except (AttributeError, OSError, TypeError):  # not there; on Windows no library is without a name
        return None
    parallel.argtypes, parallel.restype = [TEAM_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return Team(parallel, thread, threads)


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads beside the calling one. Not Numba's own: two runtimes that wait for work busily starve each other."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
