"""Whether the machine is a laptop: by its chassis, or by a battery of its own.

The driver gives RTX 20 and GTX 16 GPUs of laptops the names of the desktop cards.
"""

from edgelm.devices.detection.probes import Probes

_CHASSIS = "/sys/class/dmi/id/chassis_type"
# SMBIOS 3.7, 7.4.1: portable, laptop, notebook, hand held, sub notebook, tablet, convertible,
# detachable.
_LAPTOPS = frozenset({"8", "9", "10", "11", "14", "30", "31", "32"})


def is_laptop(probes: Probes) -> bool:
    """Whether this is a laptop; False also if that cannot be read."""
    return probes.read("chassis", _CHASSIS, []) in _LAPTOPS or _has_battery(probes)


def _has_battery(probes: Probes) -> bool:
    for supply in probes.glob("/sys/class/power_supply/*/type"):
        folder = f"/sys/class/power_supply/{supply.parent.name}"
        # A wireless mouse has a battery too; its scope is the device.
        if (
            probes.read("power supply", f"{folder}/type", []) == "Battery"
            and probes.read("power supply", f"{folder}/scope", []) != "Device"
        ):
            return True
    return False
