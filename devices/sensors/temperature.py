"""Temperatures of the kernel's thermal zones."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.reader import Found, Part, Reader, file_reader, sort_out, text

_ZONES = "/sys/class/thermal/thermal_zone*"
_OFF = -256.0  # the value of L4T's driver for a unit that is switched off


def find_temperatures(probes: Probes) -> Found:
    """Every thermal zone, by its own name."""
    names = {path.parent: text(path) or path.parent.name for path in probes.glob(f"{_ZONES}/type")}
    times = Counter(names.values())
    readers, unread = sort_out(
        _zone(probes, zone, name if times[name] == 1 else f"{name} {_number(zone)}")
        for zone, name in names.items()
    )
    if not readers and not unread:
        unread = [Unread("temperature", _ZONES, "not there")]
    return readers, unread


def _zone(probes: Probes, zone: Path, name: str) -> Reader | Unread:
    found = file_reader(
        probes, [zone / "temp"], name, "temperature", "°C", scale=1e-3, part=_part(name)
    )
    return replace(found, read=_unless_off(found.read)) if isinstance(found, Reader) else found


def _unless_off(read: Callable[[], float]) -> Callable[[], float]:
    def reading() -> float:
        value = read()
        return value if value > _OFF else math.nan

    return reading


def _part(name: str) -> Part:
    if "gpu" in name.lower():
        return "gpu"
    return "cpu" if "cpu" in name.lower() else "board"


def _number(zone: Path) -> str:
    return zone.name.removeprefix("thermal_zone")
