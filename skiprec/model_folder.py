"""A model's folder: weights with all that they belong to under one checksum, and item ids. Nothing is unpickled.

Nothing outside of the folder is read, and nothing of a size that a file only claims is made.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skiprec.checking import checked
from skiprec.checkpoint import load_checkpoint, save_checkpoint
from skiprec.errors import CheckpointError
from skiprec.files import canonical_json, sha256, write_file
from skiprec.model import ModelConfig, SequenceEncoder
from skiprec.requests import is_unicode, shown

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a model's file says of sizes."""

    n_items: int
    max_length: int
    skip_threshold: int


def rebuilt(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> SequenceEncoder:
    """The encoder that a model file's contents describe.

    Raises:
        CheckpointError: If they do not fit together, or a weight is no finite number.
    """
    try:
        if not isinstance(about["model"], dict):
            raise TypeError(f"model is {shown(about['model'])}, expected a table")
        config = checked(ModelConfig, about["model"], "model")
        sizes = checked(Sizes, {field.name: about[field.name] for field in dataclasses.fields(Sizes)}, "sizes")
        check_sizes(config, sizes, tensors)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or not all(map(torch.isfinite, tensor.aminmax())):
                raise ValueError(f"{name} is not of finite float32 numbers")
        with torch.device("meta"):  # weights come from the file: none are drawn
            model = SequenceEncoder(dataclasses.replace(config, init="torch"), sizes.n_items, sizes.max_length)
        model.load_state_dict(dict(tensors), assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is not a model ({reason}), expected what `study export` writes") from error
    return model


def check_sizes(config: ModelConfig, sizes: Sizes, tensors: Mapping[str, Tensor]) -> None:
    """Compare what a file claims with the tensors that it holds, before anything of a claimed size is made.

    Raises:
        ValueError: If they differ.
    """
    more = config.architecture == "bidirectional"  # [MSK], and its position
    found = {
        "items": tuple(tensors["items.weight"].shape),
        "positions": tuple(tensors["positions.weight"].shape),
        "blocks": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "feed_forward": len(tensors["blocks.0.linear1.bias"]),
    }
    claimed = {
        "items": (1 + sizes.n_items + more, config.dim),
        "positions": (sizes.max_length + more, config.dim),
        "blocks": config.n_layers,
        "feed_forward": config.feed_forward,
    }
    for name, claim in claimed.items():
        if found[name] != claim:
            raise ValueError(f"{name}: the weights have {found[name]}, its settings {claim}")
    if sizes.n_items < 1 or sizes.max_length < 1 or sizes.skip_threshold not in (1, 2, 3):
        raise ValueError(f"{sizes}")


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
    return model, item_ids(ids, text, model.n_items), about


def item_ids(path: Path, text: bytes, n_items: int) -> list[str]:
    """The ids in an item file's text.

    Raises:
        CheckpointError: If they are not as many different texts as the model has items.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    are_texts = isinstance(found, list) and all(isinstance(one, str) and is_unicode(one) for one in found)
    if not are_texts or len(found) != n_items or len(set(found)) != n_items:
        raise CheckpointError(f"{path}: is not a list of {n_items} different ids; restore it with {MODEL}")
    return found
