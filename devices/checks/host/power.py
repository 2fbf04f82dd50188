"""Whether the machine runs at full power and at its highest clocks.

A Jetson's power mode limits the clocks of CPU, GPU and memory; below the limits they follow the
load until `jetson_clocks` fixes them, which does not survive a reboot. Manifests record no power
mode, so the mode is compared with the module's highest.
"""

import re
from collections.abc import Callable
from pathlib import Path

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning
from edgelm.devices.detection.jetson import GPU_CLOCKS
from edgelm.devices.profile import load_profile
from edgelm.devices.profile_tables import Figure, PowerMode
from edgelm.errors import BadInput

_DEVFREQ = "/sys/class/devfreq"
_MODES = "/etc/nvpmodel.conf"
_MIN_CLOCK = 0.9  # of the mode's


def _value(figure: Figure | None, scale: float = 1) -> float | None:
    return scale * figure.value if figure else None


_LIMITS: tuple[tuple[str, str, Callable[[PowerMode], float | None]], ...] = (
    ("the GPU's clock to", " MHz", lambda mode: _value(mode.clock_ghz, 1e3)),
    ("its multiprocessors to", "", lambda mode: _value(mode.sm_count)),
    ("the memory to", " GB/s", lambda mode: _value(mode.bandwidth_gb_s)),
)


def power_mode(context: Context) -> Verdict | None:
    """Whether the module is in its highest power mode."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    if jetson.power_mode is None:
        return unknown(
            "which power mode is set", why=context.unread("power mode"), fix="sudo nvpmodel -q"
        )
    now = jetson.power_mode
    if now.startswith("MAXN"):
        return ok(f"the power mode is {now}, the highest")
    modes = _modes(context.probes.text(_MODES))
    if not modes:
        return unknown(
            "the highest power mode",
            why=f"{_MODES} names no mode",
            fix="sudo nvpmodel -p --verbose lists them",
        )
    highest = max(modes, key=_rank)
    if _rank(highest) <= _rank(now):
        return ok(f"the power mode is {now}, the highest")
    switch = f"sudo nvpmodel -m {modes[highest]}"
    limits = _limits(context, now, highest)
    if limits == "":
        return ok(
            f"the power mode is {now}; {highest} ({switch}) only adds CPU speed and power: GPU and "
            "memory have the same limits"
        )
    return warning(
        f"the power mode is {now}; the module also has {highest}",
        why=(limits or "a lower mode limits the GPU's clock and often the memory's")
        + "; keep it if energy matters more, and state it with every measurement",
        fix=switch,
    )


def clocks(context: Context) -> Verdict | None:
    """Whether the GPU's clock is fixed, and at the maximum that the power mode allows."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    folders = [f"{_DEVFREQ}/{name}" for name in GPU_CLOCKS]
    folder = next((path for path in folders if context.probes.path(path).is_dir()), None)
    if folder is None:
        return unknown(
            "the clock of the GPU",
            why=f"none of {', '.join(folders)} exists",
            fix="`sudo jetson_clocks --show` prints it on the system itself",
        )
    lowest, highest, now = (
        int(context.probes.text(f"{folder}/{name}")) / 1e6
        for name in ("min_freq", "max_freq", "cur_freq")
    )
    expected = _expected_mhz(context)
    if expected and highest < _MIN_CLOCK * expected:
        return _limited(context, folder, highest, expected)
    if lowest >= highest:
        return ok(f"the GPU's clock is fixed at {highest:.0f} MHz")
    return warning(
        f"the GPU's clock varies between {lowest:.0f} and {highest:.0f} MHz, now {now:.0f}",
        why="short runs end before it has risen: measurements vary, and first tokens are slow",
        fix="sudo jetson_clocks (before measuring, and after every reboot)",
    )


def _limited(context: Context, folder: str, highest: float, expected: float) -> Verdict:
    """The verdict on a clock whose limit is far below the power mode's."""
    jetson = context.machine.jetson
    mode = (jetson and jetson.power_mode) or "the power mode"
    number = jetson.power_mode_id if jetson else None
    table = context.probes.read("clocks", f"{folder}/available_frequencies", []).split()
    top = max((int(one) / 1e6 for one in table if one.isdigit()), default=None)
    if top is not None and top < _MIN_CLOCK * expected:
        fix = (
            f"the firmware's table of clocks ends at {top:.0f} MHz: flash the board again with the "
            "configuration that has this mode (Super modes: jetson-orin-nano-devkit-super), with "
            "JetPack 6.2 or newer"
        )
    else:
        again = f"sudo nvpmodel -m {number}" if number is not None else "set the power mode again"
        fix = f"{again} && sudo reboot; then sudo jetson_clocks --show"
    return warning(
        f"the GPU's clock is limited to {highest:.0f} MHz; {mode} allows {expected:.0f}",
        why=f"prompts take {expected / highest:.1f} times as long",
        fix=fix,
    )


def _expected_mhz(context: Context) -> float | None:
    """The GPU's highest clock in the current mode: by nvpmodel's file, or by the profile."""
    jetson = context.machine.jetson
    if jetson is None or jetson.power_mode is None:
        return None
    configuration = context.probes.read("power mode", _MODES, [])
    section = re.search(
        rf"POWER_MODEL\s+ID=\d+\s+NAME={re.escape(jetson.power_mode)}\s*>(.*?)(?=^\s*<|\Z)",
        configuration,
        re.MULTILINE | re.DOTALL,
    )
    limit = re.search(r"^\s*GPU\s+MAX_FREQ\s+(\d+)", section[1], re.MULTILINE) if section else None
    if limit:
        return int(limit[1]) / 1e6
    mode = _profile_mode(context, jetson.power_mode)
    return 1e3 * mode.clock_ghz.value if mode and mode.clock_ghz else None


def _limits(context: Context, now: str, highest: str) -> str | None:
    """What a mode limits against the highest one: empty if nothing, None if that is not known."""
    lower, upper = _profile_mode(context, now), _profile_mode(context, highest)
    if lower is None or upper is None:
        return None
    parts = []
    for what, unit, of in _LIMITS:
        first, second = of(lower), of(upper)
        if first and second and first < 0.99 * second:
            parts.append(f"{what} {first:.4g} of {second:.4g}{unit}")
    return f"{now} limits {', '.join(parts)}" if parts else ""


def _profile_mode(context: Context, name: str) -> PowerMode | None:
    if context.machine.profile is None:
        return None
    try:
        return load_profile(context.machine.profile).mode(name)
    except BadInput:  # a mode of the owner's
        return None


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
