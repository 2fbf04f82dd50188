"""Jetson modules: their part numbers, and the names of their profiles."""

import math
from typing import NamedTuple

from edgelm.devices.detection.machine import Jetson


class Soc(NamedTuple):
    """A system on a chip. `number` is the kernel's, in /sys/devices/soc0/soc_id."""

    number: str
    gpu: str
    sm: int


class Module(NamedTuple):
    """A module. `profile` lacks the memory size; `sm_counts` are the active SMs by power mode."""

    profile: str
    sm_counts: dict[str, int]


SOCS = {
    "tegra194": Soc("25", "Xavier", 72),
    "tegra234": Soc("35", "Orin", 87),
    "tegra264": Soc("38", "Thor", 110),
}

_AGX_ORIN_64 = {"MAXN": 16, "MODE_15W": 6, "MODE_30W": 8, "MODE_50W": 16}
_AGX_ORIN_32 = {"MAXN": 14, "MODE_15W": 6, "MODE_30W": 8, "MODE_40W": 14}
# Without 15W: the only available copy of its configuration is doubtful.
_ORIN_NX = {"10W": 4, "20W": 8, "25W": 8, "40W": 8, "MAXN": 8, "MAXN_SUPER": 8}
_ORIN_NANO_8 = {"7W": 4, "15W": 8, "25W": 8, "MAXN_SUPER": 8}
_ORIN_NANO_4 = {"7W_AI": 4, "7W_CPU": 4, "10W": 4, "25W": 4, "MAXN_SUPER": 4}

# Part numbers: jetson_stats' table and NVIDIA's device trees; p3834-0000: OE4T's meta-tegra.
# SMs: NVIDIA's nvpmodel configurations, and for Thor the guide of R38.4.
_MODULES = {
    "p2888": Module("agx-xavier", {}),
    "p3668": Module("xavier-nx", {}),
    "p3701": Module("agx-orin", {}),
    "p3701-0000": Module("agx-orin", _AGX_ORIN_64),  # the first developer kit: 32 GB, but all SMs
    "p3701-0004": Module("agx-orin", _AGX_ORIN_32),
    "p3701-0005": Module("agx-orin", _AGX_ORIN_64),
    "p3767-0000": Module("orin-nx", _ORIN_NX),
    "p3767-0001": Module("orin-nx", _ORIN_NX),
    "p3767-0003": Module("orin-nano", _ORIN_NANO_8),
    "p3767-0004": Module("orin-nano", _ORIN_NANO_4),
    "p3767-0005": Module("orin-nano", _ORIN_NANO_8),
    "p3834-0000": Module("thor-t4000", {"MAXN": 12, "70W": 12}),
    "p3834-0008": Module("thor-t5000", {"MAXN": 20, "120W": 20, "90W": 12, "70W": 12}),
}
BOARDS = frozenset(part[:5] for part in _MODULES)

# If the part is unknown: words of the model name, and gigabytes to distinguish the Thors.
_MODELS = {
    "orin nano": "orin-nano",
    "orin nx": "orin-nx",
    "agx orin": "agx-orin",
    "xavier nx": "xavier-nx",
    "agx xavier": "agx-xavier",
    "thor 64": "thor-t4000",
    "thor 128": "thor-t5000",
}
# Modes that only a module's Super configuration has; 25W is a standard mode of an NX.
_SUPER = {"orin-nano": {"25W", "MAXN_SUPER"}, "orin-nx": {"40W", "MAXN_SUPER"}}


def module_of(part: str | None) -> Module | None:
    """The module of a part number such as p3767-0005."""
    return _MODULES.get(part or "") or _MODULES.get((part or "")[:5])


def jetson_profiles(jetson: Jetson, memory_bytes: int) -> list[str]:
    """Possible names of a module's profile, the most specific first."""
    size_gb = _label_gb(memory_bytes)
    module = module_of(jetson.part)
    base = module.profile if module else _by_model(f"{jetson.model} {size_gb}")
    if base is None:
        return []
    names = [f"jetson-{base}-{size_gb}gb", f"jetson-{base}"]
    return [f"{name}-super" for name in names if _is_super(jetson, base)] + names


def _label_gb(memory_bytes: int) -> int:
    """The advertised size in GB, a power of two; firmware reserves a part of it."""
    return int(2 ** math.ceil(math.log2(memory_bytes / 2**30)))


def _by_model(description: str) -> str | None:
    words = set(description.lower().split())
    return next((base for model, base in _MODELS.items() if words >= set(model.split())), None)


def _is_super(jetson: Jetson, base: str) -> bool:
    modes = {*jetson.power_modes, jetson.power_mode} - {None}
    if not modes:  # nvpmodel is hidden from containers
        return "super" in jetson.model.lower().split()
    return bool(modes & _SUPER.get(base, {"MAXN_SUPER"}))
