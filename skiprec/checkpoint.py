"""Weights as safetensors, together with the configuration and the data that made them, under one checksum.

Written piece by piece: a checkpoint of a million items, all of it made in memory first, would take twice what training
does. Each piece is hashed by one thread as another one writes it.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from skiprec.errors import CheckpointError
from skiprec.files import canonical_json, replacing, sha256
from skiprec.large_file import LargeFile

FORMAT = 2
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32", torch.int64: "I64"}
"""Those that checkpoints hold, by safetensors' names."""
PIECE_BYTES = 1 << 22
"""Of a tensor that are hashed and written at a time."""


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for piece in pieces(tensors):
        take(digest, *piece)
    return digest.hexdigest()


def take(digest: Any, before: bytes, values: memoryview) -> None:
    """Have a SHA-256 take what `pieces` gives."""
    digest.update(before)
    digest.update(values)


def pieces(tensors: dict[str, Tensor]) -> Iterator[tuple[bytes, memoryview]]:
    """The bytes of all tensors, some rows at a time, in the order of the names.

    Yields:
        What the digest has before these values: at a tensor's start its name, dtype, shape and length; and the values.
    """
    for name, tensor in sorted(tensors.items()):
        label = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        before = len(label).to_bytes(8, "little") + label + tensor.nbytes.to_bytes(8, "little")
        # Its rows may lie apart, or on a device: as much is copied as is worked on.
        n_rows = len(tensor) if tensor.ndim else 1
        rows = max(1, PIECE_BYTES * n_rows // max(1, tensor.nbytes))
        for start in range(0, max(1, n_rows), rows):
            part = tensor[start : start + rows] if tensor.ndim else tensor
            yield before, part.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data
            before = b""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what they belong to, whole or not at all.

    Args:
        path: A .safetensors file.
        tensors: By name.
        about: Plain values: configuration, dataset digest, epoch.

    Raises:
        OutputError: If it cannot be written.
    """
    digest = hashlib.sha256()
    # The checksum stands at the start and is known at the end: as many zeros keep its place.
    with replacing(path) as beside, LargeFile(beside) as file, ThreadPoolExecutor(1) as hasher:
        file.write(head(tensors, about, "0" * 64))
        for before, values in pieces(tensors):
            taken = hasher.submit(take, digest, before, values)
            file.write(values)
            taken.result()
        file.write_start(head(tensors, about, digest.hexdigest()))


def head(tensors: dict[str, Tensor], about: dict[str, Any], digest: str) -> bytes:
    """What stands before a checkpoint's values: the same for the same contents.

    Args:
        tensors: By name.
        about: Plain values.
        digest: `weights_digest` of the tensors.
    """
    # What the tensors belong to is under the checksum as well as the tensors.
    checksum = sha256(canonical_json(about).encode(), digest.encode())
    header: dict[str, Any] = {
        "__metadata__": {"skiprec": canonical_json(about | {"format": FORMAT, "checksum": checksum})}
    }
    start = 0
    for name, tensor in sorted(tensors.items()):
        stop = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def load_checkpoint(path: Path, *, dataset_digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back, on the CPU.

    Args:
        path: What `save_checkpoint` wrote.
        dataset_digest: Of the data that it is to be used with; None for any.

    Raises:
        CheckpointError: If it is missing, damaged, or made from other data.
    """
    damaged = CheckpointError(
        f"{path}: damaged: its contents do not match its checksum; expected the file as it was written. "
        "Restore it, or train again"
    )
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), path.stat().st_size))
        tensors = safetensors.torch.load_file(path)
        about = json.loads(json.loads(start[8:])["__metadata__"]["skiprec"])
        file_format = about.pop("format")
        del about["checksum"]
        # Made again from what was read, checksum included: no byte of the file can differ from what was written.
        is_whole = file_format != FORMAT or head(tensors, about, weights_digest(tensors)) == start
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), expected a checkpoint") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    if file_format != FORMAT:
        raise CheckpointError(f"{path}: has format {file_format}, this version reads format {FORMAT}")
    if not is_whole:
        raise damaged
    if dataset_digest is not None and about["dataset_digest"] != dataset_digest:
        raise CheckpointError(
            f"{path}: made from the dataset {about['dataset_digest'][:8]}, expected {dataset_digest[:8]}; "
            "use it with the data that it was trained on"
        )
    return tensors, about
