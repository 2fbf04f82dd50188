"""Whether the machine runs at full power and at its highest clocks.

A Jetson's power mode limits the clocks of CPU, GPU and memory; below the limits they follow the
load until `jetson_clocks` fixes them, which does not survive a reboot. Manifests record no power
mode, so the mode is compared with the module's highest.
"""

import re
from pathlib import Path

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning

# Orin, Thor, Xavier.
_DEVFREQ = (
    "/sys/class/devfreq/17000000.gpu",
    "/sys/class/devfreq/17000000.ga10b",
    "/sys/class/devfreq/gpu-gpc-0",
    "/sys/class/devfreq/17000000.gv11b",
)
_MODES = "/etc/nvpmodel.conf"


def power_mode(context: Context) -> Verdict | None:
    """Whether the module is in its highest power mode."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    if jetson.power_mode is None:
        return unknown("which power mode is set", why=context.unread("power mode"))
    if jetson.power_mode.startswith("MAXN"):
        return ok(f"the power mode is {jetson.power_mode}, the highest")
    modes = _modes(context.probes.text(_MODES))
    if not modes:
        return unknown("the highest power mode", why=f"{_MODES} names no mode")
    highest = max(modes, key=_rank)
    if _rank(highest) <= _rank(jetson.power_mode):
        return ok(f"the power mode is {jetson.power_mode}, the highest")
    return warning(
        f"the power mode is {jetson.power_mode}; the module also has {highest}",
        why="a lower mode limits the GPU's clock and often the memory's, which sets the decode "
        "speed; keep it if energy matters more, and state it with every measurement",
        fix=f"sudo nvpmodel -m {modes[highest]}",
    )


def clocks(context: Context) -> Verdict | None:
    """Whether the GPU's clock is fixed at its maximum."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    folder = next((path for path in _DEVFREQ if context.probes.path(path).is_dir()), None)
    if folder is None:
        return unknown("the clock of the GPU", why=f"none of {', '.join(_DEVFREQ)} exists")
    lowest, highest, now = (
        int(context.probes.text(f"{folder}/{name}")) / 1e6
        for name in ("min_freq", "max_freq", "cur_freq")
    )
    if lowest >= highest:
        return ok(f"the GPU's clock is fixed at {highest:.0f} MHz")
    return warning(
        f"the GPU's clock varies between {lowest:.0f} and {highest:.0f} MHz, now {now:.0f}",
        why="short runs end before it has risen: measurements vary, and first tokens are slow",
        fix="sudo jetson_clocks (before measuring, and after every reboot)",
    )


def battery(context: Context) -> Verdict | None:
    """Whether the machine runs on battery power."""
    batteries = [
        supply.parent
        for supply in context.probes.glob("/sys/class/power_supply/*/type")
        # A wireless mouse has a battery too; its scope is the device.
        if supply.read_text().strip() == "Battery" and not _of_device(supply.parent)
    ]
    if not batteries:
        return None
    states = {battery.name: (battery / "status").read_text().strip() for battery in batteries}
    if "Discharging" not in states.values():
        return ok(f"the machine runs on mains power ({', '.join(states.values()).lower()})")
    return warning(
        "the machine runs on battery power",
        why="firmware and driver then limit the power of CPU and GPU",
        fix="plug in its original charger",
    )


def _modes(configuration: str) -> dict[str, int]:
    found = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", configuration, re.MULTILINE
    )
    return {name: int(number) for number, name in found}


def _rank(mode: str) -> tuple[bool, int]:
    # Ids do not order modes: on an Orin Nano 15W is 0, 25W 1, MAXN_SUPER 2 and 7W 3.
    watts = re.search(r"(\d+)W", mode)
    return mode.startswith("MAXN"), int(watts[1]) if watts else 0


def _of_device(battery: Path) -> bool:
    try:
        return (battery / "scope").read_text().strip() == "Device"
    except FileNotFoundError:
        return False
