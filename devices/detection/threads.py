"""The number of threads to use on this machine."""

import os
from pathlib import Path

_SMT = Path("/sys/devices/system/cpu/smt/active")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores(smt: Path = _SMT, quota: Path = _QUOTA) -> int:
    """Physical cores that this process may use; SMT siblings do not speed up matrix products.

    A control group's quota is respected: threads beyond it only wait for each other.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    count = len(allowed) if allowed else os.cpu_count() or 1
    try:
        active = smt.read_text().strip() == "1"
    except OSError:
        active = False
    cores = max(1, count // 2) if active else count
    return max(1, min(cores, _quota(quota) or cores))


def _quota(path: Path) -> int | None:
    """Whole processors that the control group allows (`cpu.max`: microseconds per period)."""
    try:
        granted, period = path.read_text().split()
        return None if granted == "max" else max(1, int(granted) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
