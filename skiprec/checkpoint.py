"""Weights as safetensors, together with the configuration and the data that made them, under one checksum."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from skiprec.errors import CheckpointError
from skiprec.files import canonical_json, sha256, write_file

FORMAT = 1


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    parts: list[bytes] = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.numpy().tobytes()]
    return sha256(*parts)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what they belong to, whole or not at all.

    Args:
        path: A .safetensors file.
        tensors: By name.
        about: Plain values: configuration, dataset digest, epoch.

    Raises:
        OutputError: If it cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_file(path, encode(tensors, about))


def encode(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint: the same for the same contents, as there is one metadata key alone."""
    # What the tensors belong to is under the checksum as well as the tensors.
    checksum = sha256(canonical_json(about).encode(), weights_digest(tensors).encode())
    about = about | {"format": FORMAT, "checksum": checksum}
    return safetensors.torch.save(tensors, {"skiprec": canonical_json(about)})


def load_checkpoint(path: Path, *, dataset_digest: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back, on the CPU.

    Args:
        path: What `save_checkpoint` wrote.
        dataset_digest: Of the data that it is to be used with.

    Raises:
        CheckpointError: If it is missing, damaged, or made from other data.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), expected a checkpoint") from error
    damaged = CheckpointError(
        f"{path}: damaged: its contents do not match its checksum; expected the file as it was written. "
        "Restore it, or train again"
    )
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["skiprec"])
        file_format = about.pop("format")
        del about["checksum"]
        # Made again from what was read, checksum included: no byte of the file can differ from what was written.
        is_whole = file_format != FORMAT or encode(tensors, about) == content
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged from error
    if file_format != FORMAT:
        raise CheckpointError(f"{path}: has format {file_format}, this version reads format {FORMAT}")
    if not is_whole:
        raise damaged
    if about["dataset_digest"] != dataset_digest:
        raise CheckpointError(
            f"{path}: made from the dataset {about['dataset_digest'][:8]}, expected {dataset_digest[:8]}; "
            "use it with the data that it was trained on"
        )
    return tensors, about
