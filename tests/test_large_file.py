"""Large files: the same bytes whatever the system makes of a request to leave its cache out."""

import contextlib
import errno
import itertools
import os

import numpy as np
import pytest

from skiprec import large_file
from skiprec.large_file import ROOM, LargeFile

SIZES = [0, 1, 4095, 4096, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 2 * ROOM + 4097]


def written(path, content: bytes, start: bytes = b"") -> bytes:
    """What is in a file after content was written in uneven pieces, and other bytes over its start."""
    cuts = [0, 7, 100, 5000, ROOM // 2 + 3, ROOM + 2, len(content)]
    with LargeFile(path) as file:
        for a, b in itertools.pairwise(cuts):
            file.write(memoryview(content)[a:b])
        if start:
            file.write_start(start)
    return path.read_bytes()


@pytest.fixture(params=["as it is", "refused when opened", "refused when written", "written in part"])
def system(request, monkeypatch):
    """Ways in which a file system answers; as it is, this one's."""
    really_open, really_write, refused = os.open, os.write, OSError(errno.EINVAL, "Invalid argument")
    if large_file.PAST_CACHE == 0:
        pytest.skip("this system always writes by its cache")

    def open_(path, flags, *mode):
        if request.param == "refused when opened" and flags & large_file.PAST_CACHE:
            raise refused
        return really_open(path, flags, *mode)

    def write(descriptor, data):
        is_past = bool(large_file.fcntl.fcntl(descriptor, large_file.fcntl.F_GETFL) & large_file.PAST_CACHE)
        if request.param == "refused when written" and is_past:
            raise refused
        if request.param == "written in part":  # after which what is left starts in the midst of a block
            if is_past and len(data) % 512:
                raise refused
            return really_write(descriptor, data[: len(data) // 512 * 512 // 2 // 512 * 512 or 100])
        return really_write(descriptor, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_a_file_holds_what_was_written(tmp_path, system, size):
    """Of sizes on both sides of a block's and of the room's, in uneven pieces; also with its start written last."""
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert written(tmp_path / "a", content) == content
    start = b"start"[:size]
    assert written(tmp_path / "a", content, start) == start + content[len(start) :]  # over the earlier one


def test_the_cache_is_left_out_where_it_can_be(tmp_path, monkeypatch):
    """On a disk's file system a whole room is written past it, and what is no whole block by it."""
    seen = []
    really_write = os.write

    def write(descriptor, data):
        flags = large_file.fcntl.fcntl(descriptor, large_file.fcntl.F_GETFL)
        seen.append((len(data), bool(flags & large_file.PAST_CACHE)))
        return really_write(descriptor, data)

    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (AttributeError, OSError):
        pytest.skip("the folder for temporary files is not on a disk that can be written past the cache")
    monkeypatch.setattr(os, "write", write)
    written(tmp_path / "a", bytes(ROOM + 10))
    assert seen == [(ROOM, True), (10, False)]


def test_an_error_of_the_system_is_raised(tmp_path, monkeypatch):
    """Nothing but a refusal of the request itself is tried again."""

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "a", bytes(10))
    asked, really_open = [], os.open
    monkeypatch.setattr(os, "open", lambda *args: (asked.append(args), really_open(*args))[1])
    with pytest.raises(FileNotFoundError):
        LargeFile(tmp_path / "none" / "a")
    assert len(asked) == 1


def test_an_earlier_file_is_written_over_whole(tmp_path):
    """Also a longer one."""
    written(tmp_path / "a", bytes(2 * ROOM))
    assert written(tmp_path / "a", b"short") == b"short"


def test_a_file_is_closed_and_left_as_it_is_when_its_block_fails(tmp_path):
    """What was held is not written, and the descriptor is free again."""
    with contextlib.suppress(ZeroDivisionError), LargeFile(tmp_path / "a") as file:
        file.write(b"held")
        raise ZeroDivisionError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)
    assert (tmp_path / "a").read_bytes() == b""


def test_a_file_is_on_disk_before_its_block_has_ended(tmp_path, monkeypatch):
    """The last that is done is to wait for the disk: what is renamed afterwards is whole after a crash as well."""
    done = []
    for name in ("write", "fsync"):
        really = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, really=really: (done.append(name), really(*args))[1])
    written(tmp_path / "a", bytes(ROOM + 10), b"start")
    assert done == ["write", "write", "write", "fsync"]
