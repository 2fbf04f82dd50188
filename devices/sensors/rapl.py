"""Power of Intel and AMD processors from RAPL, which counts energy.

A reading is the mean power since the previous one. Packages count, and their DRAM if it has its own
counter; cores and graphics are part of the package, and the package is part of `psys`.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes, reason
from edgelm.devices.sensors.reader import Found, NumberFile, Reader, place, sort_out

_MIN_S = 0.02  # the counter is updated once per millisecond; shorter intervals are noise
_ZONES = "/sys/class/powercap/intel-rapl:*"
_COUNTED = re.compile(r"package-\S+( dram)?")


def find_rapl(probes: Probes, clock: Callable[[], float]) -> Found:
    """Processor packages and their memory."""
    zones = [_zone(probes, path, clock) for path in probes.glob(f"{_ZONES}/energy_uj")]
    readers, unread = sort_out(zone for zone in zones if zone)
    if not readers and not unread:
        unread = [Unread("processor power", _ZONES, "not there")]
    return readers, unread


def _zone(probes: Probes, path: Path, clock: Callable[[], float]) -> Reader | Unread | None:
    where = place(probes, path)
    try:
        name = _name(path.parent)
        if not _COUNTED.fullmatch(name):
            return None
        power = EnergyCounter(path, path.with_name("max_energy_range_uj"), clock)
    except (OSError, ValueError) as error:
        return Unread("processor power", where, reason(error))
    return Reader(name, "power", "W", where, power.read, "cpu", power.close)


def _name(zone: Path) -> str:
    name = (zone / "name").read_text().strip()
    if name != "dram":
        return name
    package = zone.with_name(zone.name.rpartition(":")[0])  # intel-rapl:0 of intel-rapl:0:2
    return f"{_name(package)} dram"


class EnergyCounter:
    """Watts from a counter of microjoules that wraps around to zero."""

    def __init__(self, energy: Path, largest: Path, clock: Callable[[], float]) -> None:
        self._largest = float(largest.read_text())
        self._clock = clock
        self._before: tuple[float, float] | None = None
        self._watts = math.nan
        self._file = NumberFile(energy)

    def read(self) -> float:
        """Mean watts since the previous reading; NaN for the first one."""
        energy, now = self._file.read(), self._clock()
        if self._before is None:
            self._before = now, energy
        elapsed = now - self._before[0]
        if elapsed >= _MIN_S:
            microjoules = energy - self._before[1]
            if microjoules < 0:
                microjoules += self._largest
            self._watts = microjoules * 1e-6 / elapsed
            self._before = now, energy
        return self._watts

    def close(self) -> None:
        """Close the file."""
        self._file.close()
