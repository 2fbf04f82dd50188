"""Memory to compile a graph on a device, for the planner, the doctor and the finalizer alike.

TensorRT holds the weights of what it compiles several times: as read, in the network, packed for
the tactics that it tries. A graph may be cut into segments that are compiled one after the other;
then the copies are those of the largest segment. The weights of the others are in a file that is
mapped, whose pages the system drops when memory is short. `BUILD_FACTORS` is the one table of
measured factors.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from edgelm.devices.tensorrt_versions import RTX, TENSORRT, engine_family

MAX_SEGMENTS = 64


class BuildFactor(msgspec.Struct, frozen=True):
    """Memory that an engine takes to compile: a fixed part, and copies of the weights."""

    fixed_bytes: int
    copies: float
    source: str


BUILD_FACTORS = {
    RTX: BuildFactor(
        600_000_000,
        3.35,
        "TensorRT-RTX 1.7 ahead of time, int4 graphs: 57 to 2,977 MB took 617 to 10,433 MB",
    ),
    TENSORRT: BuildFactor(
        500_000_000,
        3.5,
        "three to four times the weights (TensorRT-Edge-LLM issue 30); not measured on a Jetson",
    ),
}


def compiles(engine: str) -> bool:
    """Whether an engine, such as `tensorrt-10.3`, compiles the graph before it runs."""
    return engine_family(engine) in BUILD_FACTORS


def build_peak(engine: str, segments: Sequence[int]) -> int:
    """Peak memory to compile segments of these bytes of weights, one after the other.

    One entry is a graph that is compiled whole.
    """
    factor = BUILD_FACTORS[engine_family(engine)]
    return int(factor.fixed_bytes + factor.copies * max(segments, default=0))


def resident_bytes(engine: str, segments: Sequence[int]) -> int:
    """The part of the peak that cannot be swapped out: what the GPU works on."""
    return BUILD_FACTORS[engine_family(engine)].fixed_bytes + max(segments, default=0)


def cut(parts: Sequence[int], count: int) -> tuple[range, ...]:
    """Cut consecutive parts into at most `count` segments so that the largest is smallest.

    `parts` are bytes in the order of the graph, such as embedding, layers, head. Each segment is
    a range of indices, none is empty.
    """
    if count >= len(parts):
        return tuple(range(index, index + 1) for index in range(len(parts)))
    limit = _smallest_limit(parts, count)
    bounds, size = [0], 0
    for index, part in enumerate(parts):
        if index > bounds[-1] and size + part > limit:
            bounds.append(index)
            size = 0
        size += part
    bounds.append(len(parts))
    return tuple(range(*pair) for pair in pairwise(bounds))


def segment_bytes(parts: Sequence[int], count: int) -> tuple[int, ...]:
    """Bytes of each segment of `cut`."""
    sums = (0, *accumulate(parts))
    return tuple(sums[one.stop] - sums[one.start] for one in cut(parts, count))


def segments_needed(engine: str, parts: Sequence[int], available_bytes: float) -> int | None:
    """The fewest segments with which the build's peak fits; None if no number is enough."""
    factor = BUILD_FACTORS[engine_family(engine)]
    limit = int((available_bytes - factor.fixed_bytes) / factor.copies)
    if limit < max(parts):
        return None
    count = _segments(parts, limit)
    return count if count <= MAX_SEGMENTS else None


def _smallest_limit(parts: Sequence[int], count: int) -> int:
    """The smallest size that `count` segments of consecutive parts can all keep to."""
    low = max(max(parts), sum(parts) // count)
    high = low + max(parts)  # filled in order, no segment falls short of the mean by more
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _segments(parts, middle) <= count else (middle + 1, high)
    return low


def _segments(parts: Sequence[int], limit: int) -> int:
    """Segments of at most `limit` bytes, filled in order."""
    found, size = 1, 0
    for part in parts:
        if size + part > limit:
            found, size = found + 1, 0
        size += part
    return found
