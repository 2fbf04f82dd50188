"""Whether a bundle's engine can be compiled in the memory of this machine."""

from edgelm.cli import format_bytes
from edgelm.devices.checks.bundle_target import runs_here
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.host.swap import swap_areas
from edgelm.devices.checks.verdict import Verdict, error, ok, warning
from edgelm.devices.planner.memory.build_memory import build_peak
from edgelm.devices.planner.memory.build_room import room_here

_FREE = (
    "close other programs, stop the desktop (sudo systemctl isolate multi-user), add swap on a "
    "disk, or export it in more segments: edge-export --segments auto"
)


def build_memory(context: Context) -> Verdict | None:
    """Whether the engine of a pending bundle can be compiled now, with or without swap."""
    manifest = context.manifest
    if manifest is None or not manifest.pending or not runs_here(context):
        return None
    segments = [one.weight_bytes for one in manifest.graph.segments] or [manifest.weight_bytes]
    room = room_here(context.machine.available_bytes, swap_areas(context))
    answer = room.answer(manifest.engine.name, segments)
    peak = format_bytes(build_peak(manifest.engine.name, segments))
    what = f"compiling the bundle's engine needs about {peak}, {room.describe()}"
    if answer == "fits":
        return ok(what)
    if answer == "swaps":
        return warning(
            what,
            why="the rest is swapped, which makes compiling several times slower",
            fix=_FREE,
        )
    return error(
        what, why="edge-export --finalize refuses: the system would kill the compiler", fix=_FREE
    )
