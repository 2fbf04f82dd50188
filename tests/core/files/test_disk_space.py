"""Space that is taken before a file is written through a memory map."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from edgelm.files.disk_space import reserve


def test_a_new_file_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "new"
    reserve(path, 5000)
    assert path.read_bytes() == bytes(5000)
    assert path.stat().st_blocks * 512 >= 5000


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"abcdef")
    reserve(path, 4, start=4)
    assert path.read_bytes() == b"abcdef\0\0"


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "new"
    with pytest.raises(OSError, match=r"No space left on device: '.*new'"):
        reserve(path, 5000)
    assert not path.exists(), "a file that was made here"
    path.write_bytes(b"abc")
    with pytest.raises(OSError, match="No space left"):
        reserve(path, 5000)
    assert path.read_bytes() == b"abc"


def test_systems_that_reserve_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    reserve(tmp_path / "new", 5000)
    assert (tmp_path / "new").stat().st_size == 0
