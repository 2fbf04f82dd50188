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
    """A module. `profiles` lack the memory size; `sm_counts` are the active SMs by power mode."""

    profiles: tuple[str, ...]
    sm_counts: dict[str, int]


SOCS = {
    "tegra210": Soc("33", "Tegra X1", 53),
    "tegra186": Soc("24", "Tegra X2", 62),
    "tegra194": Soc("25", "Xavier", 72),
    "tegra234": Soc("35", "Orin", 87),
    "tegra264": Soc("38", "Thor", 110),
}

_AGX_ORIN_64 = {"MAXN": 16, "MODE_15W": 6, "MODE_30W": 8, "MODE_50W": 16}
_AGX_ORIN_32 = {"MAXN": 14, "MODE_15W": 6, "MODE_30W": 8, "MODE_40W": 14}
_ORIN_NX = {"10W": 4, "15W": 4, "20W": 8, "25W": 8, "40W": 8, "MAXN": 8, "MAXN_SUPER": 8}
_ORIN_NANO_8 = {"7W": 4, "15W": 8, "25W": 8, "MAXN_SUPER": 8}
_XAVIER_NX = (
    *(f"MODE_{watts}W_{cores}CORE" for watts in (15, 20) for cores in (2, 4, 6)),
    *("MODE_10W_2CORE", "MODE_10W_4CORE", "MODE_10W_DESKTOP"),
)
_ORIN_NANO_4 = {"7W_AI": 4, "7W_CPU": 4, "10W": 4, "25W": 4, "MAXN_SUPER": 4}

# Part numbers: jetson_stats' table and NVIDIA's device trees; p3834-0000: OE4T's meta-tegra;
# p3701-0000: meta-tegra and the TNSPEC of a board; p3701-0001, -0002 and -0008 are the Industrial
# module, which IGX Orin also has.
# SMs: NVIDIA's nvpmodel configurations, and for Thor the guide of R38.4.
_MODULES = {
    "p2180": Module((), {"MAXN": 2}),  # TX1
    "p2888": Module(("agx-xavier",), {}),
    "p3310": Module((), {}),  # TX2
    "p3448": Module((), {"MAXN": 1, "5W": 1}),  # Nano
    "p3489": Module((), {}),  # TX2 4GB and TX2i
    "p3636": Module((), {}),  # TX2 NX
    "p3668": Module(("xavier-nx",), dict.fromkeys(_XAVIER_NX, 6)),
    "p3701": Module(("agx-orin",), {}),
    # The first developer kit: 32 GB, but all SMs of the 64 GB module.
    "p3701-0000": Module(("agx-orin-devkit", "agx-orin"), _AGX_ORIN_64),
    "p3701-0001": Module(("agx-orin-industrial", "agx-orin"), {"MAXN": 16}),
    "p3701-0002": Module(("agx-orin-industrial", "agx-orin"), {"MAXN": 16}),
    "p3701-0004": Module(("agx-orin",), _AGX_ORIN_32),
    "p3701-0005": Module(("agx-orin",), _AGX_ORIN_64),
    "p3701-0008": Module(("agx-orin-industrial", "agx-orin"), {"MAXN": 16}),
    "p3767-0000": Module(("orin-nx",), _ORIN_NX),
    "p3767-0001": Module(("orin-nx",), _ORIN_NX),
    "p3767-0003": Module(("orin-nano",), _ORIN_NANO_8),
    "p3767-0004": Module(("orin-nano",), _ORIN_NANO_4),
    "p3767-0005": Module(("orin-nano",), _ORIN_NANO_8),
    "p3834-0000": Module(("thor-t4000",), {"MAXN": 12, "70W": 12}),
    "p3834-0008": Module(("thor-t5000",), {"MAXN": 20, "120W": 20, "90W": 12, "70W": 12}),
}
BOARDS = frozenset(part[:5] for part in _MODULES)

# If the part is unknown: words of the model name, and gigabytes to distinguish the Thors.
_MODELS = {
    "orin nano": "orin-nano",
    "orin nx": "orin-nx",
    "agx orin": "agx-orin",
    "igx orin": "agx-orin-industrial",
    "xavier nx": "xavier-nx",
    "agx xavier": "agx-xavier",
    "thor 64": "thor-t4000",
    "thor 128": "thor-t5000",
}
# Modes that only a module's Super configuration has; 25W is a standard mode of an NX.
_SUPER = {"orin-nano": {"25W", "MAXN_SUPER"}, "orin-nx": {"40W", "MAXN_SUPER"}}


# What edgelm does not run on, and the last JetPack of each: no later one has its requirements.
UNSUPPORTED = {
    "tegra210": "JetPack 4, the last for Jetson Nano and TX1, has TensorRT 8.2 and Python 3.6",
    "tegra186": "JetPack 4, the last for Jetson TX2, has TensorRT 8.2 and Python 3.6",
    "tegra194": "JetPack 5, the last for Jetson Xavier, has TensorRT 8.5 and Python 3.8",
}


def unsupported(jetson: Jetson) -> str | None:
    """Why edgelm does not run on this generation of Jetson; None if it does."""
    return UNSUPPORTED.get(jetson.soc or "")


def module_of(part: str | None) -> Module | None:
    """The module of a part number such as p3767-0005."""
    return _MODULES.get(part or "") or _MODULES.get((part or "")[:5])


def jetson_profiles(jetson: Jetson, memory_bytes: int) -> list[str]:
    """Possible names of a module's profile, the most specific first."""
    size_gb = _label_gb(memory_bytes)
    module = module_of(jetson.part)
    bases = module.profiles if module else _by_model(f"{jetson.model} {size_gb}")
    names = [name for base in bases for name in (f"jetson-{base}-{size_gb}gb", f"jetson-{base}")]
    is_super = any(_is_super(jetson, base) for base in bases)
    return [f"{name}-super" for name in names if is_super] + names


def _label_gb(memory_bytes: int) -> int:
    """The advertised size in GB, a power of two; firmware reserves a part of it."""
    return int(2 ** math.ceil(math.log2(memory_bytes / 2**30)))


def _by_model(description: str) -> tuple[str, ...]:
    words = set(description.lower().split())
    return tuple(base for model, base in _MODELS.items() if words >= set(model.split()))[:1]


def _is_super(jetson: Jetson, base: str) -> bool:
    modes = {*jetson.power_modes, jetson.power_mode} - {None}
    if not modes:  # nvpmodel is hidden from containers
        return "super" in jetson.model.lower().split()
    return bool(modes & _SUPER.get(base, {"MAXN_SUPER"}))
