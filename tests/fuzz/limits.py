"""What a child may take: address space, resident memory, time."""

import contextlib
import os
import resource
import sys
from pathlib import Path

_SLOWER = 5 if sys.gettrace() else 1  # a tracer, such as coverage's
SECONDS = 5.0 * _SLOWER
"""Processor time of one case."""
MOST_SECONDS = 30.0 * _SLOWER
"""Wall time of one case, on a machine that is busy with other things."""
GROWTH_BYTES = 500 * 10**6
"""Resident memory of one case, over what the child had before."""
_ADDRESS_BYTES = 2 * GROWTH_BYTES
_STATUS = Path("/proc/self/status")


def limit_address_space() -> None:
    """Let this process map a limited number of bytes more than it has mapped."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + _ADDRESS_BYTES, hard))


def lift_address_space() -> None:
    """Take back what `limit_address_space` set."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def reset_peak() -> int:
    """Start measuring the peak from here; returns the bytes that are resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Most bytes resident since `reset_peak`."""
    return _status_bytes("VmHWM")


def processor_seconds(pid: int) -> float:
    """Processor time that a process has taken; infinite where it is gone."""
    fields = _stat(pid)
    if not fields:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something that is neither a processor nor a disk."""
    return _stat(pid)[:1] == ["S"]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status_bytes(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
