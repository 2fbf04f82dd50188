"""Before compiling: whether this machine has the memory for it, by the planner's own function."""

from collections.abc import Callable, Sequence

from edgelm.bundle import Manifest
from edgelm.cli import format_bytes
from edgelm.devices.planner.memory.build_memory import build_peak
from edgelm.devices.planner.memory.build_room import Room
from edgelm.errors import DoesNotFit

Progress = Callable[[str], None]


def check_build_memory(
    engine: str, segments: Sequence[int], room: Room, progress: Progress
) -> None:
    """Check that segments of these bytes of weights can be compiled; warn where it takes swap.

    `segments` has one entry for a graph that is compiled whole.

    Raises:
        DoesNotFit: not even with the swap that is free.
    """
    answer = room.answer(engine, segments)
    need = f"compiling needs about {format_bytes(build_peak(engine, segments))} of memory"
    if len(segments) > 1:
        need += f" in {len(segments)} segments"
    if answer == "swaps":
        progress(f"{need}, {room.describe()}: it will swap, which makes it several times slower")
    if answer == "does not fit":
        raise DoesNotFit(
            f"{need}, {room.describe()}; close other programs, stop the desktop (sudo systemctl "
            "isolate multi-user), add swap on a disk, or export it in more segments "
            "(edge-export --segments auto)"
        )


def segment_weights(manifest: Manifest) -> tuple[int, ...]:
    """Bytes of weights of what is compiled one after the other: the segments, or the graph."""
    segments = tuple(segment.weight_bytes for segment in manifest.graph.segments)
    return segments or (manifest.weight_bytes,)
