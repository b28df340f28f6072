"""Checkpoints: what is read back, and that no damaged, foreign or half-written one is taken."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from skiprec.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from skiprec.errors import CheckpointError
from skiprec.files import sha256

TENSORS = {
    "a": torch.tensor([[1.0, -2.5], [0.0, 3e-8]]),
    "b": torch.tensor([7, 2**40]),
    "step": torch.tensor(3.0),
}
ABOUT = {"dataset_digest": "0123456789", "epoch": 2, "config": {"learning_rate": 0.001, "context": "item", "x": True}}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", TENSORS, ABOUT)
    return tmp_path / "c.safetensors"


def load(path):
    return load_checkpoint(path, dataset_digest="0123456789")


def test_what_was_saved_is_read_back(path):
    tensors, about = load(path)
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_a_view_is_saved_as_what_it_shows(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path / "c", {"t": whole.T, "row": whole[1]}, ABOUT)
    tensors, _ = load(tmp_path / "c")
    assert torch.equal(tensors["t"], whole.T)
    assert torch.equal(tensors["row"], whole[1])


def test_weights_that_require_gradients_are_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path / "c", dict(model.named_parameters()), ABOUT)
    assert torch.equal(load(tmp_path / "c")[0]["bias"], model.bias.detach())


def test_the_same_content_is_the_same_bytes(path, tmp_path):
    turned = {name: TENSORS[name].clone() for name in reversed(TENSORS)}
    save_checkpoint(tmp_path / "again", turned, dict(reversed(ABOUT.items())))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_any_flipped_bit_is_refused(path):
    """Each byte of the file in turn, each of its bits and all of them."""
    content = path.read_bytes()
    assert len(content) < 2000
    for at in range(len(content)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            with pytest.raises(CheckpointError):
                load(path)
    path.write_bytes(content)
    load(path)


# The number becomes infinity, which canonical JSON refuses: a ValueError of its own.
def test_a_flipped_bit_that_makes_a_number_infinite_is_refused(path):
    save_checkpoint(path, TENSORS, ABOUT | {"limit": 1e308})
    content = path.read_bytes()
    assert content.count(b"1e+308") == 1
    path.write_bytes(content.replace(b"1e+308", b"9e+308"))
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_a_cut_or_prolonged_file_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_a_damaged_file_is_refused_by_name(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: damaged: its contents do not match its checksum; expected the file as it was written. "
        "Restore it, or train again"
    )


def metadata(about: dict) -> dict[str, str]:
    return {"skiprec": json.dumps(about, sort_keys=True, separators=(",", ":"))}


@pytest.mark.parametrize(
    "about",
    [None, {}, {"skiprec": "no json"}, {"skiprec": "[]"}, {"other": "{}"}, metadata({"format": 2, "checksum": "0"})],
)
def test_a_safetensors_file_of_another_kind_is_refused(tmp_path, about):
    (tmp_path / "c").write_bytes(safetensors.torch.save(TENSORS, about))
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "c")


def test_another_format_is_refused_by_its_number(tmp_path):
    (tmp_path / "c").write_bytes(safetensors.torch.save(TENSORS, metadata(ABOUT | {"format": 3, "checksum": "0"})))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "c")
    assert str(caught.value) == f"{tmp_path / 'c'}: has format 3, this version reads format 2"


def test_a_checkpoint_of_other_data_is_refused(path):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, dataset_digest="abcdefghij")
    assert str(caught.value) == (
        f"{path}: made from the dataset 01234567, expected abcdefgh; use it with the data that it was trained on"
    )


def test_a_missing_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none'}: cannot be read (No such file or directory), expected a checkpoint"
    )


@pytest.mark.parametrize(
    "other",
    [
        TENSORS | {"a": torch.tensor([[1.0, -2.5], [0.0, 4e-8]])},
        TENSORS | {"a": TENSORS["a"].reshape(4)},
        TENSORS | {"a": TENSORS["a"].double()},
        {("c" if name == "a" else name): value for name, value in TENSORS.items()},
        {name: value for name, value in TENSORS.items() if name != "step"},
    ],
    ids=["value", "shape", "dtype", "name", "missing"],
)
def test_the_digest_of_weights_is_of_names_dtypes_shapes_and_values(other):
    assert weights_digest(other) != weights_digest(TENSORS)
    assert weights_digest(dict(reversed(TENSORS.items()))) == weights_digest(TENSORS)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from skiprec.checkpoint import load_checkpoint, save_checkpoint
from skiprec.errors import OutputError

path = Path(sys.argv[1])
about = {"dataset_digest": "d", "epoch": 1}
save_checkpoint(path, {"w": torch.ones(5000)}, about)
before = path.read_bytes()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for size in (0, 1, 7, 8, 100, 200, 1000, 4096, 19999, len(before) - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        save_checkpoint(path, {"w": torch.zeros(5000)}, about | {"epoch": 2})
    except OutputError as error:
        said = str(error)
    else:
        raise SystemExit(f"nothing was said at {size} bytes")
    assert said.startswith(f"{path}: cannot be written (File too large)"), said
    assert path.read_bytes() == before, size
    assert [p.name for p in path.parent.iterdir()] == [path.name], size
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
save_checkpoint(path, {"w": torch.zeros(5000)}, about | {"epoch": 2})
assert load_checkpoint(path, dataset_digest="d")[1]["epoch"] == 2
print("held")
"""


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """Files may not grow beyond ten different sizes: each time one line is said, and the old file is as it was."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "c.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr


@pytest.mark.parametrize("piece", [1, 8, 100, 1 << 22])
def test_pieces_make_no_difference(tmp_path, monkeypatch, piece):
    """However many rows are written at a time: the bytes of all tensors, and a digest made by hand of all at once."""
    table = torch.randn(7, 2, 3)
    tensors = {
        "strided": table[:, 1],
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "numbers": torch.arange(9),
    }
    parts = []
    for name in sorted(tensors):
        values = tensors[name].contiguous().numpy()
        parts += [f"{name} {tensors[name].dtype} {values.shape}".encode(), values.tobytes()]
    monkeypatch.setattr("skiprec.checkpoint.PIECE_BYTES", piece)
    assert weights_digest(tensors) == sha256(*parts)
    save_checkpoint(tmp_path / "c", tensors, ABOUT)
    assert (tmp_path / "c").read_bytes().endswith(b"".join(parts[1::2]))
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert {n: t.tolist() for n, t in loaded.items()} == {n: t.tolist() for n, t in tensors.items()}
