"""Whether the bundle fits into the memory that is available, and its engine onto the disk."""

import shutil

from edgelm.bundle import Manifest
from edgelm.cli import format_bytes
from edgelm.devices.checks.bundle_target import runs_here
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, error, ok, warning
from edgelm.devices.detection.machine import Machine
from edgelm.devices.planner.memory.memory_need import loaded_bytes

_MIN_CONTEXT = 256
_MIN_DISK = 2e9


def bundle_memory(context: Context) -> Verdict | None:
    """Whether the bundle with a full cache fits into the memory that is available now."""
    manifest = context.manifest
    if manifest is None or not runs_here(context):
        return None
    room, where = _room(context.machine, manifest)
    limit = manifest.limits.context
    need = loaded_bytes(manifest, limit)
    what = f"the bundle needs {format_bytes(need)} at its context of {limit}, {where}"
    if need <= room:
        return ok(what)
    least = min(_MIN_CONTEXT, limit)
    offered = room * 9 // 10
    if loaded_bytes(manifest, least) <= offered:
        return warning(
            what,
            why="the cache grows with the conversation until memory runs out",
            fix=f"edge-run --max-memory {offered // 10**6}MB reduces the context until it fits",
        )
    return error(
        f"the bundle needs {format_bytes(loaded_bytes(manifest, least))} at a context of {least}, "
        f"{where}",
        why="the system swaps or kills the process that loads it",
        fix="close other programs, or export with fewer bits or a smaller model",
    )


def disk_space(context: Context) -> Verdict | None:
    """Whether the disk of the current folder has room for an export, or the bundle's engine."""
    size = sum(file.bytes for file in context.manifest.files.values()) if context.manifest else 0
    # An engine or a second export is about as large; both are written before the old one goes.
    need = max(_MIN_DISK, 2 * size)
    free, mount = _free_disk(context)
    if free >= need:
        return ok(f"{format_bytes(free)} are free on {mount}")
    return warning(
        f"{format_bytes(free)} are free on {mount}, expected {format_bytes(need)}",
        why="a new export or engine is complete before it replaces the old one, so both need space",
        fix="free some space (pip cache purge, old bundles), or work on another disk",
    )


def _free_disk(context: Context) -> tuple[int, str]:
    """Free bytes on the disk of the current folder, and its mount point."""
    if context.machine.system.startswith("Windows"):  # which has no df
        return shutil.disk_usage(".").free, "this disk"
    row = context.probes.run(["df", "-Pk", "."]).strip().splitlines()[-1].split()
    return int(row[3]) * 1024, row[5]


def _room(machine: Machine, manifest: Manifest) -> tuple[int, str]:
    # A card in addition to a module's own GPU holds no bundle for that, nor the other way around.
    for_gpus = manifest.engine.compute_capabilities
    own = [
        gpu.memory_bytes
        for gpu in machine.gpus
        if gpu.memory_kind == "dedicated" and (not for_gpus or gpu.sm in for_gpus)
    ]
    sizes = [size for size in own if size]
    if sizes and manifest.engine.name != "onnxruntime":  # which runs on the CPU
        return max(sizes), f"the GPU has {format_bytes(max(sizes))}"
    return machine.available_bytes, f"{format_bytes(machine.available_bytes)} are available now"
