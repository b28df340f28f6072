"""What the subjects of the benchmark share: the work, the sessions, the clock, and the line of JSON that they print.

A subject is a program of its own, run by scripts/bench.py in its own environment:
`python SUBJECT.py --items 50000 --measure train --mode session --seconds 5 --threads 2`. Only torch is needed here.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

# The work, the same for all: B sessions a step, T input positions with as many targets, D width, N negatives.
D, BLOCKS, HEADS, FEED_FORWARD, DROPOUT = 128, 2, 8, 128, 0.2
T, B, N = 20, 128, 1000
LEARNING_RATE, MAX_GRAD_NORM = 1e-3, 5.0
WHOLE = T + 3
"""Items of a whole session: T inputs, the last training target, and the two that are held out."""
N_TRAINED, N_EVALUATED = 128 * B, 16 * B
"""Sessions in memory; enough for training that their rows do not all stay in the caches."""
N_CANDIDATES = 1000
EVALUATED_AT_A_TIME = 256
BEST = 20
"""Items that a served session is answered with."""
SERVED_AT_ONCE = 128
"""Sessions of a batch that is served."""

PAUSE_SECONDS = 0.01
"""Before each request: the threads of what was timed before it wait busily for some milliseconds, on its cores."""

WARM_UP_STEPS = 4
BLOCK_SECONDS = 0.4


@dataclass(frozen=True)
class Task:
    """What this process is to measure."""

    items: int
    """Size of the catalogue; item indices are 1 to items."""
    measure: str
    """train, evaluate, serve, bound (the floor) or overhead."""
    mode: str
    """train: session, shared, position, catalogue, one. evaluate: candidates, catalogue, baselines. serve: one, batch.
    """
    seconds: float
    threads: int
    variant: str
    device: str
    """cpu or cuda; only who trains or evaluates has it from here."""


def read_task() -> Task:
    """The command line of every subject."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--measure", choices=("train", "evaluate", "serve", "bound", "overhead"), default="train")
    parser.add_argument("--mode", default="session")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--variant", default="")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    task = Task(**vars(parser.parse_args()))
    torch.set_num_threads(task.threads)
    torch.manual_seed(1)
    return task


def whole_sessions(task: Task) -> Tensor:
    """(n, WHOLE) random item indices, the same for every subject."""
    n = N_EVALUATED if task.measure == "evaluate" else N_TRAINED
    return torch.randint(1, task.items + 1, (n, WHOLE), generator=torch.Generator().manual_seed(1))


def batch_rows(step: int) -> Tensor:
    """The rows of one step's batch, in an order of its own each time round."""
    epoch, number = divmod(step, N_TRAINED // B)
    return order_of(epoch)[number * B : (number + 1) * B]


@functools.cache
def order_of(epoch: int) -> Tensor:
    """All rows once."""
    return torch.randperm(N_TRAINED, generator=torch.Generator().manual_seed(epoch))


def wait_for_device() -> None:
    """Until all that it was told to do is done; a CPU has no such queue."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def keep_freed_memory() -> None:
    """glibc keeps freed buffers in the process: without it a step pays for page faults (see skiprec.device)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def clock(step: Callable[[int], int], seconds: float) -> dict[str, float]:
    """Time steps in blocks, after a few that are reported apart.

    Args:
        step: Does step number i, from 0, and says how many sessions it took.
        seconds: About how long to measure.

    Returns:
        Median sessions a second and seconds a step over the blocks, the best block, the share of the machine's cores
        that other programs took meanwhile (0 where it cannot be told), and what the warm-up took.
    """
    start = time.perf_counter()
    done, passed = 0, 0.0
    # At least two: the first may compile, and allocates.
    while done < 2 or (done < WARM_UP_STEPS and passed < seconds) or passed < seconds / 5:
        before = time.perf_counter()
        step(done)
        wait_for_device()
        last, passed = time.perf_counter() - before, time.perf_counter() - start
        done += 1
    warm_up = passed
    steps_a_block = math.ceil(BLOCK_SECONDS / last)
    rates, times = [], []
    start, others = time.perf_counter(), cpu_seconds_of_others()
    while len(rates) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        sessions = sum(step(done + i) for i in range(steps_a_block))
        wait_for_device()
        block = time.perf_counter() - before
        done += steps_a_block
        rates.append(sessions / block)
        times.append(block / steps_a_block)
    return {
        "sessions_per_second": statistics.median(rates),
        "step_seconds": statistics.median(times),
        "best_sessions_per_second": max(rates),
        "others_share": others_share(start, others),
        "blocks": len(rates),
        "steps": done,
        "warm_up_seconds": warm_up,
    }


def serve(task: Task, table: Tensor, ask: Callable[[int], object], sessions: int) -> dict[str, float]:
    """Time requests one by one, each after a reading of the item table: what no exact answer can take less than.

    Args:
        task: Whose seconds.
        table: (items, D); it is read by a sum with all threads.
        ask: Answers request number i, from 0.
        sessions: Of a request.

    Returns:
        Sessions a second at the median; the median (step_seconds), 99th percentile and least seconds of a request;
        median and least of a reading; and the share of the machine's cores that other programs took meanwhile.
    """
    for i in range(3):
        ask(i)
        table.sum()
    asked, read = [], []
    start, others = time.perf_counter(), cpu_seconds_of_others()
    while len(asked) < 10 or time.perf_counter() - start < task.seconds:
        for times, work in ((read, table.sum), (asked, functools.partial(ask, len(asked)))):
            time.sleep(PAUSE_SECONDS)
            before = time.perf_counter()
            work()
            times.append(time.perf_counter() - before)
    asked.sort()
    return {
        "sessions_per_second": sessions / statistics.median(asked),
        "step_seconds": statistics.median(asked),
        "p99_seconds": asked[math.ceil(0.99 * len(asked)) - 1],
        "least_seconds": asked[0],
        "reading_seconds": statistics.median(read),
        "least_reading_seconds": min(read),
        "others_share": others_share(start, others),
        "requests": len(asked),
    }


def item_table(items: int) -> Tensor:
    """(items, D) embeddings, the same for every subject that serves."""
    return torch.empty(items, D).normal_(0, 0.02, generator=torch.Generator().manual_seed(1))


def served_queries(task: Task) -> Tensor:
    """(n, D) predicted embeddings for subjects that have no encoder, enough for requests to differ."""
    return torch.randn(32 * sessions_of_a_request(task), D, generator=torch.Generator().manual_seed(2))


def sessions_of_a_request(task: Task) -> int:
    """One, or a batch."""
    return SERVED_AT_ONCE if task.mode == "batch" else 1


def cpu_seconds_of_others() -> float:
    """CPU time since the machine started that was not this process's."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def others_share(start: float, others: float) -> float:
    """Share of the machine's cores that other programs took since `start` (perf_counter), when they had `others`."""
    return (cpu_seconds_of_others() - others) / ((time.perf_counter() - start) * (os.cpu_count() or 1))


def report(figures: dict, *, notes: str = "", packages: tuple[str, ...] = ()) -> None:
    """Print the line that bench.py reads."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", *packages)}
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_initialized():
        figures |= {"gpu": torch.cuda.get_device_name(), "gpu_peak_mib": torch.cuda.max_memory_reserved() / 2**20}
    print(json.dumps(figures | {"peak_mib": peak_mib, "notes": notes, "versions": versions}), flush=True)
