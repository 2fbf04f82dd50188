"""Swap space on disk, and compressed swap in memory (zram).

A GPU cannot use swapped pages, so swap adds no space for a model that runs. It holds the pages of
other programs, and the copies of weights that are not in work while an engine is built, which
decides whether one can be built on a small board. zram keeps its pages, compressed, in the memory
that is short.
"""

from edgelm.cli import format_bytes
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, warning
from edgelm.devices.detection.swap import SwapArea, parse_swaps

_SMALL_BOARD = 9e9
_MUCH = 256e6
_SWAP_FILE = (
    "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile && echo '/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab"
)
_WHERE = "(better on an NVMe drive than on an SD card)"
_WITHOUT_ZRAM = "sudo systemctl disable nvzramconfig && sudo reboot"


def zram(context: Context) -> Verdict | None:
    """Whether compressed swap uses much of a Jetson's memory."""
    if context.machine.jetson is None:
        return None
    swaps = swap_areas(context)
    devices = [swap for swap in swaps if swap.in_memory]
    if not devices:
        return ok("zram is not set up")
    names = [device.name.removeprefix("/dev/") for device in devices]
    # The third number of mm_stat is the memory that the device takes, overhead included.
    taken = sum(int(context.probes.text(f"/sys/block/{name}/mm_stat").split()[2]) for name in names)
    if taken < _MUCH:
        return ok(f"zram uses {format_bytes(taken)} of memory")
    return warning(
        f"zram uses {format_bytes(taken)} of the memory that CPU and GPU share",
        why="a swap file keeps those pages on disk and leaves the memory to the model",
        fix=_WITHOUT_ZRAM
        if len(swaps) > len(devices)
        else f"{_SWAP_FILE} && {_WITHOUT_ZRAM} {_WHERE}",
    )


def swap_file(context: Context) -> Verdict | None:
    """Whether a small Jetson has swap on a disk, for building engines."""
    if context.machine.jetson is None or context.machine.memory_bytes > _SMALL_BOARD:
        return None
    size = sum(swap.size_bytes for swap in swap_areas(context) if not swap.in_memory)
    if size:
        return ok(f"there are {format_bytes(size)} of swap on a disk")
    return warning(
        f"no swap on a disk, with only {format_bytes(context.machine.memory_bytes)} of memory",
        why="building an engine needs several times the model's size for a while; the system kills "
        "it when memory runs out",
        fix=f"{_SWAP_FILE} {_WHERE}",
    )


def in_use(context: Context) -> Verdict | None:
    """Whether swap on a disk is in use now."""
    swaps = [swap for swap in swap_areas(context) if not swap.in_memory]
    if not swaps:
        return None
    used = sum(swap.used_bytes for swap in swaps)
    if used < _MUCH:
        return ok(f"{format_bytes(used)} of swap are in use")
    return warning(
        f"{format_bytes(used)} of swap are in use",
        why="memory ran out: swapped pages come back one by one, in the middle of a measurement or "
        "an answer",
        fix="close other programs, then: sudo swapoff -a && sudo swapon -a",
    )


def swap_areas(context: Context) -> list[SwapArea]:
    """The swap areas of the machine."""
    return parse_swaps(context.probes.text("/proc/swaps"))
