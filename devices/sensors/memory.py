"""Memory in use on the whole machine.

If the GPU shares the memory (Jetson, GB10), this is also the GPU's figure: NVML has none there, and
cudaMemGetInfo changes with the page cache.
"""

import os
from pathlib import Path

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes, reason
from edgelm.devices.sensors.reader import Found, Reader, place, sort_out

_HEAD = 256  # bytes; both lines are among the first three


def find_memory(probes: Probes) -> Found:
    """Memory in use, MemTotal − MemAvailable: the rest is available without swapping."""
    return sort_out([_memory(probes, probes.path("/proc/meminfo"))])


def _memory(probes: Probes, path: Path) -> Reader | Unread:
    name, where = "memory in use", place(probes, path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        return Unread(name, where, reason(error))

    def read() -> float:
        return _used(os.pread(file.fileno(), _HEAD, 0)) / 1e6

    try:
        read()
    except (OSError, ValueError) as error:
        file.close()
        return Unread(name, where, reason(error))
    return Reader(name, "memory", "MB", where, read, close=file.close)


def _used(head: bytes) -> int:
    kilobytes = {}
    for line in head.splitlines():
        field, _, value = line.partition(b":")
        if field in (b"MemTotal", b"MemAvailable"):
            kilobytes[field] = int(value.split()[0])
    if len(kilobytes) < 2:
        raise ValueError("it does not contain MemTotal and MemAvailable")
    return 1024 * (kilobytes[b"MemTotal"] - kilobytes[b"MemAvailable"])
