"""Memory of this machine: /proc on Linux, the system's own calls on Windows and macOS."""

import ctypes
import os
from pathlib import Path
from typing import Any


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be used without swapping; all physical memory if that is unknown."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    status = _windows_status()
    return int(status.available_physical) if status else physical_bytes()


def physical_bytes() -> int:
    """All physical memory."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = _windows_status()
    if status is None:
        raise OSError("this system does not report its memory")
    return int(status.total_physical)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows' sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


def _windows_status() -> Any:
    """What Windows says of its memory; None on other systems."""
    windows = getattr(ctypes, "windll", None)
    if windows is None:
        return None
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status
