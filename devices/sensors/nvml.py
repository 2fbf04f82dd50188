"""Sensors of NVIDIA GPUs.

NVML must be initialized in the process that reads, after any fork; closing one reader shuts it down
for all of them. All GPUs of the machine are read, whichever process uses them.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.reader import Found, Kind, Reader, sort_out

_TEMPERATURE_GPU = 0  # nvml.h, nvmlTemperatureSensors_t
_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t


def _reasons(nvml: Any, handle: Any) -> float:
    try:
        return float(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        # its name until driver 535
        return float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


_SENSORS: tuple[tuple[str, Kind, str, Callable[[Any, Any], float]], ...] = (
    ("memory", "memory", "MB", lambda nvml, h: nvml.nvmlDeviceGetMemoryInfo(h).used / 1e6),
    ("power", "power", "W", lambda nvml, h: nvml.nvmlDeviceGetPowerUsage(h) / 1e3),
    (
        "temperature",
        "temperature",
        "°C",
        lambda nvml, h: float(nvml.nvmlDeviceGetTemperature(h, _TEMPERATURE_GPU)),
    ),
    ("SM clock", "clock", "MHz", lambda nvml, h: float(nvml.nvmlDeviceGetClockInfo(h, _CLOCK_SM))),
    (
        "memory clock",
        "clock",
        "MHz",
        lambda nvml, h: float(nvml.nvmlDeviceGetClockInfo(h, _CLOCK_MEMORY)),
    ),
    ("throttling", "throttle", "reasons", _reasons),
)


def find_gpus(probes: Probes) -> Found:
    """The sensors of every GPU in NVML, which stays initialized until they are closed."""
    try:
        nvml = probes.pynvml()
    except ImportError:
        missing = "nvidia-ml-py is not installed; pip install 'edgelm[nvml]'"
        return [], [Unread("GPU", "NVML", missing)]
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], [Unread("GPU", "NVML", f"the driver does not answer: {str(error).lower()}")]
    library = _Library(nvml)
    found: list[Reader | Unread] = []
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            found += _gpu(library, handle, f"GPU {number}")
    except nvml.NVMLError as error:
        found.append(Unread("GPU", "NVML", str(error).lower()))
    readers, unread = sort_out(found)
    if not readers:
        library.close()
    return readers, unread


class _Library:
    """An initialized NVML that is shut down once."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(self.nvml.NVMLError):  # the driver may be gone
                self.nvml.nvmlShutdown()


def _gpu(library: _Library, handle: Any, gpu: str) -> Iterator[Reader | Unread]:
    nvml = library.nvml
    for name, kind, unit, ask in _SENSORS:
        read = partial(ask, nvml, handle)
        try:
            read()
        except nvml.NVMLError as error:
            why = str(error).lower()
            if kind == "memory" and error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                why = "shared with the processor: see memory in use"
            yield Unread(f"{gpu} {name}", "NVML", why)
        else:
            yield Reader(f"{gpu} {name}", kind, unit, "NVML", read, "gpu", library.close)
