"""Find the sensors of the machine."""

import time
from collections.abc import Callable

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.clocks import find_clocks
from edgelm.devices.sensors.memory import find_memory
from edgelm.devices.sensors.nvml import find_gpus
from edgelm.devices.sensors.rails import find_rails
from edgelm.devices.sensors.rapl import find_rapl
from edgelm.devices.sensors.reader import Found
from edgelm.devices.sensors.sampler import INTERVAL_S, Sampler
from edgelm.devices.sensors.temperature import find_temperatures
from edgelm.devices.sensors.throttle import find_throttles


def open_sensors(
    probes: Probes | None = None,
    interval_s: float = INTERVAL_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Sampler:
    """A sampler of all sensors that can be read.

    Call it in the process that samples, after any fork. Use the result as a context manager, or
    close it.
    """
    readers, unread = find_sensors(probes or Probes(), clock)
    return Sampler(readers, unread, interval_s=interval_s, clock=clock)


def find_sensors(probes: Probes, clock: Callable[[], float] = time.perf_counter) -> Found:
    """Open readers of all working sensors, and the others with the reason."""
    found = [
        find_memory(probes),
        _find_power(probes, clock),
        find_temperatures(probes),
        find_clocks(probes),
        find_throttles(probes),
        find_gpus(probes),
    ]
    readers = [reader for working, _ in found for reader in working]
    unread = [one for _, missing in found for one in missing]
    if not any(reader.kind == "throttle" for reader in readers):
        unread.append(
            Unread("throttling", "/sys/class/thermal, NVML", "not reported by this machine")
        )
    return readers, unread


def _find_power(probes: Probes, clock: Callable[[], float]) -> Found:
    """Power of the board, or else of the processor, which the board's monitor includes."""
    rails = find_rails(probes)
    return rails if any(rails) else find_rapl(probes, clock)
