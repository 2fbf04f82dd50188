"""Whether the GPU can be read, and runs at its default power limit."""

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning
from edgelm.devices.detection.nvidia import UNREAD_GPU

_MIN_SHARE = 0.8  # of the default power limit
_ASK = ("nvidia-smi", "--query-gpu=name,power.limit,power.default_limit", "--format=csv,noheader")


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


def power_limit(context: Context) -> Verdict | None:
    """Whether a GPU's power limit is far below its default."""
    if not context.machine.gpus or context.machine.jetson:
        return None
    lines = context.probes.run(_ASK).strip().splitlines()
    limits = [limit for line in lines if (limit := _limit(line))]
    if not limits:
        return unknown("the power limit of the GPU", why="its driver does not report one")
    name, now, default = min(limits, key=lambda limit: limit[1] / limit[2])
    if now >= _MIN_SHARE * default:
        return ok(f"the power limit of {name} is {now:.0f} W, by default {default:.0f} W")
    return warning(
        f"the power limit of {name} is {now:.0f} W, by default {default:.0f} W",
        why="the GPU lowers its clocks to stay below the limit",
        fix=f"sudo nvidia-smi -pl {default:.0f}; on a laptop also check the manufacturer's power "
        "profile",
    )


def _limit(line: str) -> tuple[str, float, float] | None:
    name, *values = (part.strip() for part in line.split(","))
    try:
        now, default = (float(value.removesuffix(" W")) for value in values)
    except ValueError:  # [N/A] or [Not Supported], as on most laptops
        return None
    return (name, now, default) if default > 0 else None
