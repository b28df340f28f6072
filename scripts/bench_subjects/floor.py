"""What a training step cannot take less than: its multiplications and its bytes at the rates that this machine has.

seconds = 2 * multiply_adds / matrix_rate + bytes / copy_bandwidth, nothing overlapped, nothing else counted.
multiply_adds: those of the encoder, three times (forward, and backward to inputs and to weights), causal attention
counted by half; and three products of (B T, D) with (D, N) for the loss. matrix_rate: that of the fastest of PyTorch's
two libraries, MKL, which it gives matrices to, and oneDNN, which it gives convolutions to, here with a window of one
place, and the program's own products. bytes: of each distinct row of the item table that a step touches, weights and
both moments read and written, the gradient written and read: 8 D floats.
"""

import time
from collections.abc import Callable

import measuring
import torch
from measuring import BLOCKS, FEED_FORWARD, B, D, N, T

from skiprec.linear import summed_products

MATRIX = 1024
COPIED_FLOATS = 2**26
"""256 MiB: far more than the caches hold."""


def best_seconds(work: Callable[[], object], seconds: float) -> float:
    """The fastest of repeated runs: what the machine can do when it is left alone. A slow one would be no floor."""
    times = []
    start = time.perf_counter()
    while len(times) < 10 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return min(times)


def matrix_rates(seconds: float) -> dict[str, float]:
    """Operations a second in the product of two square matrices, by library."""
    a, b, product = (torch.rand(MATRIX, MATRIX) for _ in range(3))
    # The rows of a as the pixels of 32 images, each with MATRIX channels, whose numbers lie beside each other.
    images, weights = a.view(32, MATRIX // 32, 1, MATRIX).permute(0, 3, 1, 2), b[:, :, None, None]
    works = {
        "mkl": lambda: torch.mm(a, b, out=product),
        "onednn": lambda: torch.nn.functional.conv2d(images, weights),
        "own": lambda: summed_products(a, b),
    }
    return {library: 2 * MATRIX**3 / best_seconds(work, seconds / 3) for library, work in works.items()}


def multiply_adds() -> dict[str, int]:
    """Of one step, by part."""
    per_token = BLOCKS * (4 * D * D + 2 * D * FEED_FORWARD + 2 * D * (T + 1) // 2) + D * D
    return {"encoder": 3 * B * T * per_token, "loss": 3 * B * T * N * D}


def touched_rows(task: measuring.Task) -> int:
    """Distinct rows of one step, counted on the benchmark's own first batch and a draw."""
    sessions = measuring.whole_sessions(task)[measuring.batch_rows(0), : T + 1]
    negatives = torch.randint(1, task.items + 1, (B if task.mode == "session" else 1, N))
    return len(torch.cat([sessions.flatten(), negatives.flatten()]).unique())


def main() -> None:
    """Print the parts and their sum."""
    task = measuring.read_task()
    start, others = time.perf_counter(), measuring.cpu_seconds_of_others()
    rates = matrix_rates(task.seconds / 2)
    matrix_rate = max(rates.values())
    source, target = torch.rand(COPIED_FLOATS), torch.rand(COPIED_FLOATS)
    bandwidth = 2 * 4 * COPIED_FLOATS / best_seconds(lambda: target.copy_(source), task.seconds / 2)
    others_share = measuring.others_share(start, others)
    counts = multiply_adds()
    rows = touched_rows(task)
    n_bytes = rows * D * 4 * 8
    encoder, loss = (2 * counts[part] / matrix_rate for part in ("encoder", "loss"))
    memory = n_bytes / bandwidth
    figures = {
        "step_seconds": encoder + loss + memory,
        "sessions_per_second": B / (encoder + loss + memory),
        "encoder_seconds": encoder,
        "loss_seconds": loss,
        "memory_seconds": memory,
        "multiply_adds": counts,
        "touched_rows": rows,
        "bytes": n_bytes,
        "matrix_gflops": matrix_rate / 1e9,
        "matrix_gflops_by": {library: rate / 1e9 for library, rate in rates.items()},
        "copy_gb_per_second": bandwidth / 1e9,
        "others_share": others_share,
    }
    measuring.report(figures, notes="2 * multiply_adds / matrix_gflops + bytes / copy_gb_per_second")


if __name__ == "__main__":
    main()
