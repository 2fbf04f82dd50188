"""Memory of the machine, from recorded files."""

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgelm.devices.detection.memory import available_bytes, physical_bytes

# /proc/meminfo of an Orin Nano 8 GB, shortened.
RECORDED = """\
MemTotal:        7802884 kB
MemFree:          311516 kB
MemAvailable:    4983220 kB
Buffers:           84172 kB
SwapTotal:       3901440 kB
"""


def test_recorded_file(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(RECORDED)
    assert available_bytes(path) == 4_983_220 * 1024


class Kernel32:
    """Windows' function: it fills the record."""

    answers = True

    def GlobalMemoryStatusEx(self, pointer: Any) -> bool:  # noqa: N802
        status = pointer._obj
        assert status.length == 64  # what Windows checks
        status.total_physical, status.available_physical = 16 << 30, 9 << 30
        return self.answers


def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel32 = Kernel32()
    windows = SimpleNamespace(kernel32=kernel32)
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    monkeypatch.delattr(os, "sysconf")
    assert (available_bytes(tmp_path / "none"), physical_bytes()) == (9 << 30, 16 << 30)
    kernel32.answers = False
    with pytest.raises(OSError, match="does not report its memory"):
        physical_bytes()


@pytest.mark.parametrize(
    "content",
    [None, "", "MemTotal: 100 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n"],
    ids=["no-file", "empty", "old-kernel", "no-value", "no-number"],
)
def test_all_physical_memory_where_unknown(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "meminfo"
    if content is not None:
        path.write_text(content)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_bytes(path) == physical


def test_this_machine() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= physical
