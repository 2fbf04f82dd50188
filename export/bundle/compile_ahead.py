"""Compile a bundle's engine where no GPU is needed."""

from collections.abc import Callable
from pathlib import Path

from edgelm.bundle import CompiledEngine, Manifest
from edgelm.cli import format_bytes
from edgelm.devices.tensorrt_versions import RTX
from edgelm.runtime.engines.tensorrt.build import Job, compile_engine
from edgelm.runtime.engines.tensorrt.engine_file import save_engine

_MACHINE = "ahead of time, without a GPU"


def compile_ahead(
    folder: Path, manifest: Manifest, progress: Callable[[str], None]
) -> tuple[CompiledEngine, ...]:
    """Compile a bundle's graph with TensorRT-RTX, if that is its engine; its GPU may be absent."""
    gpus = manifest.engine.compute_capabilities
    if manifest.engine.name != RTX:
        return ()
    graph, chunk = manifest.graph, manifest.limits.prefill_chunk
    job = Job(folder / graph.file, graph, RTX, chunk, compute_capabilities=gpus)
    built = compile_engine(job, progress)
    engine = save_engine(folder, manifest, built, gpus, machine=_MACHINE)
    size = format_bytes((folder / engine.file).stat().st_size)
    progress(f"compiled {engine.file}: {size} in {built.seconds:.1f} s")
    return (engine,)
