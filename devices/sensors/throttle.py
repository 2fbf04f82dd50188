"""Sensors of throttling, and the meaning of their values.

The unit gives the meaning: `events` count upwards, a `state` above zero is throttling, and
`reasons` are NVML's bits.
"""

import re
from pathlib import Path

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.reader import Found, Reader, file_reader, sort_out, text

# Over-current events of Orin and older modules; the class folder works with every driver name.
_EVENTS = (
    "/sys/devices/platform/soctherm-oc-event/hwmon/hwmon*/oc*_event_cnt",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt",
)
# Without fans, which only cool, and vision accelerators (cv0-throttle-alert), which are not used.
_SLOWING = re.compile(r".*(cpu|gpu|processor|powerclamp).*|soc\d*-throttle-alert|.*\.ga10b", re.I)
# nvml.h, nvmlClocksEventReasons; idling (1), application clocks (2), sync boost (16) and display
# clocks (256) are intended and not throttling.
_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def find_throttles(probes: Probes) -> Found:
    """Over-current counters and cooling devices of processor and GPU."""
    counters = {path.name: path for pattern in _EVENTS for path in probes.glob(pattern)}
    devices: dict[str, list[Path]] = {}
    for path in probes.glob("/sys/class/thermal/cooling_device*/type"):
        devices.setdefault(text(path), []).append(path.with_name("cur_state"))
    return sort_out(
        [
            *(_counter(probes, path) for path in counters.values()),
            *(
                file_reader(probes, paths, name, "throttle", "state")
                for name, paths in devices.items()
                if _SLOWING.fullmatch(name)
            ),
        ]
    )


def _counter(probes: Probes, path: Path) -> Reader | Unread:
    name = path.name.removesuffix("_event_cnt")  # oc1
    return file_reader(probes, [path], f"over-current {name}", "throttle", "events")


def throttling(reader: Reader, before: float | None, now: float) -> dict[str, int]:
    """Names of what throttles at a reading, and how often it began since the previous one."""
    if reader.unit == "events":
        count = 0 if before is None else int(now - before)
        return {reader.name: count} if count > 0 else {}
    if reader.unit == "state":
        return {reader.name: int((before or 0) <= 0)} if now > 0 else {}
    known, gpu = int(before or 0), reader.name.removesuffix(" throttling")
    return {
        f"{gpu} {word}": int(not known & bit) for bit, word in _REASONS.items() if int(now) & bit
    }
