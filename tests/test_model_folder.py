"""A model's folder is read back as it was written, or refused by name: no file of it is trusted."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from conftest import small_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_recommend import FUZZED, made, scraps, sessions_of

from skiprec.checkpoint import load_checkpoint, save_checkpoint
from skiprec.errors import CheckpointError
from skiprec.files import sha256
from skiprec.model_folder import ITEMS, MODEL, write_model
from skiprec.recommend import Recommender, served


def made_folder(dataset, folder):
    """An untrained model's."""
    model, _ = made(dataset)
    config = dataclasses.replace(small_config().model, init="torch")
    sizes = {"max_length": dataset.max_length, "skip_threshold": 2}
    write_model(folder, model, config, dataset.item_ids(), about={"dataset_digest": "d"}, **sizes)
    return folder


@pytest.fixture
def folder(dataset, tmp_path):
    """A model's, to be changed."""
    return made_folder(dataset, tmp_path)


def test_a_models_folder_gives_the_same_scores(dataset, folder):
    """What was trained, and what is read back."""
    before, after = made(dataset)[1], Recommender.load(folder)
    for one, other in zip(
        before.recommend_many(sessions_of(dataset)), after.recommend_many(sessions_of(dataset)), strict=True
    ):
        assert one == other
    assert after.about["dataset_digest"] == "d"


def test_a_pickle_that_is_called_safetensors_is_refused_and_not_run(folder):
    """Its contents would write a file."""

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(folder / "run"),)

    (folder / MODEL).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=rf"{MODEL}: damaged"):
        Recommender.load(folder)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("length", [0, 5, 2**20, 2**40, 2**63 - 1])
def test_a_header_that_lies_about_its_length_is_refused(folder, length):
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match=rf"{MODEL}: damaged"):
        Recommender.load(folder)


@pytest.mark.parametrize("name", [MODEL, ITEMS])
def test_a_file_that_lies_outside_of_the_folder_is_refused(folder, name, tmp_path_factory):
    """By a link, as a path that climbs out."""
    outside = tmp_path_factory.mktemp("outside")
    shutil.move(folder / name, outside / name)
    (folder / name).symlink_to(outside / name)
    with pytest.raises(CheckpointError, match=rf"{name}: leads to .*, outside of the model's folder"):
        Recommender.load(folder)


def test_another_list_of_items_is_refused(folder):
    ids = json.loads((folder / ITEMS).read_text())
    (folder / ITEMS).write_text(json.dumps(ids[::-1]))
    with pytest.raises(CheckpointError, match=rf"{ITEMS}: is not the list of items that {MODEL} was made with"):
        Recommender.load(folder)
    (folder / ITEMS).unlink()
    with pytest.raises(CheckpointError, match=rf"{ITEMS}: cannot be read"):
        Recommender.load(folder)


def rewrite(folder, change=lambda about, tensors: None, ids=None):
    """Change what a model's file holds and make it whole again: a checksum is no signature, anyone can write one."""
    tensors, about = load_checkpoint(folder / MODEL)
    if ids is not None:
        (folder / ITEMS).write_text(ids)
        about["items_digest"] = sha256(ids.encode())
    change(about, tensors)
    save_checkpoint(folder / MODEL, tensors, about)


SIZES = [{"n_items": n} for n in (10**12, 3, -1, "3", 200.0, True)]
SIZES += [{"max_length": n} for n in (10**9, 10**30, 0, 20.0)] + [{"skip_threshold": n} for n in (0, 4, 2.0, None)]
SHAPES = [{"dim": 10**6}, {"n_heads": 3}, {"n_layers": 10**9}, {"feed_forward": 10**12}, {"dropout": "0"}]
SHAPES += [{"architecture": "bidirectional"}, {"positions": "backwards"}, {"activation": []}, {"skip_input": True}]


@pytest.mark.parametrize("change", [*SIZES, *({"model": shape} for shape in SHAPES), {"model": [1]}, {"model": None}])
def test_a_whole_file_whose_parts_do_not_fit_together_is_refused_before_anything_large_is_made(folder, change):
    """A billion layers of the size that is claimed would take hours and all memory."""

    def lie(about, tensors):
        shape = change.get("model")
        about.update(change | ({"model": about["model"] | shape} if isinstance(shape, dict) else {}))

    rewrite(folder, lie)
    with pytest.raises(CheckpointError, match=rf"{MODEL}: is not a model \(.{{,300}}\), expected what `study export`"):
        Recommender.load(folder)


