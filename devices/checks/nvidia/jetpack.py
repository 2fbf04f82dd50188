"""Whether the Jetson's system software works with edgelm."""

from edgelm.devices.checks.context import MOUNT_FILES, Context
from edgelm.devices.checks.numbers import numbers
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning
from edgelm.devices.detection.jetpack import jetpack_of
from edgelm.devices.detection.modules import unsupported
from edgelm.devices.profile import load_profile
from edgelm.devices.this_machine import engine_of_machine, tensorrt_version

_OLDEST_TENSORRT = (10, 3)  # that of the decomposed dialect
_XAVIER = "tegra194"
_NEXT_BOARD = (
    "use an Orin or a Thor; the CPU runs bundles exported with --target cpu if you install Python "
    "3.10 or newer"
)
_XAVIER_TOOLS = "; NVIDIA's trtexec may compile an exported graph, see docs/targets.md#xavier"
_UPGRADE = (
    "in /etc/apt/sources.list.d/nvidia-l4t-apt-source.list replace r36.4 by r36.5, then: "
    "sudo apt update && sudo apt dist-upgrade && sudo apt install nvidia-jetpack && sudo reboot"
)


def nvmap(context: Context) -> Verdict | None:
    """Whether this is the L4T release whose memory allocator fails on large blocks."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    if jetson.l4t is None:
        return unknown("the L4T release", why=context.unread("Jetson Linux"), fix=MOUNT_FILES)
    if numbers(jetson.l4t)[:3] != (36, 4, 7):
        return ok(f"L4T {jetson.l4t} does not have the NvMap allocation bug of 36.4.7")
    return error(
        "L4T 36.4.7 cannot allocate large contiguous GPU memory; fixed in 36.5.0 (JetPack 6.2.2)",
        why="loading fails with NvMapMemAllocInternalTagged error 12 or out of memory while "
        "gigabytes are free",
        fix=_UPGRADE,
    )


def release(context: Context) -> Verdict | None:
    """Whether JetPack includes a TensorRT version that edgelm supports."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    if reason := unsupported(jetson):
        return warning(
            f"edgelm does not run on the GPU of {jetson.model}",
            why=reason,
            fix=_NEXT_BOARD + (_XAVIER_TOOLS if jetson.soc == _XAVIER else ""),
        )
    known = jetpack_of(jetson.l4t) if jetson.l4t else None
    if known is None:
        version = tensorrt_version(context.machine)
        if version and numbers(version) >= _OLDEST_TENSORRT:
            return ok(f"TensorRT {version} is installed; JetPack is not known{_engine(context)}")
        return unknown(
            f"which JetPack L4T {jetson.l4t or '(unknown)'} belongs to",
            why="its major number is not in the table"
            if jetson.l4t
            else context.unread("Jetson Linux"),
            fix="`apt show nvidia-jetpack` and `dpkg -l 'libnvinfer*'` name JetPack and TensorRT; "
            "edgelm needs TensorRT 10.3 or newer"
            if jetson.l4t
            else MOUNT_FILES,
        )
    if numbers(known.tensorrt) >= _OLDEST_TENSORRT:
        nearest = f" (the nearest to L4T {jetson.l4t} in the table)" if known.nearest else ""
        includes = f"JetPack {known.jetpack}{nearest} includes TensorRT {known.tensorrt}"
        return ok(f"{includes}{_engine(context)}")
    return warning(
        f"JetPack {known.jetpack} includes TensorRT {known.tensorrt}; expected 10.3 or newer",
        why="TensorRT before 10.3 cannot build edgelm's graphs",
        fix="flash JetPack 6.2.2 or 7.2 with NVIDIA's SDK Manager, or run bundles for the CPU",
    )


def _engine(context: Context) -> str:
    """The engine to export for, where it is not the profile's default."""
    if context.machine.profile is None:
        return ""
    profile = load_profile(context.machine.profile)
    engine = engine_of_machine(profile, context.machine)
    if engine is None or engine.name == profile.engine().name:
        return ""
    return f": export for it with --engine {engine.name}"
