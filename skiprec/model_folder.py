"""A model's folder: weights with all that they belong to under one checksum, and item ids. Nothing is unpickled.

Nothing outside of the folder is read, and nothing of a size that a file only claims is made.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skiprec.checkpoint import load_checkpoint, save_checkpoint
from skiprec.errors import CheckpointError
from skiprec.files import canonical_json, sha256, write_file
from skiprec.model import ModelConfig, SequenceEncoder

MODEL = "model.safetensors"
ITEMS = "items.json"


def write_model(
    folder: Path,
    model: SequenceEncoder,
    config: ModelConfig,
    item_ids: Sequence[str],
    *,
    max_length: int,
    skip_threshold: int,
    about: Mapping[str, Any],
) -> None:
    """Write what `Recommender.load` reads into a folder that is there.

    Args:
        folder: Where.
        model: The encoder.
        config: Its shape.
        item_ids: The log's own ids, in the order of item_index.
        max_length: Longest session of the data.
        skip_threshold: The data's.
        about: What else the model is to say of itself; its dataset_digest is needed.

    Raises:
        OutputError: If it cannot be written.
    """
    text = json.dumps(list(item_ids), ensure_ascii=False).encode()
    write_file(folder / ITEMS, text)
    own = {
        "model": dataclasses.asdict(config),
        "n_items": len(item_ids),
        "max_length": max_length,
        "skip_threshold": skip_threshold,
        "items_digest": sha256(text),
    }
    save_checkpoint(folder / MODEL, model.state_dict(), json.loads(canonical_json(dict(about) | own)))


def inside(folder: Path, name: str) -> Path:
    """A file of a folder.

    Raises:
        CheckpointError: If it is a link to a place outside.
    """
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise CheckpointError(
            f"{path}: leads to {path.resolve()}, outside of the model's folder; expected a file in it"
        )
    return path


def rebuilt(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> SequenceEncoder:
    """The encoder that a model file's contents describe.

    Raises:
        CheckpointError: If they do not fit together.
    """
    try:
        config = ModelConfig(**about["model"])
        rows, dim = tensors["items.weight"].shape
        # Before anything of a size that a file only claims is made.
        if (rows, dim) != (1 + about["n_items"] + (config.architecture == "bidirectional"), config.dim):
            raise ValueError(f"{about['n_items']} items of width {config.dim}, but a table of {rows} x {dim}")
        if about["max_length"] < 1 or about["skip_threshold"] not in (1, 2, 3):
            raise ValueError(f"max_length {about['max_length']}, skip_threshold {about['skip_threshold']}")
        with torch.device("meta"):  # weights come from the file: none are drawn
            model = SequenceEncoder(dataclasses.replace(config, init="torch"), about["n_items"], about["max_length"])
        model.load_state_dict(dict(tensors), assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is not a model ({reason}), expected what `study export` writes") from error
    return model


def read_model(folder: Path) -> tuple[SequenceEncoder, list[str], dict[str, Any]]:
    """What `write_model` wrote: the encoder on the CPU, item ids, and what the model says of itself.

    Raises:
        CheckpointError: If a file is missing, damaged, of another model, or lies outside of the folder.
    """
    path, ids = inside(folder, MODEL), inside(folder, ITEMS)
    tensors, about = load_checkpoint(path)
    model = rebuilt(path, tensors, about)
    try:
        text = ids.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{ids}: cannot be read ({error.strerror}), expected the item ids") from error
    if sha256(text) != about.get("items_digest"):
        raise CheckpointError(f"{ids}: is not the list of items that {MODEL} was made with; restore both together")
    return model, json.loads(text), about
