"""Power of a Jetson from the monitors on its board.

An INA3221 measures three rails, an INA238 (Thor) the input VIN of the whole board. The result is
one sensor for everything, never parts and their sum: VIN, the rail VDD_IN, or the sum of rails. A
reading waits about half a millisecond for an I2C transfer.
"""

from pathlib import Path

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes, reason
from edgelm.devices.sensors.reader import (
    Found,
    NumberFile,
    Reader,
    close_all,
    file_reader,
    place,
    sort_out,
    text,
)

_TOTAL = "VDD_IN"
# A rail that is part of another: NVIDIA's forum, thread 223111, of the AGX Orin.
_PART_OF = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
_CHANNELS = (1, 2, 3)  # in4 to in7 are shunt voltages and their sum, no rails


def find_rails(probes: Probes) -> Found:
    """The board's power as one sensor; nothing on a machine without these monitors."""
    monitors: dict[str, list[Path]] = {}
    for path in probes.glob("/sys/class/hwmon/hwmon*/name"):
        monitors.setdefault(text(path), []).append(path.parent)
    tried = []
    if inputs := monitors.get("ina238"):
        tried.append(_input(probes, inputs))
    if not any(isinstance(found, Reader) for found in tried):
        tried += _module(probes, monitors.get("ina3221", []))
    if not tried and _is_jetson(probes):
        tried.append(
            Unread("board power", "/sys/class/hwmon", "there is neither an INA3221 nor an INA238")
        )
    return sort_out(tried)


def _input(probes: Probes, chips: list[Path]) -> Reader | Unread:
    paths = [chip / "power1_input" for chip in chips]
    return file_reader(probes, paths, "VIN", "power", "W", scale=1e-6)


def _module(probes: Probes, chips: list[Path]) -> list[Reader | Unread]:
    """The rail for the total current, or else the sum of the parallel rails."""
    rails = {label: files for chip in chips for label, files in _rails(chip)}
    if not rails:
        return []
    if _TOTAL in rails:
        rails = {_TOTAL: rails[_TOTAL]}
    counted = [label for label in rails if _PART_OF.get(label) not in rails]
    return [_sum(probes, " + ".join(counted), [rails[label] for label in counted])]


def _rails(chip: Path) -> list[tuple[str, tuple[Path, Path]]]:
    """Label and files (millivolts, milliamperes) of each connected channel."""
    rails = []
    for number in _CHANNELS:
        label = text(chip / f"in{number}_label")
        if label not in ("", "NC"):
            rails.append((label, (chip / f"in{number}_input", chip / f"curr{number}_input")))
    return rails


def _sum(probes: Probes, name: str, rails: list[tuple[Path, Path]]) -> Reader | Unread:
    where = place(probes, rails[0][0].parent)
    files: list[NumberFile] = []
    try:
        for path in (path for rail in rails for path in rail):
            files.append(NumberFile(path))
    except (OSError, ValueError) as error:
        close_all(files)
        return Unread(name, where, reason(error))
    pairs = list(zip(files[::2], files[1::2], strict=True))

    def read() -> float:
        return sum(volts.read() * amperes.read() for volts, amperes in pairs) * 1e-6

    return Reader(name, "power", "W", where, read, close=lambda: close_all(files))


def _is_jetson(probes: Probes) -> bool:
    try:
        return "nvidia,tegra" in probes.text("/proc/device-tree/compatible")
    except OSError:
        return False
