"""Whether the GPU can be read, is whole, and runs at the power that it may have."""

import msgspec

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning
from edgelm.devices.detection.chassis import is_laptop
from edgelm.devices.detection.nvidia import UNREAD_GPU
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput

_MIN_SHARE = 0.8  # of the power limit that the GPU may have
_FIELDS = "name,enforced.power.limit,power.default_limit,power.max_limit"
# Older drivers do not know all of these fields.
_OLD_FIELDS = "name,power.limit,power.default_limit"
_LAPTOP_FIX = (
    "choose the manufacturer's performance profile and its original charger; on Linux also: sudo "
    "systemctl enable --now nvidia-powerd (without it the limit stays at its lowest)"
)


class _Limits(msgspec.Struct, frozen=True):
    """Watts: the limit in force, the default, and the highest that may be set."""

    name: str
    now: float | None
    default: float | None = None
    highest: float | None = None


def readable(context: Context) -> Verdict | None:
    """Whether NVML can read every GPU of the machine."""
    for entry in context.machine.unread:
        if entry.what == UNREAD_GPU:
            package = "nvidia-ml-py" in entry.why
            return warning(
                f"there is an NVIDIA GPU that cannot be read: {entry.why}",
                why="its model, memory and driver are unknown, so no check covers them",
                fix="pip install 'edgelm[nvml]'"
                if package
                else "install NVIDIA's driver until nvidia-smi lists the GPU (a container needs "
                "--gpus all)",
            )
    names = ", ".join(gpu.name for gpu in context.machine.gpus)
    return ok(f"NVML reads {names}") if names else None


def memory(context: Context) -> Verdict | None:
    """Whether this process has the whole GPU, or a part of a divided one (MIG)."""
    for gpu in context.machine.gpus:
        if gpu.memory_kind == "shared":
            continue
        if gpu.memory_bytes is None:
            return unknown(
                f"how much memory of {gpu.name} may be used",
                why=context.unread("memory of"),
                fix="nvidia-smi -L, and give the size of the part: edge-run --max-memory SIZE, "
                "edge-devices plan --max-memory SIZE",
            )
        if gpu.mig:
            return warning(
                f"{gpu.name} is divided (MIG); this process has "
                f"{gpu.memory_bytes / 2**30:.1f} GiB of it",
                why="its profile, and so every plan, is for the whole GPU",
                fix="plan with --max-memory and the size of the part",
            )
    return None


def power_limit(context: Context) -> Verdict | None:
    """Whether a GPU's power limit is far below the one that it may have."""
    if not context.machine.gpus or context.machine.jetson:
        return None
    shares = [
        (limits.now / may, limits, may)
        for limits in _all_limits(context)
        if limits.now and (may := _may_have(context, limits))
    ]
    if not shares:
        return _by_profile(context)
    share, limits, may = min(shares, key=lambda entry: entry[0])
    what = f"the power limit of {limits.name} is {limits.now:.0f} W, it may have {may:.0f} W"
    if share >= _MIN_SHARE:
        return ok(what)
    return warning(
        what,
        why="the GPU lowers its clocks to stay below the limit",
        fix=_LAPTOP_FIX
        if _in_laptop(context, limits.name)
        else f"sudo nvidia-smi -pl {may:.0f}, unless somebody lowered it on purpose",
    )


def _all_limits(context: Context) -> list[_Limits]:
    """The limits of every GPU: NVML's, otherwise nvidia-smi's."""
    read = [
        _Limits(gpu.name, gpu.power_limit_w, gpu.default_power_limit_w, gpu.max_power_limit_w)
        for gpu in context.machine.gpus
    ]
    if any(one.now and (one.default or one.highest) for one in read):
        return read
    for fields in (_FIELDS, _OLD_FIELDS):
        command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
        try:
            lines = context.probes.run(command).strip().splitlines()
        except OSError:
            continue
        asked = [_parse(line) for line in lines]
        if any(one.default or one.highest for one in asked):
            # nvidia-smi lists the GPUs in NVML's order.
            enforced = [gpu.power_limit_w for gpu in context.machine.gpus]
            if len(enforced) == len(asked):
                asked = [
                    msgspec.structs.replace(one, now=one.now or limit)
                    for one, limit in zip(asked, enforced, strict=True)
                ]
            return asked
    return read


def _may_have(context: Context, limits: _Limits) -> float | None:
    """The limit that a GPU may have: a laptop's highest, a card's default.

    A laptop's default can be its lowest; a card's highest is for overclocking.
    """
    if _in_laptop(context, limits.name):
        return max(limits.highest or 0, limits.default or 0) or None
    return limits.default or limits.highest


def _by_profile(context: Context) -> Verdict:
    """Without limits from the driver: the limit in force against the profile's."""
    fix = "nvidia-smi -q -d POWER lists what the driver knows; on a laptop " + _LAPTOP_FIX
    gpu = max(context.machine.gpus, key=lambda gpu: gpu.memory_bytes or 0)
    planned = _profile_watts(context)
    if gpu.power_limit_w and planned:
        what = f"the power limit of {gpu.name} is {gpu.power_limit_w:.0f} W"
        if gpu.power_limit_w >= _MIN_SHARE * planned:
            return ok(f"{what}, its profile assumes {planned:.0f} W")
        return unknown(
            f"whether {gpu.power_limit_w:.0f} W is the highest power limit of {gpu.name} here",
            why=f"the driver does not report its highest limit; plans assume the "
            f"{planned:.0f} W of its profile",
            fix=fix,
        )
    return unknown("the power limit of the GPU", why="its driver does not report one", fix=fix)


def _profile_watts(context: Context) -> float | None:
    try:
        mode = load_profile(context.machine.profile or "").mode()
    except BadInput:
        return None
    return mode.watts.value if mode.watts else None


def _in_laptop(context: Context, name: str) -> bool:
    return "laptop" in name.lower() or is_laptop(context.probes)


def _parse(line: str) -> _Limits:
    name, *values = (part.strip() for part in line.split(","))
    return _Limits(name, *(_watts(value) for value in values[:3]))


def _watts(text: str) -> float | None:
    try:
        return float(text.removesuffix(" W")) or None
    except ValueError:  # [N/A] or [Not Supported]
        return None
