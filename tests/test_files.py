"""Files and folders are there whole or not at all; digests and canonical JSON are what they say."""

import hashlib
import math
import os
from pathlib import Path

import pytest

from skiprec import files
from skiprec.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_written_over(tmp_path):
    files.write_file(tmp_path / "a", "tëxt\n")
    assert (tmp_path / "a").read_bytes() == "tëxt\n".encode()
    files.write_file(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a"]


def no_space(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    files.write_file(tmp_path / "a", "earlier")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(OutputError) as caught:
        files.write_file(tmp_path / "a", "later")
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: cannot be written (No space left on device); nothing was left there. "
        "Free space or choose another place, then run the same command again"
    )
    assert (tmp_path / "a").read_text() == "earlier"
    assert names(tmp_path) == ["a"]


def test_a_file_in_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(OutputError, match=r"none/a: cannot be written \(No such file or directory\)"):
        files.write_file(tmp_path / "none" / "a", "text")


def test_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    files.write_file(tmp_path / "a", "text")
    assert calls == ["fsync", "replace", "fsync"]  # the file, then its name


def test_a_new_folder_appears_when_it_is_full(tmp_path):
    with files.new_folder(tmp_path / "deep" / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("text")
        assert not (tmp_path / "deep" / "d").exists()
    assert (tmp_path / "deep" / "d" / "sub" / "a").read_text() == "text"
    assert names(tmp_path / "deep") == ["d"]


def fill_and_fail(folder: Path, error: BaseException) -> None:
    with files.new_folder(folder) as beside:
        (beside / "a").write_text("text")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_folder_whose_filling_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        fill_and_fail(tmp_path / "d", error)
    assert names(tmp_path) == []


def test_a_full_disk_while_filling_a_folder_is_told_by_name(tmp_path):
    with pytest.raises(OutputError, match=r"d: cannot be written \(No space left"), files.new_folder(tmp_path / "d"):
        no_space()
    assert names(tmp_path) == []


def test_what_exists_is_refused_and_not_touched(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("text")
    with pytest.raises(OutputError) as caught, files.new_folder(tmp_path / "d"):
        pytest.fail("the block was entered")
    assert str(caught.value) == f"{tmp_path / 'd'} already exists; choose another --out, or remove it first"
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["mine"]
    with pytest.raises(OutputError):
        files.refuse_existing(tmp_path / "d" / "mine")
    files.refuse_existing(tmp_path / "free")


def test_canonical_json_is_one_text_for_equal_values():
    assert files.canonical_json({"b": [1, 0.5, True], "a": "é"}) == '{"a":"é","b":[1,0.5,true]}'
    assert files.canonical_json({"a": 1, "b": 2}) == files.canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"a": math.nan})


def test_sha256_puts_each_parts_length_before_it():
    by_hand = hashlib.sha256((2).to_bytes(8, "little") + b"ab" + (1).to_bytes(8, "little") + b"c").hexdigest()
    assert files.sha256(b"ab", b"c") == by_hand
    assert files.sha256(b"a", b"bc") != by_hand
    assert files.sha256(b"abc") != by_hand
