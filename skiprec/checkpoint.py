"""Weights as safetensors, together with the configuration and the data that made them, under one checksum.

Written tensor by tensor: a checkpoint of a million items, all of it made in memory first, would take twice what
training does.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from skiprec.errors import CheckpointError
from skiprec.files import canonical_json, sha256, sha256_of, write_file

FORMAT = 2
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32", torch.int64: "I64"}
"""Those that checkpoints hold, by safetensors' names."""


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""

    def parts() -> Iterator[bytes | memoryview]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield data(tensor)

    return sha256_of(parts())


def data(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row after row."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what they belong to, whole or not at all.

    Args:
        path: A .safetensors file.
        tensors: By name.
        about: Plain values: configuration, dataset digest, epoch.

    Raises:
        OutputError: If it cannot be written.
    """
    write_file(path, itertools.chain([head(tensors, about)], (data(tensor) for _, tensor in sorted(tensors.items()))))


def head(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """What stands before a checkpoint's values: the same for the same contents."""
    # What the tensors belong to is under the checksum as well as the tensors.
    checksum = sha256(canonical_json(about).encode(), weights_digest(tensors).encode())
    header: dict[str, Any] = {
        "__metadata__": {"skiprec": canonical_json(about | {"format": FORMAT, "checksum": checksum})}
    }
    start = 0
    for name, tensor in sorted(tensors.items()):
        stop = start + tensor.numel() * tensor.element_size()
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
        is_whole = file_format != FORMAT or head(tensors, about) == start
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
