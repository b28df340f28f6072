"""The machine that training runs on: which device, how many threads, and settings that make numbers repeatable."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import torch

from skiprec.errors import ConfigError


def settle(device: str, threads: int) -> torch.device:
    """Choose the device and fix what the whole process computes with.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        threads: CPU threads of one operation. Sums are split by thread, so it is part of what a run's numbers are.

    Raises:
        ConfigError: If the device is unknown or absent.
    """
    # cuBLAS reads this when it starts; without it some of its sums differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ConfigError(f"--device {device}: unknown, expected auto, cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: not supported, expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Or every new tensor is filled with NaN first, which takes a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory()
    return chosen


def keep_freed_memory() -> None:
    """Keep large buffers in the process between steps, where the C library is glibc.

    It would give them back to the system after every step and take them again, page fault by page fault.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4  # names and numbers of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # never: any number of an int would be a limit of 2 GB


def use_huge_pages(memory: torch.Tensor) -> torch.Tensor:
    """Ask Linux for large pages under a large tensor, and return it.

    Rows are read and written at random places; with pages of 4 KiB a quarter of that time goes into finding them. Only
    advice: where it is not taken, or there is no Linux, everything works as before.
    """
    page = 1 << 21
    if memory.device.type != "cpu" or platform.system() != "Linux" or memory.nbytes < 2 * page:
        return memory
    start = -(-memory.data_ptr() // page) * page
    size = (memory.data_ptr() + memory.nbytes - start) // page * page
    madv_hugepage = 14  # of mman.h
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), madv_hugepage)
    return memory


def has_kernels(device: torch.device) -> bool:
    """Whether the compiled loops of `row_kernels` serve float32 on this device, and values may be asked for at no cost.

    Elsewhere torch's operations serve, and no shape and no branch depends on data.
    """
    return device.type == "cpu"


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What this thread asks of a GPU meanwhile is done beside what others ask of it; elsewhere nothing changes.

    On the default stream, which threads share, each would wait for all.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
        stream.synchronize()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations stay in the calling thread meanwhile.

    For many small ones: threads wait busily for each other after each, and long where other programs want the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