@pytest.mark.parametrize("name", ["items.weight", "head.0.bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_finite_number_is_refused(folder, name, value):
    """It would be in the scores of every request, or leave none."""

    def spoil(about, tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError, match=rf"{MODEL}: is not a model \({name} is not of finite float32 numbers\)"):
        Recommender.load(folder)


def test_weights_of_another_precision_are_refused(folder):
    """They would fail at the first request."""

    def widen(about, tensors):
        tensors["items.weight"] = tensors["items.weight"].double()

    rewrite(folder, widen)
    with pytest.raises(CheckpointError, match="is not of finite float32 numbers"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: json.dumps(ids[:5]),
        lambda ids: json.dumps([*ids, "one more"]),
        lambda ids: json.dumps([ids[0]] * len(ids)),
        lambda ids: json.dumps(list(range(len(ids)))),
        lambda ids: json.dumps(["\ud800", *ids[1:]]),
        lambda ids: json.dumps({"items": ids}),
        lambda ids: "{",
        lambda ids: "[" * 100_000,
    ],
)
def test_a_list_of_items_that_is_not_the_models_is_refused(dataset, folder, change):
    """Also where its digest is right."""
    rewrite(folder, ids=change(dataset.item_ids()))
    with pytest.raises(
        CheckpointError, match=rf"{ITEMS}: is not a list of {dataset.n_items} different ids; restore it"
    ):
        Recommender.load(folder)


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        {"items.weight": {"dtype": "F32", "shape": [10**9, 128], "data_offsets": [0, 512 * 10**9]}},
        {"items.weight": {"dtype": "F32", "shape": [10**9, 128], "data_offsets": [0, 4]}},
        {"__metadata__": {"skiprec": "[" * 100_000}, "a": GOOD},
        {"__metadata__": {"skiprec": "9" * 5000}, "a": GOOD},
        {"__metadata__": {"skiprec": '{"format": 2, "checksum": "x", "a": NaN}'}, "a": GOOD},
        {"__metadata__": {"skiprec": '{"format": 2, "checksum": "x"}'}, "../../a": GOOD},
        {"__metadata__": {"skiprec": "{}"}, "a": GOOD | {"dtype": "BF16"}},
        {"a": GOOD},
        {},
        [],
    ],
)
def test_a_header_that_lies_about_what_follows_is_refused(folder, header):
    """Of tensors larger than the file, of nests without end, of names that climb out of the folder."""
    text = json.dumps(header).encode()
    (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + b"four")
    with pytest.raises(CheckpointError, match=rf"{MODEL}: damaged"):
        Recommender.load(folder)


@settings(max_examples=FUZZED // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["model", "n_items", "max_length", "skip_threshold", "items_digest", "dim"]), value=scraps)
def test_whatever_a_models_file_says_of_itself_is_read_or_refused(dataset, tmp_path_factory, name, value):
    """With no other exception than that of a checkpoint; what is read answers."""
    folder = made_folder(dataset, tmp_path_factory.mktemp("said"))

    def say(about, tensors):
        (about["model"] if name == "dim" else about)[name] = value

    with contextlib.suppress(TypeError, ValueError):  # it cannot be written as JSON
        rewrite(folder, say)
    with contextlib.suppress(CheckpointError):
        assert Recommender.load(folder).recommend(dataset.item_ids()[:1]).items


@settings(max_examples=FUZZED // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_was_changed_is_found(dataset, tmp_path_factory, data):
    """Anywhere in either file."""
    folder = made_folder(dataset, tmp_path_factory.mktemp("changed"))
    path = folder / data.draw(st.sampled_from([MODEL, ITEMS]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        Recommender.load(folder)


def test_a_folder_that_leads_out_of_what_was_exported_is_refused(folder, tmp_path_factory):
    """By a link in place of data/model; the folder itself may be one."""
    exported, link = tmp_path_factory.mktemp("exported"), tmp_path_factory.mktemp("link") / "model"
    (exported / "data").mkdir()
    (exported / "data" / "model").symlink_to(folder)
    with pytest.raises(CheckpointError, match=r"data/model: leads to .*, outside of .*/exported0"):
        served(exported)
    (exported / "data" / "model").unlink()
    shutil.copytree(folder, exported / "data" / "model")
    link.symlink_to(exported)
    assert served(link) == link / "data" / "model"
    assert served(folder) == folder
    assert served(exported / "data") is None
