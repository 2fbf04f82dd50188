"""Whether a build fits a machine: memory that is free, swap on a disk, swap in memory (zram).

Swap makes a build possible and slow: the copies of weights that TensorRT is not working on can
wait on a disk. What the GPU works on cannot, so that the free memory must hold at least one copy of
the largest segment. zram holds its pages, compressed, in the same memory: ordinary pages shrink
to about half, so that half of its size is gained.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from edgelm.cli import format_bytes
from edgelm.devices.detection.swap import SwapArea
from edgelm.devices.planner.memory.build_memory import (
    MAX_SEGMENTS,
    build_peak,
    compiles,
    resident_bytes,
    segment_bytes,
    segments_needed,
)
from edgelm.devices.profile import Profile

Answer = Literal["fits", "swaps", "does not fit"]

_ZRAM_GAIN = 0.5
# A computer has at least 16 GB of memory, or twice its GPU's, less what the system takes.
_MIN_HOST_BYTES = 16e9
_HOST_RESERVED = 4e9


class Room(msgspec.Struct, frozen=True):
    """Memory of a machine: available without swapping, and free swap on a disk and in zram."""

    available_bytes: int
    swap_bytes: int = 0
    zram_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What a build may take at most, swap included."""
        return self.available_bytes + self.swap_bytes + int(_ZRAM_GAIN * self.zram_bytes)

    def answer(self, engine: str, segments: Sequence[int]) -> Answer:
        """Whether segments of these bytes of weights can be compiled here."""
        peak = build_peak(engine, segments)
        if peak <= self.available_bytes:
            return "fits"
        if resident_bytes(engine, segments) <= self.available_bytes and peak <= self.total_bytes:
            return "swaps"
        return "does not fit"

    def describe(self) -> str:
        """`6.57 GB are available, and 8.00 GB of swap`."""
        parts = [f"{format_bytes(self.available_bytes)} are available"]
        if self.swap_bytes:
            parts.append(f"{format_bytes(self.swap_bytes)} of swap")
        if self.zram_bytes:
            parts.append(f"{format_bytes(self.zram_bytes)} of zram, which gains half of that")
        return ", and ".join(parts)


def room_here(available_bytes: int, swaps: Iterable[SwapArea]) -> Room:
    """The room of a machine with this much available memory and these swap areas."""
    areas = list(swaps)
    return Room(
        available_bytes,
        sum(area.free_bytes for area in areas if not area.in_memory),
        sum(area.free_bytes for area in areas if area.in_memory),
    )


class Build(msgspec.Struct, frozen=True):
    """How a graph is compiled: the fewest segments that fit, and the peak of memory."""

    segments: int
    peak_bytes: int


def room_of(profile: Profile) -> Room:
    """Memory of a device for a build, without swap: its budget, or that of a computer around it.

    The memory of a GPU of its own is not used to build; how much the computer has is assumed.
    """
    if profile.memory.kind != "dedicated":
        return Room(profile.budget_bytes)
    size = profile.memory.bytes.value if profile.memory.bytes else 0.0
    return Room(int(max(_MIN_HOST_BYTES, 2 * size) - _HOST_RESERVED))


def plan_build(engine: str, parts: Sequence[int], whole: int, room: Room) -> Build | None:
    """The build of a graph of these parts and total size; None where nothing is compiled.

    Where no number of segments fits, the one with the smallest peak.
    """
    if not compiles(engine):
        return None
    peak = build_peak(engine, [whole])
    if peak <= room.available_bytes:
        return Build(1, peak)
    count = segments_needed(engine, parts, room.available_bytes)
    if count is None or count == 1:
        count = min(len(parts), MAX_SEGMENTS)
    return Build(count, build_peak(engine, segment_bytes(parts, count)))
