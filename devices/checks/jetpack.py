"""Whether the Jetson's system software is one to build on."""

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.numbers import numbers
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning
from edgelm.devices.detection.jetpack import jetpack_of

_OLDEST_TENSORRT = (10, 3)  # that of the decomposed dialect
_XAVIER = "tegra194"
_UPGRADE = (
    "in /etc/apt/sources.list.d/nvidia-l4t-apt-source.list replace r36.4 by r36.5, then: "
    "sudo apt update && sudo apt dist-upgrade && sudo apt install nvidia-jetpack && sudo reboot"
)


def nvmap(context: Context) -> Verdict | None:
    """Whether this is the L4T release whose memory allocator refuses large blocks."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    if jetson.l4t is None:
        return unknown("the L4T release", why=context.unread("Jetson Linux"))
    if numbers(jetson.l4t)[:3] != (36, 4, 7):
        return ok(f"L4T {jetson.l4t} is without the NvMap allocation bug of 36.4.7")
    return error(
        "L4T 36.4.7 cannot allocate large contiguous GPU memory; fixed in 36.5.0 (JetPack 6.2.2)",
        why="loading fails with NvMapMemAllocInternalTagged error 12 or out of memory while "
        "gigabytes are free",
        fix=_UPGRADE,
    )


def release(context: Context) -> Verdict | None:
    """Whether JetPack carries a TensorRT that edgelm has a dialect for."""
    jetson = context.machine.jetson
    if jetson is None:
        return None
    known = jetpack_of(jetson.l4t) if jetson.l4t else None
    name = known.jetpack if known else jetson.jetpack
    if jetson.soc == _XAVIER:
        return warning(
            f"{jetson.model} is a Xavier; JetPack 5 ({name or 'release unknown'}) is its last",
            why="its TensorRT 8.5 builds none of edgelm's graphs and no new one will come",
            fix="run bundles for the CPU (edge-export --target cpu), or use an Orin or a Thor",
        )
    if known is None:
        return unknown(
            f"which JetPack L4T {jetson.l4t or '(unknown)'} belongs to",
            why="not in our table" if jetson.l4t else context.unread("Jetson Linux"),
        )
    if numbers(known.tensorrt) >= _OLDEST_TENSORRT:
        return ok(f"JetPack {known.jetpack} carries TensorRT {known.tensorrt}")
    return warning(
        f"JetPack {known.jetpack} carries TensorRT {known.tensorrt}; expected 10.3 or newer",
        why="TensorRT before 10.3 builds none of edgelm's graphs",
        fix="flash JetPack 6.2.2 or 7.2 with NVIDIA's SDK Manager, or run bundles for the CPU",
    )
