"""Engines of a target: which one, and compiling it where no GPU is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.bundle import CompiledEngine, EngineRequirement, Manifest
from edgelm.cli import format_bytes
from edgelm.devices.profile import Profile
from edgelm.devices.tensorrt_versions import RTX, TENSORRT, engine_family, version_number
from edgelm.errors import BadInput
from edgelm.runtime.engines.tensorrt.build import Job, compile_engine
from edgelm.runtime.engines.tensorrt.engine_file import save_engine

_MACHINE = "ahead of time, without a GPU"


def engine_need(
    profile: Profile, name: str | None, compute_capabilities: Sequence[int]
) -> EngineRequirement:
    """What a bundle for a device will say it needs.

    Raises:
        BadInput: `compute_capabilities` for an engine that is not compiled ahead of time.
    """
    engine = profile.engine(name)
    family = engine_family(engine.name)
    if compute_capabilities and family != RTX:
        raise BadInput(
            f"{engine.name} is compiled on the device itself, for its own GPU; --sm goes with "
            f"{RTX}, which compiles ahead of time"
        )
    own = (profile.sm,) if profile.sm else ()
    return EngineRequirement(
        family, engine.version, tuple(sorted(set(compute_capabilities))) or own
    )


def opset_for(need: EngineRequirement) -> int | None:
    """The newest opset that an engine reads, where it does not read its dialect's own."""
    old = need.name == TENSORRT and version_number(need.version) < (10, 0)
    return 17 if old else None


def compile_ahead(
    folder: Path, manifest: Manifest, need: EngineRequirement, progress: Callable[[str], None]
) -> CompiledEngine:
    """Compile a bundle's graph with TensorRT-RTX for GPUs that need not be here."""
    built = compile_engine(
        Job(
            folder / manifest.graph.file,
            manifest.graph,
            RTX,
            manifest.limits.prefill_chunk,
            compute_capabilities=need.compute_capabilities,
        ),
        progress,
    )
    engine = save_engine(folder, manifest, built, need.compute_capabilities, machine=_MACHINE)
    size = format_bytes((folder / engine.file).stat().st_size)
    progress(f"compiled {engine.file}: {size} in {built.seconds:.1f} s")
    return engine
